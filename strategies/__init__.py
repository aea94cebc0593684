"""Server halves, one algorithm a file."""
