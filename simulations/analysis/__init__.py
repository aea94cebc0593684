"""From the runs of a comparison to what may be concluded. Free of screens."""
