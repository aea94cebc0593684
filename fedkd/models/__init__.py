"""Architectures: `students` and latent `generators`."""
