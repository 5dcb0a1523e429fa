"""Checks a namespace: names and inodes, and what lies beside them: mounts, the journal, removals, snapshots, results.

Owns the rules between those tables and the namespace, table by table: what each row refers to is there. Names and inodes are in
checking_names.py. Functions over a read transaction, each with one pass over its tables. A new table gets a function here and a
line in `check`. For fsck, and for tests after each step.
"""

import json
from collections.abc import Iterable, Iterator

from alluxio_like import errors
from alluxio_like.findings import REPAIR, RESTORE, Finding, Grade
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import (
    checking_names,
    checking_quotas,
    journal,
    keys,
    mounts,
    namespace,
    paths,
    records,
    snapshots,
    tables,
    trash,
)
from alluxio_like.types import ROOT_INODE, InodeId, Kind, to_str


def check(txn: ReadTransaction) -> Iterator[Finding]:
    """All that does not hold, in one consistent state of the store."""
    if txn.get(records.KEY_RESTORING) is not None:
        yield Finding(Grade.WRONG, "restore", "a restore was not finished", "run `alluxio-like restore` again")
        return
    if tables.lookup_inode(txn, ROOT_INODE) is None or txn.get(records.KEY_ROOT_TABLE) is None:
        yield Finding(Grade.WRONG, "root", "there is no root directory: this is no namespace", RESTORE)
        return
    yield from checking_names.check(txn)
    yield from _check_mounts(txn)
    yield from _check_hashes(txn)
    yield from _check_tombstones(txn)
    yield from _check_orphans(txn)
    yield from _check_names(txn)
    yield from _check_beside(txn)
    yield from _check_journal(txn)
    yield from _check_moves(txn)
    yield from _check_snapshots(txn)
    yield from _check_results(txn)
    yield from checking_quotas.check(txn)
    yield from _check_trash(txn)


def mend(txn: WriteTransaction, findings: Iterable[Finding]) -> int:
    """Write what mends them; of how many. What the writes of one have made true of others is for the next check to say."""
    count = 0
    for finding in findings:
        for key, value in finding.writes:
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, value)
        count += bool(finding.writes)
    return count


def _check_mounts(txn: ReadTransaction) -> Iterator[Finding]:
    known = set()
    for mount in mounts.list_mounts(txn):
        known.add(mount.mount_id)
        root = tables.lookup_inode(txn, mount.root)
        if root is None or not root.flags & records.MOUNT_POINT or root.mount_id != mount.mount_id:
            yield Finding(Grade.WRONG, "mount", f"the mount at {mount.path} has no directory", RESTORE)
            continue
        try:
            found = namespace.get_path(txn, mount.root)
        except errors.NotFound:
            found = "nowhere"
        if found != mount.path:
            yield Finding(Grade.WRONG, "mount", f"the mount at {mount.path} is at {found}", RESTORE)
    next_mount = records.unpack_id(txn.get(records.KEY_NEXT_MOUNT) or b"\1")
    if known and next_mount <= max(known):
        writes = ((records.KEY_NEXT_MOUNT, records.pack_id(max(known) + 1)),)
        yield Finding(Grade.WRONG, "counter", f"the next mount is {next_mount}, and {max(known)} is in use", REPAIR, writes)
    for start, stop in ((b"V", b"W"), (b"G", b"H")):
        for row, _ in txn.scan(start, stop):
            if int.from_bytes(row[1:5], "big") not in known:
                yield Finding(Grade.LEFTOVER, "settings", "settings of a mount that is gone", "", ((row, None),))


def _check_hashes(txn: ReadTransaction) -> Iterator[Finding]:
    """What a name that is shown by a hash is found by. A wrong row is harmless: what it leads to is compared."""
    for row, sort_name in txn.scan(b"H", b"I"):
        table = int.from_bytes(row[1:9], "big")
        if tables.lookup_child(txn, table, sort_name) is None and not _is_removed_table(txn, table):
            yield Finding(Grade.LEFTOVER, "hash", f"a hash of a name that is gone from table {table}", "", ((row, None),))


def _check_tombstones(txn: ReadTransaction) -> Iterator[Finding]:
    sequence = tables.get_sequence(txn)
    for row, data in txn.scan(b"T", b"U"):
        table, number = int.from_bytes(row[1:9], "big"), records.unpack_id(data)
        step = journal.get_burying(number)
        if _is_removed_table(txn, table):
            if tables.lookup_inode(txn, InodeId(table)) is None:
                yield Finding(Grade.LEFTOVER, "buried", f"a removed name of directory {table}, which is gone", "", ((row, None),))
            continue
        shown = f"the removed name {to_str(row[9:])!r} in directory {table}"
        if step is None:
            if number > sequence:
                message = f"{shown} is kept from listings of change {number}, and {sequence} is the last"
                yield Finding(Grade.WRONG, "buried", message, REPAIR, ((row, records.pack_id(sequence)),))
            continue
        found = journal.lookup_step(txn, step)
        if found is None or (found.table, paths.file_name(found.sort_name)) != (table, row[9:]):
            # From now on what the store has of that name is seen again.
            message = f"{shown} waits for step {step} of the journal, which is gone"
            yield Finding(Grade.WRONG, "buried", message, REPAIR, ((row, records.pack_id(sequence)),))


