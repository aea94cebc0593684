"""Parts: terms that a configuration can add to any strategy's loss (docs/parts.md). One per file."""
