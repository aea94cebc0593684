"""What a run leaves: its ledger and its checkpoints."""
