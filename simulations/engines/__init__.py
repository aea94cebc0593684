"""Engines: where jobs run. Inline, or on a pool of Ray workers."""
