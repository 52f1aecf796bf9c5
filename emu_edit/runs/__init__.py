"""The life of a training run: its folder, lock and status, how it resumes, fails and reports."""
