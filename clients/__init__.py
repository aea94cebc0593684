"""Client halves, one algorithm a file."""
