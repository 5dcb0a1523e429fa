"""A real Kubernetes on one machine, and the chart in it."""
