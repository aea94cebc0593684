"""Parts: terms that any strategy's loss can be given, by configuration (docs/parts.md). One a file."""
