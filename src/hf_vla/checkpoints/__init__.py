"""Checkpoints of other codebases, read and written."""
