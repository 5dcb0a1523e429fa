"""A master's metadata as commands open it that need no master: in its home, or in a database; stopped, or while it serves.

Owns how it is found and opened so that nobody else writes it meanwhile, or (`online`) as another process' at this moment. Blocks;
one call a process.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.kv.open import is_shared, open_store
from alluxio_like.master.home import Home


@dataclass(frozen=True, slots=True)
class Metadata:
    """A master's home, or a database, or both: the home of a master whose metadata is in that database."""

    home: Path | None = None
    url: str = ""

    @property
    def directory(self) -> Path | None:
        """Where it lies in the home; of a database the copy of it."""
        return None if self.home is None else self.home / ("mirror" if self.url else "meta")


def find_master_home(home: Path | None) -> Path | None:
    """A master's home; that of `up` has it in it."""
    return home / "master" if home is not None and (home / "master" / "lock").exists() else home


def check_metadata(metadata: Metadata, *, online: bool) -> None:
    """Raises InvalidArgument for what cannot be meant, ConfigError where there is nothing."""
    if metadata.url and not is_shared(metadata.url):
        raise errors.InvalidArgument("--metadata is for a database; of a master's directory give --home")
    if metadata.url and online and metadata.home is None:
        raise errors.InvalidArgument(
            "while the master runs give --home of the master, too: its copy of the database is what is read"
        )
    directory = metadata.directory
    if directory is not None and (online or not metadata.url) and not directory.exists():
        raise errors.ConfigError("there is no metadata: not the home of a master", subject=str(metadata.home))


@contextlib.contextmanager
def open_metadata(metadata: Metadata, *, online: bool, instead: str) -> Iterator[KeyValueStore]:
    """The store. Raises Conflict where a master runs and not `online`; `instead` says what can be done then."""
    with contextlib.ExitStack() as stack:
        store: KeyValueStore
        if online and metadata.directory is not None:
            store = LmdbStore(metadata.directory, read_only=True)
        else:
            if metadata.home is not None:
                stack.callback(_take_home(metadata.home, instead).close)
            if metadata.url:
                mirror = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alluxio-like-mirror-"))) / "mirror"
                store = open_store(metadata.url, mirror=mirror)
            else:
                assert metadata.home is not None
                store = LmdbStore(metadata.home / "meta")
        stack.callback(store.close)
        yield store


def _take_home(home: Path, instead: str) -> Home:
    try:
        return Home.open(home)
    except errors.Conflict as error:
        raise errors.Conflict(f"{error.message}: {instead}", subject=str(home)) from None
