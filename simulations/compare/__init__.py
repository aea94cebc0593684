"""Comparison of strategies: a grid of runs, their paired statistics and the verdict."""
