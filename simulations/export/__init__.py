"""`fedkd export`: the student that comes out of a run, with preprocessing and labels, in a file that was checked."""
