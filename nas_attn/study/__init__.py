"""A study: its file, checked whole, and the jobs that come of it."""
