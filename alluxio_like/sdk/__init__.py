"""Adapters for fsspec, Arrow and torch."""
