"""Prometheus metrics, each defined here with a sentence, and the HTTP server that shows them.

Owns names, labels and help texts. Services are given a `Metrics` by their app; nothing is registered globally.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.store_requests = Counter(
            "store_requests_total", "Requests sent to a store.", ["op", "mount"], namespace="alluxio_like", registry=self.registry
        )
        self.read_bytes = Counter(
            "read_bytes_total",
            "Bytes given to readers, by where they were: local, peer or store.",
            ["source"],
            namespace="alluxio_like",
            registry=self.registry,
        )
        self.store_latency = Histogram(
            "store_request_seconds",
            "Time from a request to a store to the end of its answer.",
            ["op"],
            namespace="alluxio_like",
            registry=self.registry,
            buckets=_LATENCY_BUCKETS,
        )
        self.cache_used_bytes = Gauge(
            "cache_used_bytes", "Bytes on a cache directory.", ["directory"], namespace="alluxio_like", registry=self.registry
        )
