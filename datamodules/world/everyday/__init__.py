"""Sentences as people write them: patterns and words of everyday requests, task by task."""
