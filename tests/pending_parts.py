"""A client's files that the master is yet to hear of, for tests that have none."""

from typing import Any

from alluxio_like.client.pending import PendingFiles


def make_nothing_pending() -> PendingFiles:
    """Nothing was ever delegated to the client."""
    nobody: Any = None
    return PendingFiles(nobody, lambda: False, nobody, nobody, nobody, io_timeout_s=1.0)
