"""The master: namespace, mount table, block map, jobs."""
