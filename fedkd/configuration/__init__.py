"""A configuration: found, composed, checked, shown."""
