"""`fedkd export`: the student of a run, with preprocessing and labels, in a checked file."""
