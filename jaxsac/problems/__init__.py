"""Simulators and data sets with known answers; no algorithms."""
