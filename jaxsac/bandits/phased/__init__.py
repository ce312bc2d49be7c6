"""Algorithms that alternate exploration of a basis with exploitation of one action."""
