"""From the runs of a comparison to its conclusions. Free of screens."""
