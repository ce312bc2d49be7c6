"""Logged decisions: the log, its digest, weights of records, families of tools."""
