"""The sparse policy and what it says of records."""
