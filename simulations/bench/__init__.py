"""`fedkd bench`: how fast this machine is."""
