"""The namespace's tables: how inodes and dentries are read, and the only ways in which they change.

Owns the rules that hold between records: every child is counted in its directory's state and in the totals, a file beside a
directory of the same name is counted as shadowed, a removed inode is an orphan and queued as such, each change carries a new
sequence number, an inode id is given once. Which changes to make is decided elsewhere (refresh.py, mounts.py). Rule of
concurrency: that of the transaction; of an `Edit`, one at a time in a transaction.
"""

from collections.abc import Sequence

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import paths, records, usage
from alluxio_like.master.core.model import NO_MOUNT, Totals
from alluxio_like.master.core.records import Dirty, Inode, NewFile, State
from alluxio_like.types import ROOT_INODE, InodeId, Kind, MountId, VersionId

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
_PENDING_SCANNED = 10_000
"""More than so many are not looked through: then a directory counts as having some below it."""


def lookup_inode(txn: ReadTransaction, inode: InodeId) -> Inode | None:
    """An inode's record."""
    data = txn.get(records.inode_key(inode))
    return records.unpack_inode(data) if data is not None else None


def get_inode(txn: ReadTransaction, inode: InodeId) -> Inode:
    """An inode's record; raises NotFound."""
    record = lookup_inode(txn, inode)
    if record is None:
        raise errors.NotFound("no such inode", subject=str(inode))
    return record


def get_directory(txn: ReadTransaction, inode: InodeId) -> Inode:
    """A directory's record; raises NotFound (also when it was removed), NotADirectory."""
    record = get_inode(txn, inode)
    if record.kind is not Kind.DIRECTORY:
        raise errors.NotADirectory("not a directory", subject=str(inode))
    if record.flags & records.ORPHAN:
        raise errors.NotFound("the directory was removed", subject=str(inode))
    return record


def get_table(txn: ReadTransaction, directory: InodeId) -> int:
    """Where a directory's children are filed: under its id. Only the root's table changes, so that all below it can be dropped at
    once when what is mounted there is unmounted."""
    if directory != ROOT_INODE:
        return directory
    data = txn.get(records.KEY_ROOT_TABLE)
    if data is None:
        raise errors.Internal("the namespace was not prepared")
    return records.unpack_id(data)


def lookup_child(txn: ReadTransaction, table: int, sort_name: bytes) -> InodeId | None:
    """The child with this sort name."""
    data = txn.get(records.dentry_key(table, paths.file_name(sort_name)))
    return InodeId(records.unpack_id(data)) if data is not None else None


def get_state(txn: ReadTransaction, table: int) -> State:
    """A directory's state; the empty one if it was never listed and has no children."""
    return records.unpack_state(txn.get(records.state_key(table)))


def get_device(txn: ReadTransaction, inode: InodeId, record: Inode) -> int:
    """The device number of a special file; 0 for anything else."""
    if record.kind not in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE):
        return 0
    return records.unpack_id(txn.get(records.target_key(inode)) or b"")


def get_dirty(txn: ReadTransaction, inode: InodeId) -> Dirty:
    """What is known of an inode that the store does not have as it is here."""
    data = txn.get(records.dirty_key(inode))
    return records.unpack_dirty(data) if data is not None else Dirty()


def rename_record(record: Inode, directory: InodeId, filed: bytes) -> Inode:
    """A record as one of the names of its inode has it: the dentry filed like this in a directory."""
    if record.parent == directory and paths.file_name(record.sort_name) == filed:
        return record
    return record._replace(parent=directory, name=filed)


def has_pending_below(txn: ReadTransaction, directory: InodeId) -> bool:
    """Whether anything at or below a directory is not at the store as it is here, and would be lost with it."""
    scanned = 0
    for prefix, stop in ((b"W", b"X"), (b"K", b"L"), (b"N", b"O")):
        for key, data in txn.scan(prefix, stop, limit=_PENDING_SCANNED + 1):
            scanned += 1
            if scanned > _PENDING_SCANNED or is_below(txn, InodeId(int.from_bytes(key[1:9], "big")), directory):
                return True
            if prefix == b"N" and is_below(txn, records.unpack_name(data)[0], directory):
                return True
    return False


