"""How far a fit can be trusted: diagnosis, conditions, off-policy values."""
