"""Deterministic decisions of the master."""