def is_below(txn: ReadTransaction, inode: InodeId, directory: InodeId) -> bool:
    """Whether an inode is a directory, or anywhere below it; an orphan is not."""
    at = inode
    while at not in (directory, ROOT_INODE):
        record = lookup_inode(txn, at)
        if record is None or record.flags & records.ORPHAN:
            return False
        at = record.parent
    return at == directory


def get_sequence(txn: ReadTransaction) -> int:
    """The number of the newest change."""
    data = txn.get(records.KEY_SEQUENCE)
    return records.unpack_id(data) if data is not None else 0


_UNNAMED_NS = 3600 * 10**9
"""Files without a name are said to be removed at the end of an hour, so that what says so is found again by their inode alone."""
_LIKELY = 4


_CLOCK_NS = 24 * 3600 * 1_000_000_000
"""Clocks are set back by less than this (a guess)."""


class Directory:
    """A directory whose children are being changed: its record, its table and the counts, written by `Edit.finish`."""

    __slots__ = ("inode", "record", "state", "stored_record", "stored_state", "table")

    def __init__(self, txn: ReadTransaction, inode: InodeId, record: Inode) -> None:
        self.inode = inode
        self.record = self.stored_record = record
        self.table = get_table(txn, inode)
        self.state = self.stored_state = get_state(txn, self.table)

    def set_changed(self, now_ns: int) -> None:
        """Its children changed now. A clock that is set back takes no directory's times back, but what somebody has set to be
        in the future ends; times that come from the store stay as they are."""
        if not self.record.flags & records.STORE_TIMES:
            if self.record.mtime_ns - now_ns < _CLOCK_NS:
                now_ns = max(now_ns, self.record.mtime_ns + 1)
            self.record = self.record._replace(mtime_ns=now_ns, ctime_ns=now_ns)

    def note_changed(self, then_ns: int) -> None:
        """Its children were changed at a time that somebody was shown already: its times go there, or stay where they are if that
        is earlier."""
        record = self.record
        if not record.flags & records.STORE_TIMES:
            self.record = record._replace(mtime_ns=max(record.mtime_ns, then_ns), ctime_ns=max(record.ctime_ns, then_ns))


