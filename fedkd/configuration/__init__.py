"""Finds, composes, checks and shows a configuration."""
