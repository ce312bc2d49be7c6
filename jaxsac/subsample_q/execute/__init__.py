"""Policies of k agents on n of them."""
