"""Checks names and inodes: every rule that holds between names, inodes, directories and counters.

Owns the rules that tables.py keeps, looked at from outside: each name leads to an inode that knows the name, each inode is found
under each of its names, links and children are counted right, parents lead to the root. What follows the namespace (journal,
mounts, snapshots, ...) is in checking.py. Functions over a read transaction: one pass over names, one over inodes, memory
bounded whatever the size. For checking.py.
"""

from collections.abc import Iterator, Sequence

from alluxio_like.findings import REPAIR, RESTORE, Finding, Grade, Writes
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import paths, records, tables
from alluxio_like.master.core.model import NO_MOUNT, Totals
from alluxio_like.master.core.records import Inode
from alluxio_like.types import ROOT_INODE, InodeId, Kind, to_str

_BATCH = 1000
_CACHED = 200_000
"""Directories whose records are kept at hand: some 100 MB."""


def check(txn: ReadTransaction) -> Iterator[Finding]:
    """Names, inodes, directories, sums."""
    checker = _Checker(txn)
    yield from checker.check_names()
    yield from checker.check_inodes()
    yield from checker.check_states()
    yield from checker.check_totals()


def check_tree(txn: ReadTransaction, top: InodeId) -> Iterator[Finding]:
    """The names below a directory, each with its inode: what a snapshot has to hold."""
    checker = _Checker(txn)
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        table = tables.get_table(txn, directory)
        yield from checker.check_table(table, directory, waiting)


class _Count:
    """Children of one table."""

    def __init__(self) -> None:
        self.files = self.directories = self.shadowed = 0


