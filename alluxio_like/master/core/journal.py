"""The journal: what is still to be done at the stores, so that they follow the namespace.

Owns the steps and their order. A step is written in the transaction of the change that needs it, and removed in the one that
records its outcome; what was begun and not recorded is done again, so carrying out a step twice must do no harm. Does not carry
them out nor decide what a change needs (changes.py, following.py). Functions over a transaction.

Order: steps are numbered. A step waits for every earlier one that touches one of its keys, and one that writes a key also waits
for whatever still has its bytes there, earlier or not: those would be overwritten. The removal of a directory waits for all
earlier steps of its mount: some of them may be below it.
"""

import json
from collections.abc import Iterator
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction, get_prefix_stop
from alluxio_like.master.core import paths, records
from alluxio_like.types import Fingerprint, InodeId, MountId, to_bytes, to_str

_BURIED = 1 << 63
"""Of a tombstone for which the store has not followed: above any listing's number. Below it is the number of the step."""


class Op(StrEnum):
    """What is to be done at the store."""

    DELETE = "delete"
    """Remove the object at `key`, if it is still the content `expected`."""
    SETTLE = "settle"
    """Bring the bytes of `inode`, which are at `key`, to the key where they belong."""
    MAKE_DIRECTORY = "make_directory"
    """Make the directory `inode`, whose prefix is `key`."""
    REMOVE_DIRECTORY = "remove_directory"
    """Remove the directory, or the marker, of prefix `key`."""


class Step(NamedTuple):
    """One thing to do. `table` and `sort_name` say where the name is buried that must not come back before it is done (0:
    none). `tried`: a key to which a file's bytes may have been brought already, in place of `base`, by a try whose outcome is not
    known."""

    number: int
    op: Op
    mount_id: MountId
    inode: InodeId
    key: str
    expected: Fingerprint | None = None
    table: int = 0
    sort_name: bytes = b""
    tried: str = ""
    base: Fingerprint | None = None


def append(txn: WriteTransaction, step: Step) -> Step:
    """Add a step at the end; the step with its number."""
    data = txn.get(records.KEY_JOURNAL)
    step = step._replace(number=records.unpack_id(data) + 1 if data is not None else 1)
    txn.put(records.KEY_JOURNAL, records.pack_id(step.number))
    restore(txn, step)
    return step


def append_buried(txn: WriteTransaction, step: Step, table: int, sort_name: bytes) -> None:
    """Add a step, and let no listing bring that name back before it is done."""
    bury(txn, append(txn, step._replace(table=table, sort_name=sort_name)))


def restore(txn: WriteTransaction, step: Step) -> None:
    """Put a step at its number, where none is."""
    txn.put(records.journal_key(step.number), _pack(step))
    for key in list_index_keys(step):
        txn.put(key, b"")


def list_index_keys(step: Step) -> list[bytes]:
    """The rows, beside its own, by which a step is found."""
    touched = (step.key, step.tried) if step.tried else (step.key,)
    keys = dict.fromkeys(_touch_key(step.mount_id, key, step.number) for key in touched)
    return [*keys, records.directory_step_key(step.number)] if _moves_directory(step) else list(keys)


def note_tried(txn: WriteTransaction, step: Step, tried: str, base: Fingerprint | None) -> Step:
    """Remember what is about to be tried, or (empty) that its outcome is known; the step as it is then."""
    remove(txn, step)
    step = step._replace(tried=tried, base=base)
    restore(txn, step)
    return step


def replace(txn: WriteTransaction, step: Step) -> None:
    """Write another step in the place of the one with its number and keys."""
    txn.put(records.journal_key(step.number), _pack(step))


def requeue(txn: WriteTransaction, step: Step, op: Op) -> None:
    """Have something else done at a step's key, after all that is to be done by now; its name stays buried."""
    remove(txn, step)
    step = append(txn, step._replace(op=op, expected=None))
    if step.table:
        bury(txn, step)


def disarm(key: bytes, data: bytes) -> bytes:
    """A step's record without what it was to remove: that may be another content by now."""
    step = _unpack(int.from_bytes(key[1:9], "big"), data)
    return _pack(step._replace(expected=None)) if step.op is Op.DELETE else data


def remove(txn: WriteTransaction, step: Step) -> bool:
    """Take a step out; whether it was there."""
    for key in list_index_keys(step):
        txn.delete(key)
    return txn.delete(records.journal_key(step.number))


def bury(txn: WriteTransaction, step: Step) -> None:
    """Let no listing bring a step's name back before it is done."""
    key = records.tombstone_key(step.table, paths.file_name(step.sort_name))
    txn.put(key, records.pack_id(_BURIED | step.number))


def get_burying(number: int) -> int | None:
    """Of a tombstone's number that of the step for which the store has not followed; None: it has."""
    return number & ~_BURIED if number & _BURIED else None


def unbury(txn: WriteTransaction, step: Step, sequence: int) -> None:
    """A step is done: only listings that began before this change can bring its name back now."""
    if step.table:
        key = records.tombstone_key(step.table, paths.file_name(step.sort_name))
        # Another number is that of a later step, which keeps it.
        if txn.get(key) == records.pack_id(_BURIED | step.number):
            txn.put(key, records.pack_id(sequence))


