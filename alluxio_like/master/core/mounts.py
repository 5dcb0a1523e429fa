"""The mount table, and the mount points in the namespace.

Owns which store stands behind which directory, without secrets. Functions over a transaction, like namespace.py.
"""

from collections.abc import Mapping

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core.model import MountRecord
from alluxio_like.types import MountId


def add_mount(
    txn: WriteTransaction,
    path: str,
    uri: str,
    *,
    options: Mapping[str, str],
    read_only: bool,
    uid: int,
    gid: int,
    now_ns: int,
    sync_interval_s: float | None = None,
) -> MountRecord:
    """Mount a store; directories on the way are created. `options` must hold no secrets.

    Raises AlreadyExists (a mount is there), Conflict (mounts are below it), NotADirectory, InvalidArgument.
    """
    raise errors.Internal("not built yet")


def remove_mount(txn: WriteTransaction, path: str, now_ns: int) -> MountRecord:
    """Take a mount away with all that is known below it. Raises NotFound, Conflict (mounts are below it)."""
    raise errors.Internal("not built yet")


def get_mount(txn: ReadTransaction, mount_id: MountId) -> MountRecord:
    """Raises NotFound."""
    raise errors.Internal("not built yet")


def list_mounts(txn: ReadTransaction) -> list[MountRecord]:
    """All mounts, by id."""
    raise errors.Internal("not built yet")


def lookup_mount_of(txn: ReadTransaction, path: str) -> tuple[MountRecord, str] | None:
    """The mount that a path lies in, and the path relative to the mount's root; None: none."""
    raise errors.Internal("not built yet")
