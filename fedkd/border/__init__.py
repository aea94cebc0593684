"""The border: the checks of a reply before an algorithm sees it, and before it becomes state."""
