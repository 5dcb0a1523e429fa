"""alluxio_like: a distributed caching file system for AI training.

Importing the package loads nothing heavy: `connect` imports the client when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alluxio_like.client import connect as connect

__version__ = "0.1.0"
__all__ = ["__version__", "connect"]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from alluxio_like.client import connect

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
