"""The border: all that a reply passes before an algorithm sees it, and before it becomes state."""
