"""Algorithms that decide at every step."""