class _Checker:
    def __init__(self, txn: ReadTransaction) -> None:
        self._txn = txn
        self._root_table = tables.get_table(txn, ROOT_INODE)
        self._directories: dict[int, Inode | None] = {}
        self._whole: set[int] = {ROOT_INODE}
        self._names: tuple[int, set[tuple[int, bytes]]] = (0, set())
        self._mounts = {int.from_bytes(key[1:5], "big") for key, _ in txn.scan(b"M", b"N")}
        self._old_roots: list[int] | None = None
        self._files = self._sum_directories = self._bytes = self._odd = self._orphans = self._shadowed = 0
        self._highest = self._sequence = 0

    # -- names -----------------------------------------------------------------------------------------------------------------

    def check_names(self) -> Iterator[Finding]:
        """Each dentry: its directory and its inode are there and know each other; children are counted right."""
        table, count = -1, _Count()
        for dentries in _batch(self._txn.scan(b"D", b"E")):
            found = self._read_children(dentries)
            for (key, data), record in zip(dentries, found, strict=True):
                at = int.from_bytes(key[1:9], "big")
                if at != table:
                    yield from self._check_count(table, count)
                    table, count = at, _Count()
                    if self._find_directory(at) is None:
                        yield Finding(Grade.WRONG, "names", f"names lie in table {at}, which is no directory's", RESTORE)
                yield from self._check_name(at, key[9:], InodeId(records.unpack_id(data)), record, count)
        yield from self._check_count(table, count)

    def check_table(self, table: int, directory: InodeId, below: list[InodeId]) -> Iterator[Finding]:
        """The same of one directory; directories in it are added to `below`."""
        count = _Count()
        for dentries in _batch(self._txn.scan(records.dentry_key(table, b""), records.dentry_stop(table))):
            for (key, data), record in zip(dentries, self._read_children(dentries), strict=True):
                inode = InodeId(records.unpack_id(data))
                yield from self._check_name(table, key[9:], inode, record, count)
                if record is not None and record.kind is Kind.DIRECTORY and record.parent == directory:
                    below.append(inode)
        yield from self._check_count(table, count)

    def _read_children(self, dentries: Sequence[tuple[bytes, bytes]]) -> list[Inode | None]:
        found = self._txn.get_many([records.inode_key(records.unpack_id(data)) for _, data in dentries])
        return [records.unpack_inode(data) if data is not None else None for data in found]

    def _check_name(self, table: int, filed: bytes, inode: InodeId, record: Inode | None, count: _Count) -> Iterator[Finding]:
        directory = self._find_directory(table)
        is_orphan = directory is not None and bool(directory[1].flags & records.ORPHAN)
        shown = f"the name {_show(filed)} in directory {directory[0] if directory is not None else table}"
        if record is None:
            count.directories += filed.endswith(b"/")
            count.files += not filed.endswith(b"/")
            # Below a removed directory it is one of several names of a file that is gone with another of them.
            if directory is None or not self._is_removed(directory[0]):
                yield self._describe_dangling(table, filed, inode, shown)
            return
        # Children are counted by what their names say of them: a directory's ends in a slash.
        if record.kind is Kind.DIRECTORY:
            count.directories += 1
            count.shadowed += tables.lookup_child(self._txn, table, record.name) is not None
        else:
            count.files += 1
        if record.flags & records.ORPHAN and not is_orphan:
            yield Finding(Grade.WRONG, "name", f"{shown} leads to inode {inode}, which was removed", RESTORE)
        elif directory is not None and not self._has_name(inode, record, directory[0], filed):
            yield Finding(Grade.WRONG, "name", f"{shown} leads to inode {inode}, which does not know it", RESTORE)
        elif record.flags & records.LINKED == 0 and paths.needs_index(record.name):
            row = records.hash_key(table, paths.get_shown_hash(record.name, record.kind))
            if self._txn.get(row) != record.sort_name:
                writes = ((row, record.sort_name),)
                yield Finding(Grade.WRONG, "hash", f"{shown} cannot be found by the name that is shown", REPAIR, writes)

    def _describe_dangling(self, table: int, filed: bytes, inode: InodeId, shown: str) -> Finding:
        message = f"{shown} leads to inode {inode}, which is not there"
        if self._txn.get(records.dirty_key(inode)) is not None:
            return Finding(Grade.WRONG, "name", f"{message}; the store does not have it", RESTORE)
        # The directory is listed again: what the store has of that name comes back.
        state = tables.get_state(self._txn, table)._replace(complete=False)
        writes = ((records.dentry_key(table, filed), None), (records.state_key(table), records.pack_state(state)))
        return Finding(Grade.WRONG, "name", message, f"{REPAIR}: the store is asked for it again", writes)

    def _has_name(self, inode: InodeId, record: Inode, directory: InodeId, filed: bytes) -> bool:
        if record.parent == directory and paths.file_name(record.sort_name) == filed:
            return True
        return bool(record.flags & records.LINKED) and (directory, filed) in self._get_names(inode)

    def _get_names(self, inode: InodeId) -> set[tuple[int, bytes]]:
        """The further names of an inode, as they are filed."""
        if self._names[0] != inode:
            rows = self._txn.scan(records.name_key(inode, 0), records.name_stop(inode))
            names = [records.unpack_name(data) for _, data in rows]
            self._names = (inode, {(parent, paths.file_name(name)) for parent, name in names})
        return self._names[1]

    def _check_count(self, table: int, count: _Count) -> Iterator[Finding]:
        found = self._find_directory(table)
        if found is None or found[1].flags & records.ORPHAN:
            # What is left of a removed directory is taken apart without counting.
            return
        state = tables.get_state(self._txn, table)
        right = (count.files, count.directories, count.shadowed)
        if (state.files, state.directories, state.shadowed) != right:
            fixed = state._replace(files=right[0], directories=right[1], shadowed=right[2])
            known = (state.files, state.directories, state.shadowed)
            yield Finding(
                Grade.WRONG, "children",
                f"directory {found[0]} counts (files, directories, shadowed) {known} and has {right}",
                REPAIR, ((records.state_key(table), records.pack_state(fixed)),),
            )  # fmt: skip

    # -- inodes ----------------------------------------------------------------------------------------------------------------

    def check_inodes(self) -> Iterator[Finding]:
        """Each inode: found under its names, in a directory that leads to the root, with the records that its flags tell of."""
        for key, data in self._txn.scan(b"I", b"J"):
            inode, record = InodeId(int.from_bytes(key[1:9], "big")), records.unpack_inode(data)
            self._highest = max(self._highest, inode)
            self._sequence = max(self._sequence, record.sequence)
            if record.flags & records.ORPHAN:
                self._orphans += 1
                if record.nlink:
                    fixed = records.pack_inode(record._replace(nlink=0))
                    message = f"inode {inode} was removed and counts {record.nlink} names"
                    yield Finding(Grade.WRONG, "links", message, REPAIR, ((key, fixed),))
                continue
            self._count_totals(record)
            if inode != ROOT_INODE:
                yield from self._check_own_name(inode, record)
                yield from self._check_links(inode, record)
            yield from self._check_flags(inode, record)

    def _count_totals(self, record: Inode) -> None:
        if record.kind is Kind.DIRECTORY:
            self._sum_directories += 1
        else:
            self._files += 1
            self._bytes += record.size
        self._odd += bool(record.flags & records.ODD)

    def _check_own_name(self, inode: InodeId, record: Inode) -> Iterator[Finding]:
        parent = self._get_directory(record.parent)
        if parent is None or parent.kind is not Kind.DIRECTORY:
            yield Finding(Grade.WRONG, "parent", f"inode {inode} is in {record.parent}, which is no directory", RESTORE)
            return
        filed = paths.file_name(record.sort_name)
        table = self._root_table if record.parent == ROOT_INODE else record.parent
        place = self._txn.get(records.dentry_key(table, filed))
        is_old = False
        if place != records.pack_id(inode) and record.parent == ROOT_INODE:
            is_old = any(
                self._txn.get(records.dentry_key(old, filed)) == records.pack_id(inode) for old in self._list_old_roots()
            )
        if record.flags & records.HIDDEN:
            pass  # found by its mount, and by no entry
        elif place != records.pack_id(inode) and not is_old:
            yield self._describe_nameless(inode, record, table, filed, place)
        elif not is_old and record.mount_id != parent.mount_id and not record.flags & records.MOUNT_POINT:
            message = f"inode {inode} belongs to mount {record.mount_id}, its directory to {parent.mount_id}"
            yield Finding(Grade.WRONG, "mount", message, RESTORE)
        if record.kind is Kind.DIRECTORY and not self._leads_up(inode):
            yield Finding(Grade.WRONG, "loop", f"directory {inode} lies below itself", RESTORE)
        elif record.mount_id not in self._mounts and record.mount_id != NO_MOUNT and not self._is_removed(inode):
            yield Finding(Grade.WRONG, "mount", f"inode {inode} belongs to mount {record.mount_id}, which is gone", RESTORE)

    def _describe_nameless(self, inode: InodeId, record: Inode, table: int, filed: bytes, place: bytes | None) -> Finding:
        message = f"inode {inode} is not found under its name {_show(filed)} in directory {record.parent}"
        if place is None and not record.flags & records.LINKED:
            # To give it its name back loses nothing, whatever it is.
            return Finding(Grade.WRONG, "nameless", message, REPAIR, ((records.dentry_key(table, filed),
                           records.pack_id(inode)),))  # fmt: skip
        return Finding(Grade.WRONG, "nameless", f"{message}: another inode has it", RESTORE)

    def _check_links(self, inode: InodeId, record: Inode) -> Iterator[Finding]:
        further = 0
        if record.flags & records.LINKED:
            for row, data in self._txn.scan(records.name_key(inode, 0), records.name_stop(inode)):
                parent, name = records.unpack_name(data)
                table = self._root_table if parent == ROOT_INODE else parent
                if self._txn.get(records.dentry_key(table, paths.file_name(name))) == records.pack_id(inode):
                    further += 1
                elif not self._is_removed(parent):
                    message = f"inode {inode} has a further name {_show(name)} in directory {parent}, which does not lead to it"
                    yield Finding(Grade.WRONG, "links", message, REPAIR, ((row, None),))
                else:
                    further += 1
        if record.nlink != 1 + further:
            fixed = records.pack_inode(record._replace(nlink=1 + further))
            message = f"inode {inode} counts {record.nlink} names and has {1 + further}"
            yield Finding(Grade.WRONG, "links", message, REPAIR, ((records.inode_key(inode), fixed),))

    def _check_flags(self, inode: InodeId, record: Inode) -> Iterator[Finding]:
        txn = self._txn
        for flag, row, what in (
            (records.LOCAL, records.dirty_key(inode), "is not at the store, and who holds it is not known"),
            (records.MOVED, records.moved_key(inode), "moves, and where its bytes are is not known"),
        ):
            if record.flags & flag and txn.get(row) is None:
                yield Finding(Grade.WRONG, "flags", f"inode {inode} {what}", RESTORE)
        if record.flags & records.LINKED and not self._get_names(inode):
            fixed = record._replace(flags=record.flags & ~records.LINKED)
            message = f"inode {inode} is said to have more names, and has none"
            yield Finding(Grade.WRONG, "flags", message, REPAIR, ((records.inode_key(inode), records.pack_inode(fixed)),))
        if record.kind is Kind.SYMLINK:
            target = txn.get(records.target_key(inode))
            if record.flags & records.LOCAL and (target is None or len(target) != record.size):
                yield Finding(Grade.WRONG, "target", f"the symbolic link {inode} has no target of its size", RESTORE)

    # -- what was counted --------------------------------------------------------------------------------------------------------

    def check_states(self) -> Iterator[Finding]:
        """Each directory's state, those of empty ones too."""
        for row, data in self._txn.scan(b"S", b"T"):
            table, state = int.from_bytes(row[1:9], "big"), records.unpack_state(data)
            self._shadowed += state.shadowed
            found = self._find_directory(table)
            if found is None:
                yield Finding(Grade.LEFTOVER, "state", f"a state of directory {table}, which is gone", "", ((row, None),))
                continue
            start, stop = records.dentry_key(table, b""), records.dentry_stop(table)
            if (state.files or state.directories) and next(iter(self._txn.scan(start, stop, limit=1)), None) is None:
                yield from self._check_count(table, _Count())

    def check_totals(self) -> Iterator[Finding]:
        """The sums over all, and the counters from which ids are drawn."""
        txn = self._txn
        known = records.unpack_totals(txn.get(records.KEY_TOTALS))
        right = Totals(self._files, self._sum_directories, self._bytes, self._odd + self._shadowed, self._orphans)
        if known != right:
            writes: Writes = ((records.KEY_TOTALS, records.pack_totals(right)),)
            yield Finding(Grade.WRONG, "totals", f"the sums say {known}, there are {right}", REPAIR, writes)
        for key, name, least in (
            (records.KEY_NEXT_INODE, "inode ids", self._highest + 1),
            (records.KEY_SEQUENCE, "changes", self._sequence),
        ):
            number = records.unpack_id(txn.get(key) or b"\0")
            if number < least:
                message = f"the counter of {name} is {number}, and {least} is the least that it can be"
                yield Finding(Grade.WRONG, "counter", message, REPAIR, ((key, records.pack_id(least)),))
        listed = sum(1 for _ in txn.scan(b"X", b"Y"))
        if listed < self._orphans:
            yield from self._check_orphans()

    def _check_orphans(self) -> Iterator[Finding]:
        """Each removed inode waits to be forgotten."""
        waiting = {records.unpack_orphan_key(key)[1] for key, _ in self._txn.scan(b"X", b"Y")}
        for key, data in self._txn.scan(b"I", b"J"):
            inode = InodeId(int.from_bytes(key[1:9], "big"))
            record = records.unpack_inode(data)
            if record.flags & records.ORPHAN and inode not in waiting:
                writes = ((records.orphan_key(record.ctime_ns, inode), b""),)
                message = f"inode {inode} was removed and nothing forgets it"
                yield Finding(Grade.WRONG, "orphan", message, REPAIR, writes)

    # -- directories -------------------------------------------------------------------------------------------------------------

    def _get_directory(self, inode: int) -> Inode | None:
        if inode not in self._directories:
            if len(self._directories) >= _CACHED:
                self._directories.clear()
            self._directories[inode] = tables.lookup_inode(self._txn, InodeId(inode))
        return self._directories[inode]

    def _find_directory(self, table: int) -> tuple[InodeId, Inode] | None:
        """Whose table it is; of a former root's the children are those of the root."""
        inode = InodeId(ROOT_INODE if table == self._root_table else table)
        record = self._get_directory(inode) if table >= 0 else None
        if record is None or record.kind is not Kind.DIRECTORY or (inode == ROOT_INODE and table == ROOT_INODE):
            return None
        is_old_root = bool(record.flags & records.ORPHAN) and not record.name and record.parent == ROOT_INODE
        return (ROOT_INODE if is_old_root else inode), record

    def _list_old_roots(self) -> list[int]:
        """Tables that were the root's, until they are forgotten."""
        if self._old_roots is None:
            self._old_roots = []
            for key, _ in self._txn.scan(b"X", b"Y"):
                inode = records.unpack_orphan_key(key)[1]
                record = tables.lookup_inode(self._txn, inode)
                if record is not None and record.kind is Kind.DIRECTORY and not record.name:
                    self._old_roots.append(inode)
        return self._old_roots

    def _leads_up(self, inode: int) -> bool:
        """Whether the way up from a directory ends."""
        way: set[int] = set()
        while inode not in self._whole:
            if inode in way:
                return False
            way.add(inode)
            record = self._get_directory(inode)
            if record is None or record.flags & records.ORPHAN:
                break
            inode = record.parent
        if len(self._whole) >= _CACHED:
            self._whole = {int(ROOT_INODE)}
        self._whole |= way
        return True

    def _is_removed(self, inode: InodeId) -> bool:
        """Whether an inode, or a directory above it, was removed. Only for what leads up."""
        at = int(inode)
        while at != ROOT_INODE:
            record = tables.lookup_inode(self._txn, InodeId(at))
            if record is None or record.flags & records.ORPHAN:
                return True
            if record.parent == ROOT_INODE:
                filed = paths.file_name(record.sort_name)
                return self._txn.get(records.dentry_key(self._root_table, filed)) != records.pack_id(at)
            at = record.parent
        return False


def _batch(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    batch: list[tuple[bytes, bytes]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _show(name: bytes) -> str:
    return repr(to_str(name))
