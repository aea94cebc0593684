"""Local training and evaluation: the hot path."""