def _is_removed_table(txn: ReadTransaction, table: int) -> bool:
    if table == tables.get_table(txn, ROOT_INODE):
        return False
    record = tables.lookup_inode(txn, InodeId(table))
    return record is None or bool(record.flags & records.ORPHAN)


def _check_orphans(txn: ReadTransaction) -> Iterator[Finding]:
    for row, _ in txn.scan(b"X", b"Y"):
        inode = records.unpack_orphan_key(row)[1]
        record = tables.lookup_inode(txn, inode)
        if record is None:
            yield Finding(Grade.LEFTOVER, "orphan", f"inode {inode} waits to be forgotten, and is gone", "", ((row, None),))
        elif not record.flags & records.ORPHAN:
            message = f"inode {inode} waits to be forgotten, and was not removed"
            yield Finding(Grade.WRONG, "orphan", message, REPAIR, ((row, None),))


def _check_names(txn: ReadTransaction) -> Iterator[Finding]:
    """Further names; that they are names is looked at with the inode."""
    for row, _ in txn.scan(b"N", b"O"):
        inode = InodeId(int.from_bytes(row[1:9], "big"))
        record = tables.lookup_inode(txn, inode)
        if record is None:
            yield Finding(Grade.LEFTOVER, "links", f"a further name of inode {inode}, which is gone", "", ((row, None),))
        elif not record.flags & records.LINKED:
            fixed = records.pack_inode(record._replace(flags=record.flags | records.LINKED))
            message = f"inode {inode} has a further name, and does not say so"
            yield Finding(Grade.WRONG, "links", message, REPAIR, ((records.inode_key(inode), fixed),))


def _check_beside(txn: ReadTransaction) -> Iterator[Finding]:
    """What belongs to an inode and lies in a table of its own."""
    for letter, what in (
        (b"W", "what the store lacks"),
        (b"K", "where the bytes are"),
        (b"Y", "a target"),
        (b"A", "an attribute"),
    ):
        for row, data in txn.scan(letter, bytes([letter[0] + 1])):
            inode = InodeId(int.from_bytes(row[1:9], "big"))
            record = tables.lookup_inode(txn, inode)
            if record is None:
                yield Finding(Grade.LEFTOVER, "beside", f"{what} of inode {inode}, which is gone", "", ((row, None),))
                continue
            message = ""
            try:
                if letter == b"W":
                    records.unpack_dirty(data)
                    if not record.flags & records.LOCAL:
                        message = f"the store has inode {inode}, and is also said to lack it"
                elif letter == b"K":
                    records.unpack_moved(data)
                    if not record.flags & records.MOVED:
                        message = f"inode {inode} does not move, and its bytes are also said to be elsewhere"
                elif letter == b"Y" and record.kind in (Kind.FILE, Kind.DIRECTORY):
                    message = f"inode {inode} is no link, and has a target"
            except (ValueError, TypeError):
                message = f"{what} of inode {inode} cannot be read"
            if message:
                yield Finding(Grade.WRONG, "beside", message, RESTORE)
            elif letter == b"A" and not record.flags & records.XATTRS:
                fixed = records.pack_inode(record._replace(flags=record.flags | records.XATTRS))
                message = f"inode {inode} has an attribute, and does not say so"
                yield Finding(Grade.WRONG, "beside", message, REPAIR, ((records.inode_key(inode), fixed),))


def _check_journal(txn: ReadTransaction) -> Iterator[Finding]:
    last = records.unpack_id(txn.get(records.KEY_JOURNAL) or b"\0")
    known = {mount.mount_id for mount in mounts.list_mounts(txn)}
    highest = 0
    for row, data in txn.scan(b"Q", b"R"):
        number = int.from_bytes(row[1:9], "big")
        highest = max(highest, number)
        try:
            step = journal.lookup_step(txn, number)
        except (ValueError, TypeError, KeyError):
            yield Finding(Grade.WRONG, "journal", f"step {number} of the journal cannot be read: {data!r}", RESTORE)
            continue
        assert step is not None
        if step.mount_id not in known:
            message = f"step {number} of the journal is for mount {step.mount_id}, which is gone"
            yield Finding(Grade.WRONG, "journal", message, REPAIR, ((row, None),))
            continue
        missing = [key for key in journal.list_index_keys(step) if txn.get(key) is None]
        if missing:
            writes = tuple((key, b"") for key in missing)
            yield Finding(Grade.WRONG, "journal", f"step {number} of the journal cannot be found", REPAIR, writes)
    if highest > last:
        writes = ((records.KEY_JOURNAL, records.pack_id(highest)),)
        yield Finding(Grade.WRONG, "counter", f"the last step is {last}, and there is {highest}", REPAIR, writes)
    for start, stop in ((b"J", b"K"), (b"L", b"M")):
        for row, _ in txn.scan(start, stop):
            step = journal.lookup_step(txn, int.from_bytes(row[-8:], "big"))
            if step is None or row not in journal.list_index_keys(step):
                yield Finding(Grade.WRONG, "journal", "a key waits for a step that is gone", REPAIR, ((row, None),))


