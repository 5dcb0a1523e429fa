"""Deterministic decisions of the worker."""
