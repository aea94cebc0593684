"""Parts: terms that any strategy's loss can be given, by configuration (kd-components.md). One a file."""