def lookup_step(txn: ReadTransaction, number: int) -> Step | None:
    data = txn.get(records.journal_key(number))
    return _unpack(number, data) if data is not None else None


def list_steps(txn: ReadTransaction, after: int = 0, limit: int = 1000) -> list[Step]:
    """Steps with numbers above `after`, in order."""
    found = txn.scan(records.journal_key(after + 1), b"R", limit=limit)
    return [_unpack(int.from_bytes(key[1:9], "big"), data) for key, data in found]


def iter_steps(txn: ReadTransaction) -> Iterator[Step]:
    """All steps, in order."""
    for key, data in txn.scan(b"Q", b"R"):
        yield _unpack(int.from_bytes(key[1:9], "big"), data)


def iter_directory_moves(txn: ReadTransaction) -> Iterator[Step]:
    """The steps that move directories, in order."""
    for key, _ in txn.scan(b"L", b"M"):
        step = lookup_step(txn, int.from_bytes(key[1:9], "big"))
        if step is not None:
            yield step


def is_empty(txn: ReadTransaction) -> bool:
    return next(iter(txn.scan(b"Q", b"R", limit=1)), None) is None


def has_steps(txn: ReadTransaction, mount_id: MountId) -> bool:
    """Whether a mount's store has anything to follow."""
    prefix = b"J" + mount_id.to_bytes(4, "big")
    return next(iter(txn.scan(prefix, get_prefix_stop(prefix), limit=1)), None) is not None


def drop_mount(txn: WriteTransaction, mount_id: MountId) -> None:
    """Forget what the store of a mount that is gone was to follow."""
    prefix = b"J" + mount_id.to_bytes(4, "big")
    for key, _ in txn.scan(prefix, get_prefix_stop(prefix)):
        txn.delete(records.journal_key(int.from_bytes(key[-8:], "big")))
        txn.delete(key)


def iter_touching(txn: ReadTransaction, mount_id: MountId, key: str) -> Iterator[int]:
    """Numbers of the steps that touch a key, in order."""
    prefix = _touch_key(mount_id, key, None)
    for found, _ in txn.scan(prefix, get_prefix_stop(prefix)):
        yield int.from_bytes(found[-8:], "big")


def iter_at(txn: ReadTransaction, mount_id: MountId, key: str) -> Iterator[Step]:
    """The steps that have this key, in order."""
    for number in list(iter_touching(txn, mount_id, key)):
        step = lookup_step(txn, number)
        if step is not None and step.key.rstrip("/") == key.rstrip("/"):
            yield step


def get_settling(txn: ReadTransaction, mount_id: MountId, inode: InodeId, key: str) -> Step:
    """The step that is to bring an inode's bytes from `key`; each inode that moves has one."""
    for step in iter_at(txn, mount_id, key):
        if step.op is Op.SETTLE and step.inode == inode:
            return step
    raise errors.Internal("what has moved has no step in the journal", subject=key)


def get_blockers(txn: ReadTransaction, step: Step, writes: str | None = None) -> list[int]:
    """Numbers of the steps that must be done before this one; `writes`: the key at which it puts something."""
    blockers = {number for number in iter_touching(txn, step.mount_id, step.key) if number < step.number}
    if writes is not None:
        for number in iter_touching(txn, step.mount_id, writes):
            other = lookup_step(txn, number)
            if other is None or number == step.number:
                continue
            if number < step.number or other.op is Op.SETTLE or other.expected is not None or other.tried:
                blockers.add(number)
    return sorted(blockers)


def is_free(txn: ReadTransaction, mount_id: MountId, key: str) -> bool:
    """Whether something may be written at a key: no step still needs what is there, or will remove it."""
    return next(iter_touching(txn, mount_id, key), None) is None


def _moves_directory(step: Step) -> bool:
    return step.op is Op.SETTLE and step.key.endswith("/")


def _touch_key(mount_id: MountId, key: str, number: int | None) -> bytes:
    # "dir/" and "dir" are one place: a store with directories has one name for both.
    place = blake2b(to_bytes(key.rstrip("/")), digest_size=16).digest()
    return b"J" + mount_id.to_bytes(4, "big") + place + (number.to_bytes(8, "big") if number is not None else b"")


def _pack(step: Step) -> bytes:
    expected, base = (records.list_fingerprint(one) for one in (step.expected, step.base))
    key, tried = (to_bytes(one).hex() for one in (step.key, step.tried))
    more = [tried, base] if tried else []
    return json.dumps([step.op, step.mount_id, step.inode, key, expected, step.table, step.sort_name.hex(), *more]).encode()


def _unpack(number: int, data: bytes) -> Step:
    op, mount_id, inode, key, expected, table, sort_name, *more = json.loads(data)
    tried, base = more or ("", None)
    return Step(
        number,
        Op(op),
        MountId(mount_id),
        InodeId(inode),
        to_str(bytes.fromhex(key)),
        records.make_fingerprint(expected),
        table,
        bytes.fromhex(sort_name),
        to_str(bytes.fromhex(tried)),
        records.make_fingerprint(base),
    )
