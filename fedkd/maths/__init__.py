"""Mathematics of tensors: pure functions, shapes in their names."""