def _check_moves(txn: ReadTransaction) -> Iterator[Finding]:
    """What moves is brought there by a step of the journal."""
    for row, _ in txn.scan(b"K", b"L"):
        inode = InodeId(int.from_bytes(row[1:9], "big"))
        record = tables.lookup_inode(txn, inode)
        if record is None or not record.flags & records.MOVED or record.flags & records.ORPHAN:
            continue
        if not journal.has_steps(txn, record.mount_id) and txn.get(records.mount_key(record.mount_id)) is None:
            continue  # of a mount that is gone, and below a directory that was removed with it
        moved = keys.get_moved(txn, inode)
        try:
            journal.get_settling(txn, record.mount_id, inode, moved.key)
        except errors.Internal:
            message = f"inode {inode} moves from {moved.key!r}, and no step of the journal moves it"
            yield Finding(Grade.WRONG, "moves", message, RESTORE)


def _check_snapshots(txn: ReadTransaction) -> Iterator[Finding]:
    known = snapshots.list_all(txn)
    marks = snapshots.get_marks(txn)
    newest = max((one.number for one in known if not one.deleted), default=0)
    if marks.newest != newest or marks.last < max((one.number for one in known), default=0):
        message = f"changes are kept for snapshot {marks.newest} (last: {marks.last}), and {newest} is the newest"
        yield Finding(Grade.WRONG, "snapshots", message, "delete the snapshots from that number on, and make them again")
    numbers = {one.number for one in known}
    for row, value in txn.scan(b"U", b"V"):
        try:
            number, key, is_placed = snapshots.read_kept(row, value)
        except (ValueError, IndexError):
            yield Finding(Grade.WRONG, "snapshots", f"a kept row cannot be read: {row.hex()}", RESTORE)
            continue
        if not is_placed:
            yield Finding(Grade.WRONG, "snapshots", f"what was kept of {key.hex()} lies where nothing looks for it", RESTORE)
        elif number not in numbers:
            yield Finding(Grade.WRONG, "snapshots", f"something is kept for snapshot {number}, which is gone", RESTORE)
    for snapshot in known:
        if snapshot.deleted:
            continue
        view = snapshots.View(txn, snapshot.number)
        root = tables.lookup_inode(view, snapshot.root)
        if root is None:
            yield Finding(Grade.WRONG, "snapshots", f"snapshot {snapshot.name} has no directory", "delete it")
            continue
        for finding in checking_names.check_tree(view, snapshot.root):
            # What is wrong now is told already; nothing of the past can be mended.
            message = f"in snapshot {snapshot.name}: {finding.message}"
            yield Finding(finding.grade, f"snapshot-{finding.rule}", message, "delete the snapshot if it is not needed")


def _check_results(txn: ReadTransaction) -> Iterator[Finding]:
    """Results of operations, and when they may go; and what was kept beside a foreign content."""
    for row, _ in txn.scan(b"P", b"Q"):
        if txn.get(b"O" + row[9:]) is None:
            yield Finding(Grade.LEFTOVER, "results", "a result that is gone waits to go", "", ((row, None),))
    for row, data in txn.scan(b"O", b"P"):
        if txn.get(b"P" + data[:8] + row[1:]) is None:
            writes = ((b"P" + data[:8] + row[1:], b""),)
            yield Finding(Grade.WRONG, "results", "a result of an operation never goes", REPAIR, writes)
    for row, data in txn.scan(b"E", b"F"):
        try:
            json.loads(data)
        except ValueError:
            yield Finding(Grade.WRONG, "conflicts", f"a conflict's record cannot be read: {data!r}", REPAIR, ((row, None),))


def _check_trash(txn: ReadTransaction) -> Iterator[Finding]:
    for row, data in txn.scan(b"tm", b"tn"):
        record = tables.lookup_inode(txn, InodeId(records.unpack_id(data)))
        if record is None or not record.flags & records.HIDDEN:
            yield Finding(
                Grade.WRONG, "trash", "the trash of a mount has no directory", "turn it off and on again", ((row, None),)
            )
    for row, _ in txn.scan(b"tx", b"ty"):
        if trash.lookup_thrown(txn, InodeId(int.from_bytes(row[-8:], "big"))) is None:
            yield Finding(Grade.LEFTOVER, "trash", "something that is gone waits to go from the trash", "", ((row, None),))
    for one in trash.iter_thrown(txn):
        row = records.expiry_key(one.expires_ns, one.inode)
        if txn.get(row) is None:
            yield Finding(Grade.WRONG, "trash", f"inode {one.inode} never goes from the trash", REPAIR, ((row, b""),))
