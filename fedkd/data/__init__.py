"""Where samples come from (`sources`) and who holds them (`partition`)."""
