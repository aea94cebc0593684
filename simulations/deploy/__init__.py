"""Deployment: the same configuration, strategies and ledger with clients on devices of their own."""
