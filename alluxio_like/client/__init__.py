"""The one client library behind FUSE, CLI and SDK."""

from typing import Any


def connect(master: str = "", **settings: Any) -> Any:
    """A synchronous client of the cluster whose master listens at `master`."""
    raise NotImplementedError
