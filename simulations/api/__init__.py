"""fedkd from Python: runs, comparisons and what they left, as objects. The package `fedkd` hands these names on."""
