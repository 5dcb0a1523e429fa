"""Benchmarks: ratios within one run on one machine, never timed tests. `make bench` runs them; see bench/README.md."""
