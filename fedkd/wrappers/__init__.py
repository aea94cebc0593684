"""Wrappers around the halves of any algorithm: privacy of counts, one aggregate for each architecture."""
