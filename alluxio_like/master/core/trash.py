"""The trash: where removed files are kept for a while, for what lies below which directories, and until when.

Owns the settings of directories, the one directory of each mount that takes what is removed there, and the record of each thing
in it: where it was, and when it goes. The directory lies in its mount's root and has no entry there, so it is found by its name,
and by nothing that lists, walks or loads. What is thrown away moves there like anything that is renamed (changes.py); taking it
out again and ending it is emptying.py's. Functions over a transaction.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import paths, records, tables
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.records import Inode
from alluxio_like.types import ROOT_INODE, InodeId, MountId, to_bytes, to_str

NAME = b".trash"
_KEPT_NAME_BYTES = 200


class Setting(NamedTuple):
    """How long what is removed below a directory is kept."""

    directory: InodeId
    keep_ns: int


class Bin(NamedTuple):
    """What takes something that is removed: the directory, and until when."""

    directory: InodeId
    keep_ns: int


class Thrown(NamedTuple):
    """Something in the trash: its path before, and when it was removed and goes."""

    inode: InodeId
    path: str
    removed_ns: int
    expires_ns: int


def set_keep(txn: WriteTransaction, directory: InodeId, keep_ns: int) -> None:
    """Keep what is removed below a directory, from now on. Raises InvalidArgument."""
    if keep_ns <= 0:
        raise errors.InvalidArgument("the trash keeps things for some time: name one, such as 7d")
    txn.put(records.trash_setting_key(directory), json.dumps([keep_ns]).encode())
    txn.put(records.KEY_TRASH, b"")


def clear_keep(txn: WriteTransaction, directory: InodeId) -> bool:
    """Let what holds above a directory hold there too; whether it had a setting. What is in the trash stays until its time."""
    return txn.delete(records.trash_setting_key(directory))


def list_settings(txn: ReadTransaction) -> list[Setting]:
    """Those of all directories, also of some that were removed and are not forgotten yet."""
    found = txn.scan(records.trash_setting_key(0), records.trash_setting_key(1 << 63))
    return [Setting(InodeId(int.from_bytes(key[2:], "big")), json.loads(data)[0]) for key, data in found]


def lookup_directory(txn: ReadTransaction, mount_id: MountId) -> InodeId | None:
    """The directory that takes what is removed in a mount, once there was a setting."""
    data = txn.get(records.trash_directory_key(mount_id))
    return None if data is None else InodeId(records.unpack_id(data))


def lookup_hidden(txn: ReadTransaction, parent: InodeId, name: bytes) -> tuple[InodeId, Inode] | None:
    """The directory that no listing shows, if a name in a directory is its."""
    if name != NAME or txn.get(records.KEY_TRASH) is None:
        return None
    record = tables.lookup_inode(txn, parent)
    if record is None or not record.flags & records.MOUNT_POINT:
        return None
    inode = lookup_directory(txn, record.mount_id)
    return None if inode is None else (inode, tables.get_inode(txn, inode))


def find_bin(txn: ReadTransaction, directory: InodeId) -> Bin | None:
    """What takes a file that is removed from a directory: by the nearest setting at or above it. None: it is removed for good."""
    if txn.get(records.KEY_TRASH) is None:
        return None
    at, keep_ns = directory, None
    mount_id = tables.get_inode(txn, directory).mount_id
    while mount_id != NO_MOUNT:
        record = tables.get_inode(txn, at)
        if record.flags & (records.HIDDEN | records.ORPHAN):
            return None
        data = txn.get(records.trash_setting_key(at)) if keep_ns is None else None
        if data is not None:
            keep_ns = json.loads(data)[0]
        if at == ROOT_INODE:
            break
        at = record.parent
    target = lookup_directory(txn, mount_id) if keep_ns is not None else None
    return None if target is None or keep_ns is None else Bin(target, keep_ns)


def make_name(sequence: int, name: bytes) -> bytes:
    """A name in the trash, which nothing else has there."""
    head = b"%x-" % sequence
    made = head + name[:_KEPT_NAME_BYTES].decode("utf-8", "ignore").encode()
    return head + b"file" if paths.is_odd(made) or len(name) > paths.NAME_MAX_BYTES else made


def note_thrown(txn: WriteTransaction, thrown: Thrown) -> None:
    """Remember where something was, and when it goes."""
    forget_thrown(txn, thrown.inode)
    fields = [to_bytes(thrown.path).hex(), thrown.removed_ns, thrown.expires_ns]
    txn.put(records.thrown_key(thrown.inode), json.dumps(fields).encode())
    txn.put(records.expiry_key(thrown.expires_ns, thrown.inode), b"")


def forget_thrown(txn: WriteTransaction, inode: InodeId) -> None:
    """Something is not in the trash any more."""
    thrown = lookup_thrown(txn, inode)
    if thrown is not None:
        txn.delete(records.expiry_key(thrown.expires_ns, inode))
        txn.delete(records.thrown_key(inode))


def lookup_thrown(txn: ReadTransaction, inode: InodeId) -> Thrown | None:
    data = txn.get(records.thrown_key(inode))
    return None if data is None else _unpack(inode, data)


def iter_thrown(txn: ReadTransaction) -> Iterator[Thrown]:
    """All that was ever thrown away and not taken out by a command, in the order of inodes; see `is_there`."""
    for key, data in txn.scan(records.thrown_key(0), records.thrown_key(1 << 63)):
        yield _unpack(InodeId(int.from_bytes(key[2:], "big")), data)


def list_expired(txn: ReadTransaction, now_ns: int, limit: int) -> list[InodeId]:
    """What is to go by now, the oldest first."""
    found = txn.scan(records.expiry_key(0, 0), records.expiry_key(now_ns, 0), limit=limit)
    return [InodeId(int.from_bytes(key[-8:], "big")) for key, _ in found]


def is_there(txn: ReadTransaction, inode: InodeId) -> bool:
    """Whether something is still in the trash: it may have been moved out or removed like any file."""
    record = tables.lookup_inode(txn, inode)
    return record is not None and not record.flags & records.ORPHAN and record.parent == lookup_directory(txn, record.mount_id)


def _unpack(inode: InodeId, data: bytes) -> Thrown:
    path, removed_ns, expires_ns = json.loads(data)
    return Thrown(inode, to_str(bytes.fromhex(path)), removed_ns, expires_ns)
