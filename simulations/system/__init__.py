"""What the operating system gives: processes, memory, files, locks, streams, signals."""
