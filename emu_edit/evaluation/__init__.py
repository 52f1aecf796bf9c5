"""Benchmarks end to end: what to edit, the edited pictures, their scores, tables and page."""
