"""Ordered transactional key-value stores: what the namespace is written over.

Owns the interface (`api`) and its engines (`lmdb`, `memory`). Knows nothing of what is stored.
"""
