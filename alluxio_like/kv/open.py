"""From a URL to a key-value store.

The only place that knows which engines there are.
"""

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore


def open_store(url: str) -> KeyValueStore:
    """`lmdb:///absolute/directory` or `memory://`.

    Raises ConfigError (another URL), Conflict (another process has it open), FormatTooNew, DiskError, NoSpace.
    """
    raise errors.Internal("not built yet")
