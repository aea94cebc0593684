"""The command line `fedkd`."""
