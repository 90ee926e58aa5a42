"""Experiments: one script per section of the notes, each run with ``python -m experiments.<name>``."""
