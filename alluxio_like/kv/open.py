"""From a URL to a key-value store.

The only place that knows which engines there are. Safe from any thread.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore

_THERE_IS = "there is lmdb:///absolute/directory (on a local disk) and memory://"


def open_store(url: str) -> KeyValueStore:
    """`lmdb:///absolute/directory` (percent-escapes allowed) or `memory://`.

    Raises ConfigError (another URL), Conflict (another process has it open), FormatTooNew, Corrupt, DiskError, NoSpace,
    AccessDenied.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory" and not (parts.netloc or parts.path or parts.query or parts.fragment):
        from alluxio_like.kv.memory import MemoryStore

        return MemoryStore()
    if parts.scheme == "lmdb" and not (parts.netloc or parts.query or parts.fragment) and parts.path.startswith("/"):
        from alluxio_like.kv.lmdb import LmdbStore

        return LmdbStore(Path(unquote(parts.path)))
    raise errors.ConfigError(f"not a metadata store: {url}; {_THERE_IS}", subject=url)
