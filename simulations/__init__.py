"""Ties the packages together: engines, Flower apps, command line, run folders."""
