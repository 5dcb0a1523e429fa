"""The worker: one per node, cache files and how they are filled."""