class Edit:
    """Changes made together at one time, under one sequence number. `finish` writes what was counted; without it all is lost."""

    def __init__(self, txn: WriteTransaction, now_ns: int) -> None:
        self.txn = txn
        self.now_ns = now_ns
        self._sequence = 0
        self._next_inode = 0
        self._files = self._directories = self._bytes = self._odd = self._orphans = 0
        self._open: dict[InodeId, Directory] = {}
        self._tally = usage.Tally(txn)
        self.grown: list[usage.Growth] = []
        """What `finish` has found to be more than before, of what is counted."""

    @property
    def sequence(self) -> int:
        """The number of this change, drawn when it is first asked for."""
        if not self._sequence:
            self._sequence = get_sequence(self.txn) + 1
        return self._sequence

    def open_directory(self, inode: InodeId) -> Directory:
        """A directory to be changed; raises NotFound, NotADirectory."""
        if inode not in self._open:
            self._open[inode] = Directory(self.txn, inode, get_directory(self.txn, inode))
        return self._open[inode]

    def new_inode_id(self) -> InodeId:
        """An id never given before."""
        if not self._next_inode:
            self._next_inode = get_next_inode(self.txn)
        self._next_inode += 1
        return InodeId(self._next_inode - 1)

    def link(self, directory: Directory, record: Inode, reserved: InodeId | None = None) -> InodeId:
        """Add a child that is not there yet; `parent` and `sequence` of the record are set here. `reserved`: its id, by
        `reserve_inodes`."""
        inode = self.new_inode_id() if reserved is None else reserved
        record = self._complete(directory, record)
        self.txn.put(records.inode_key(inode), records.pack_inode(record))
        self.attach(directory, inode, record)
        self._count_totals(record, 1)
        if record.kind is Kind.DIRECTORY:
            self._tally.begin_new(directory.inode, inode)
        self._tally.add(inode, record)
        return inode

    def link_hidden(self, directory: Directory, record: Inode) -> InodeId:
        """`link` for a child that no listing shows: it has no entry in the directory, and counts nowhere but in the totals."""
        inode = self.new_inode_id()
        record = self._complete(directory, record)
        self.txn.put(records.inode_key(inode), records.pack_inode(record))
        self._count_totals(record, 1)
        return inode

    def make_unnamed(self, directory: Directory, record: Inode) -> InodeId:
        """An inode that has no name yet: an orphan, until `name` gives it one."""
        inode = self.new_inode_id()
        self.abandon(inode, self._complete(directory, record), removed_ns=(self.now_ns // _UNNAMED_NS + 1) * _UNNAMED_NS)
        return inode

    def name(self, directory: Directory, inode: InodeId, record: Inode) -> None:
        """Give what `make_unnamed` made its first name."""
        self._forget_unnamed(inode)
        record = self._complete(directory, record._replace(flags=record.flags & ~records.ORPHAN))
        self.txn.put(records.inode_key(inode), records.pack_inode(record))
        self.attach(directory, inode, record)
        self._orphans -= 1
        self._count_totals(record, 1)
        self._tally.add(inode, record)

    def _forget_unnamed(self, inode: InodeId) -> None:
        newest = self.now_ns // _UNNAMED_NS + 1
        likely = (records.orphan_key((newest - back) * _UNNAMED_NS, inode) for back in range(_LIKELY))
        row = next((row for row in likely if self.txn.get(row) is not None), None)
        if row is None:
            # The clock was set, or nothing was purged for long.
            rows = (row for row, _ in self.txn.scan(b"X", b"Y"))
            row = next((row for row in rows if records.unpack_orphan_key(row)[1] == inode), None)
        if row is not None:
            self.txn.delete(row)

    def link_files(self, directory: Directory, common: Inode, files: Sequence[NewFile]) -> range:
        """`link` for many new files at once, whose ids are the range returned: a third of the time.

        `common` is what all of them share. Only for names that are shown as they are, in a directory without directories, so
        that none is shadowed.
        """
        count = len(files)
        first = self.new_inode_id()
        self._next_inode = first + count
        common = self._complete(directory, common)
        pack, filed = records.make_file_packer(common), records.dentry_key(directory.table, b"")
        ids = range(first, first + count)
        self.txn.put_many([(records.inode_key(inode), pack(file)) for inode, file in zip(ids, files, strict=True)])
        self.txn.put_many([(filed + file[0], records.pack_id(inode)) for inode, file in zip(ids, files, strict=True)])
        directory.state = directory.state._replace(files=directory.state.files + count)
        self._tally.add_files(directory.inode, files)
        self._files += count
        self._bytes += sum([file[1] for file in files])
        return ids

    def unlink(self, directory: Directory, inode: InodeId, record: Inode) -> None:
        """Remove a child; its inode, with all below it, becomes an orphan."""
        self.detach(directory, record)
        self._count_totals(record, -1)
        self._tally.take(inode, record)
        self.abandon(inode, record)

    def attach(self, directory: Directory, inode: InodeId, named: Inode) -> None:
        """Add a name of an inode that is there; `named` is its record with that name. Its record stays as it is."""
        self.txn.put(records.dentry_key(directory.table, paths.file_name(named.sort_name)), records.pack_id(inode))
        if paths.needs_index(named.name):
            shown_hash = paths.get_shown_hash(named.name, named.kind)
            self.txn.put(records.hash_key(directory.table, shown_hash), named.sort_name)
        self._count(directory, named, 1)

    def detach(self, directory: Directory, named: Inode) -> None:
        """Take a name away, and nothing else."""
        # No record has this change's number, but who compares numbers must see that something has changed.
        self._sequence = self.sequence
        self.txn.delete(records.dentry_key(directory.table, paths.file_name(named.sort_name)))
        if paths.needs_index(named.name):
            self.txn.delete(records.hash_key(directory.table, paths.get_shown_hash(named.name, named.kind)))
        self._count(directory, named, -1)

    def bury(self, directory: Directory, sort_name: bytes) -> None:
        """Remember a removal of ours, so that a listing that began before does not bring the name back."""
        self.txn.put(records.tombstone_key(directory.table, paths.file_name(sort_name)), records.pack_id(self.sequence))

    def replace(self, directory: Directory, inode: InodeId, old: Inode, new: Inode) -> InodeId:
        """Another content under the same name: a new inode; the old one becomes an orphan."""
        fresh = self.new_inode_id()
        self.txn.put(records.inode_key(fresh), records.pack_inode(self._complete(directory, new)))
        self.txn.put(records.dentry_key(directory.table, paths.file_name(new.sort_name)), records.pack_id(fresh))
        self._bytes += new.size - old.size
        self._tally.take(inode, old)
        self._tally.add(fresh, new)
        self.abandon(inode, old)
        return fresh

    def change(self, inode: InodeId, old: Inode, new: Inode) -> Inode:
        """Write another record of an inode in place, under this change's number; the record as written."""
        new = new._replace(sequence=self.sequence)
        if new.kind is not Kind.DIRECTORY:
            self._bytes += new.size - old.size
        self._tally.change(inode, old, new)
        self.update(inode, new)
        return new

    def update(self, inode: InodeId, record: Inode) -> None:
        """Write an inode's record in place."""
        if inode in self._open:
            self._open[inode].record = record
        else:
            self.txn.put(records.inode_key(inode), records.pack_inode(record))

    def abandon(self, inode: InodeId, record: Inode, *, removed_ns: int | None = None) -> None:
        """Make an inode that no name leads to an orphan, as of `removed_ns` (None: now)."""
        self._open.pop(inode, None)
        self.txn.put(records.inode_key(inode), records.pack_inode(record._replace(flags=record.flags | records.ORPHAN, nlink=0)))
        self.txn.put(records.orphan_key(self.now_ns if removed_ns is None else removed_ns, inode), b"")
        self._orphans += 1

    def forget(self, inode: InodeId, record: Inode, *, was_orphan: bool) -> None:
        """Remove an inode's record for good."""
        self.txn.delete(records.inode_key(inode))
        if record.flags & (records.LOCAL | records.MOVED):
            self.txn.delete(records.dirty_key(inode))
            self.txn.delete(records.moved_key(inode))
            self.txn.delete(records.conflict_key(inode))
        if record.kind not in (Kind.FILE, Kind.DIRECTORY):
            self.txn.delete(records.target_key(inode))
        if record.flags & records.XATTRS:
            for key, _ in self.txn.scan(records.xattr_key(inode, b""), records.xattr_stop(inode)):
                self.txn.delete(key)
        if record.flags & records.LINKED:
            for key, _ in self.txn.scan(records.name_key(inode, 0), records.name_stop(inode)):
                self.txn.delete(key)
        if record.kind is Kind.DIRECTORY:
            self.txn.delete(records.trash_setting_key(inode))
        if record.kind is Kind.DIRECTORY and self._tally.is_on():
            usage.forget(self.txn, inode)
        if was_orphan:
            self._orphans -= 1
        else:
            self._count_totals(record, -1)

    def forget_shadowed(self, count: int) -> None:
        """Files that were shadowed in a directory that is forgotten."""
        self._odd -= count

    def count_detached(self, record: Inode) -> None:
        """A child of an orphan that becomes one itself."""
        self._count_totals(record, -1)

    def finish(self) -> None:
        """Write the directories' records and states, the totals and the counters."""
        for directory in self._open.values():
            if directory.record != directory.stored_record:
                self.txn.put(records.inode_key(directory.inode), records.pack_inode(directory.record))
            if directory.state != directory.stored_state:
                self.txn.put(records.state_key(directory.table), records.pack_state(directory.state))
        self.grown = self._tally.finish()
        if self._sequence:
            self.txn.put(records.KEY_SEQUENCE, records.pack_id(self._sequence))
        if self._next_inode:
            self.txn.put(records.KEY_NEXT_INODE, records.pack_id(self._next_inode))
        deltas = (self._files, self._directories, self._bytes, self._odd, self._orphans)
        if any(deltas):
            now = records.unpack_totals(self.txn.get(records.KEY_TOTALS))
            totals = Totals(
                now.files + self._files,
                now.directories + self._directories,
                now.known_bytes + self._bytes,
                now.odd_names + self._odd,
                now.orphans + self._orphans,
            )
            self.txn.put(records.KEY_TOTALS, records.pack_totals(totals))

    def _complete(self, directory: Directory, record: Inode) -> Inode:
        odd = records.ODD if paths.is_odd(record.name) else 0
        return record._replace(parent=directory.inode, sequence=self.sequence, flags=record.flags & ~records.ODD | odd)

    def _count(self, directory: Directory, record: Inode, sign: int) -> None:
        state = directory.state
        if record.kind is Kind.DIRECTORY:
            shadowed = bool(state.files) and lookup_child(self.txn, directory.table, record.name) is not None
            state = state._replace(directories=state.directories + sign, shadowed=state.shadowed + sign * shadowed)
        else:
            shadowed = bool(state.directories) and lookup_child(self.txn, directory.table, record.name + b"/") is not None
            state = state._replace(files=state.files + sign, shadowed=state.shadowed + sign * shadowed)
        directory.state = state
        self._odd += sign * shadowed

    def _count_totals(self, record: Inode, sign: int) -> None:
        if record.kind is Kind.DIRECTORY:
            self._directories += sign
        else:
            self._files += sign
            self._bytes += sign * record.size
        self._odd += sign * bool(record.flags & records.ODD)


def make_directory(name: bytes, mount_id: MountId, uid: int, gid: int, time_ns: int, flags: int = 0) -> Inode:
    """A new directory's record."""
    return Inode(
        Kind.DIRECTORY,
        flags,
        DIRECTORY_MODE,
        1,  # as file systems do that do not count subdirectories: tools must not conclude from 2 that there are none
        uid,
        gid,
        mount_id,
        0,
        time_ns,
        time_ns,
        VersionId(0),
        0,
        ROOT_INODE,
        b"",
        name,
    )


def get_next_inode(txn: ReadTransaction) -> InodeId:
    """The first id that was not given yet."""
    data = txn.get(records.KEY_NEXT_INODE)
    if data is None:
        raise errors.Internal("the namespace was not prepared")
    return InodeId(records.unpack_id(data))


def reserve_inodes(txn: WriteTransaction, count: int) -> InodeId:
    """The first of so many ids in a row that nobody else is given. Raises InvalidArgument."""
    if not 1 <= count <= MAX_RESERVED:
        raise errors.InvalidArgument(f"1 to {MAX_RESERVED} ids at once", subject=str(count))
    first = get_next_inode(txn)
    txn.put(records.KEY_NEXT_INODE, records.pack_id(first + count))
    return first


def prepare(txn: WriteTransaction, now_ns: int) -> bool:
    """Create the root in an empty store; else check the format and skip ids. Whether it was empty."""
    if txn.get(records.KEY_RESTORING) is not None:
        raise errors.Corrupt("a restore of this metadata was not finished: run `alluxio-like restore` again")
    stored = txn.get(records.KEY_FORMAT)
    if stored is None:
        txn.put(records.KEY_FORMAT, records.pack_id(records.FORMAT))
        root = make_directory(b"", NO_MOUNT, 0, 0, now_ns)
        txn.put(records.inode_key(ROOT_INODE), records.pack_inode(root))
        txn.put(records.KEY_ROOT_TABLE, records.pack_id(ROOT_INODE + 1))
        txn.put(records.KEY_NEXT_INODE, records.pack_id(ROOT_INODE + 2))
        txn.put(records.KEY_TOTALS, records.pack_totals(Totals(0, 1, 0, 0, 0)))
        txn.put(records.KEY_LEASES, b"0")
        return True
    number = records.unpack_id(stored)
    if number > records.FORMAT:
        raise errors.FormatTooNew(
            f"the namespace was written by a newer release (format {number}; this one reads up to {records.FORMAT}); "
            "use that release"
        )
    txn.put(records.KEY_FORMAT, records.pack_id(records.FORMAT))
    # A power loss may have undone the last commits, whose ids workers and mounts have seen: those are never given again.
    next_inode = records.unpack_id(txn.get(records.KEY_NEXT_INODE) or b"\0")
    txn.put(records.KEY_NEXT_INODE, records.pack_id(next_inode + IDS_SKIPPED))
    return False


MAX_RESERVED = 1024
"""Far below IDS_SKIPPED."""

IDS_SKIPPED = 1 << 20
"""More than all commits that one power loss can undo may have given away (a guess, far above a commit's few thousand)."""
