"""Distillation at a server: generators of images, heads on blocks, the loop that trains them."""
