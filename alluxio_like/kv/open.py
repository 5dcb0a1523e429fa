"""From a URL to a key-value store.

The only place that knows which engines there are. Safe from any thread.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore

_THERE_IS = (
    "there is lmdb:///absolute/directory (on a local disk), postgresql://USER@HOST/DATABASE (as libpq takes it) and memory://"
)


def is_shared(url: str) -> bool:
    """Whether what is in the store outlives this machine, so that another one may go on with it."""
    return urlsplit(url).scheme in ("postgresql", "postgres")


def open_store(
    url: str, *, mirror: Path | None = None, timeout_s: float = 30.0, on_late: Callable[[], object] = lambda: None
) -> KeyValueStore:
    """`lmdb:///absolute/directory` (percent-escapes allowed), `postgresql://…` or `memory://`.

    `mirror` is a local directory for PostgreSQL's reads, `timeout_s` bounds each wait for its server; `on_late` is called (in a
    writer's thread) after a change was taken up that had raised Unavailable. Raises ConfigError (another URL), Conflict (another
    process has it open), FormatTooNew, Corrupt, DiskError, NoSpace, AccessDenied, Unavailable.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory" and not (parts.netloc or parts.path or parts.query or parts.fragment):
        from alluxio_like.kv.memory import MemoryStore

        return MemoryStore()
    if parts.scheme == "lmdb" and not (parts.netloc or parts.query or parts.fragment) and parts.path.startswith("/"):
        from alluxio_like.kv.lmdb import LmdbStore

        return LmdbStore(Path(unquote(parts.path)))
    if is_shared(url):
        from alluxio_like.kv.postgresql import PostgresqlStore

        if mirror is None:
            raise errors.ConfigError("metadata in PostgreSQL needs a local directory for its mirror", subject="postgresql://")
        return PostgresqlStore(url, mirror, timeout_s=timeout_s, on_late=on_late)
    shown = f"{parts.scheme}://…" if parts.password else url
    raise errors.ConfigError(f"not a metadata store: {shown}; {_THERE_IS}", subject=shown)
