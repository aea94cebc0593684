"""One run: its folder, its rounds, its screen."""
