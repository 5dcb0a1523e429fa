"""The namespace: names, attributes and contents of all that is known, over a key-value transaction.

Functions over a transaction and a given time (nanoseconds since the epoch); they do no I/O of their own. Reads take any
transaction, changes take a write transaction, and a change is whole when that commits. This module owns what is asked, and pins;
what stores say comes in through refresh.py, mounts through mounts.py, and what is removed goes through orphans.py. Rule of
concurrency: that of the transactions; one listing of one directory at a time (`begin_listing`), which its caller sees to.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import keys, paths, records, tables, trash
from alluxio_like.master.core.model import NO_MOUNT, DirState, EntryPage, Resolved, Totals
from alluxio_like.master.core.orphans import purge
from alluxio_like.master.core.records import Inode, State
from alluxio_like.master.core.refresh import apply_missing, apply_page, apply_stat, begin_listing, is_covered, list_new_contents
from alluxio_like.master.core.tables import prepare
from alluxio_like.types import (
    OWN_TOKEN,
    ROOT_INODE,
    Attr,
    Entry,
    FileId,
    FileRef,
    Fingerprint,
    InodeId,
    Kind,
    MountId,
    VersionId,
    WorkerId,
    to_bytes,
    to_str,
)

__all__ = [
    "apply_missing",
    "apply_page",
    "apply_stat",
    "begin_listing",
    "get_dir_state",
    "get_entry",
    "get_key",
    "get_path",
    "get_totals",
    "is_covered",
    "is_pinned",
    "list_entries",
    "list_new_contents",
    "list_unknown",
    "lookup",
    "lookup_known",
    "lookup_names",
    "lookup_parent",
    "lookup_path",
    "make_new_refs",
    "prepare",
    "purge",
    "resolve",
    "set_pinned",
]

MAX_ENTRIES = 100_000


class _Place(NamedTuple):
    """What all children of a directory have in common."""

    mount_id: MountId
    dir_key: str
    pinned: bool
    shadowed: int


def lookup(txn: ReadTransaction, parent: InodeId, name: str) -> Entry | None:
    """One displayed name in a directory; None: not known (see get_dir_state for whether it does not exist).

    Raises NotFound (no such directory, or it was removed), NotADirectory, NameTooLong.
    """
    return _lookup(txn, parent, name)[0]


def lookup_known(txn: ReadTransaction, parent: InodeId, name: str) -> tuple[Entry | None, DirState]:
    """What `lookup` and `get_dir_state` say, which read the same records."""
    entry, directory, state = _lookup(txn, parent, name)
    return entry, _describe_state(parent, directory, state)


def _lookup(txn: ReadTransaction, parent: InodeId, name: str) -> tuple[Entry | None, Inode, State]:
    directory = tables.get_directory(txn, parent)
    table = tables.get_table(txn, parent)
    shown = to_bytes(name)
    if len(shown) > paths.NAME_MAX_BYTES:
        raise errors.NameTooLong(f"a name has at most {paths.NAME_MAX_BYTES} bytes", subject=name)
    state = tables.get_state(txn, table)
    found = find_child(txn, table, shown, state)
    if found is None:
        found = trash.lookup_hidden(txn, parent, shown)
    if found is None:
        return None, directory, state
    inode, record = found
    return _make_entry(txn, inode, record, name, _describe(txn, parent, directory, state)), directory, state


def lookup_names(txn: ReadTransaction, parent: InodeId, names: Sequence[str]) -> list[Entry | None]:
    """The same of many names of one directory."""
    directory = tables.get_directory(txn, parent)
    table = tables.get_table(txn, parent)
    state = tables.get_state(txn, table)
    place = _describe(txn, parent, directory, state)
    found = [(name, find_child(txn, table, to_bytes(name), state)) for name in names]
    return [None if child is None else _make_entry(txn, *child, name, place) for name, child in found]


def get_entry(txn: ReadTransaction, inode: InodeId) -> Entry:
    """An inode by its id, orphans included while they are kept (nlink 0). Raises NotFound."""
    record = tables.get_inode(txn, inode)
    if inode == ROOT_INODE:
        return _make_entry(txn, inode, record, "/", _Place(record.mount_id, "", False, 0))
    parent = tables.get_inode(txn, record.parent)
    shadowed = _is_shadowed(txn, tables.get_table(txn, record.parent), record)
    name = to_str(paths.show_name(record.name, record.kind, shadowed))
    state = tables.get_state(txn, tables.get_table(txn, record.parent))
    return _make_entry(txn, inode, record, name, _describe(txn, record.parent, parent, state))


def lookup_parent(txn: ReadTransaction, inode: InodeId) -> InodeId | None:
    """The directory in which an inode is, the root in itself; None for an orphan. Raises NotFound."""
    record = tables.get_inode(txn, inode)
    return None if record.flags & records.ORPHAN else record.parent


def list_entries(txn: ReadTransaction, directory: InodeId, cursor: bytes = b"", limit: int = 1000) -> EntryPage:
    """Known children, a page at a time, in an order that stays: what is there all the while is met exactly once.

    Raises NotFound, NotADirectory, InvalidArgument (cursor).
    """
    record = tables.get_directory(txn, directory)
    table = tables.get_table(txn, directory)
    place = _describe(txn, directory, record, tables.get_state(txn, table))
    limit = min(max(1, limit), MAX_ENTRIES)
    if cursor[:1] not in (b"", b"/"):
        raise errors.InvalidArgument("not a cursor of a directory listing")
    dentries = list(txn.scan(get_page_start(table, cursor), records.dentry_stop(table), limit=limit))
    ids = [InodeId(records.unpack_id(data)) for _, data in dentries]
    entries = []
    found = txn.get_many([records.inode_key(inode) for inode in ids])
    for inode, (key, _), data in zip(ids, dentries, found, strict=True):
        if data is None:
            raise errors.Internal("a name without an inode", subject=str(inode))
        child = records.unpack_inode(data)
        name = show_child(txn, directory, table, key[9:], child, bool(place.shadowed))
        entries.append(_make_entry(txn, inode, child, to_str(name), place))
    more = len(dentries) == limit
    return EntryPage(tuple(entries), b"/" + dentries[-1][0][9:] if more else b"", place.mount_id, place.dir_key)


def get_page_start(table: int, cursor: bytes) -> bytes:
    """The first key that a page of a directory's dentries may have."""
    return records.dentry_key(table, cursor[1:] + b"\0" if cursor else b"")


def get_dir_state(txn: ReadTransaction, directory: InodeId) -> DirState:
    """Raises NotFound, NotADirectory."""
    record = tables.get_directory(txn, directory)
    return _describe_state(directory, record, tables.get_state(txn, tables.get_table(txn, directory)))


def _describe_state(directory: InodeId, record: Inode, state: State) -> DirState:
    if record.mount_id == NO_MOUNT:
        state = state._replace(complete=True, listed_ns=record.ctime_ns)
    return state.describe(directory, record.mount_id)


def get_key(txn: ReadTransaction, inode: InodeId) -> tuple[MountId, str]:
    """(mount, key): a file's key, or a directory's prefix ("" or ending in "/"); NO_MOUNT gives "".

    Orphans keep theirs. Raises NotFound.
    """
    record = tables.get_inode(txn, inode)
    return record.mount_id, keys.get_key(txn, inode, record)


def lookup_path(txn: ReadTransaction, inode: InodeId) -> str | None:
    """The absolute path under which an inode is shown; None: no path leads there (any more)."""
    try:
        return get_path(txn, inode)
    except errors.NotFound:
        return None


def get_path(txn: ReadTransaction, inode: InodeId) -> str:
    """The absolute path under which an inode is shown. Raises NotFound for an orphan and what is below one."""
    parts: list[str] = []
    at = inode
    while at != ROOT_INODE:
        record = tables.get_inode(txn, at)
        if record.flags & records.ORPHAN:
            raise errors.NotFound("no path leads to a removed inode", subject=str(inode))
        table = tables.get_table(txn, record.parent)
        if tables.lookup_child(txn, table, record.sort_name) != at and not record.flags & records.HIDDEN:
            # Below what was unmounted from the root.
            raise errors.NotFound("no path leads to a removed inode", subject=str(inode))
        parts.append(to_str(_show(record, _is_shadowed(txn, table, record))))
        at = record.parent
    return paths.join_path(tuple(reversed(parts)))


def resolve(txn: ReadTransaction, path: str) -> Resolved:
    """An absolute path as far as it is known. Raises InvalidArgument, NameTooLong, NotADirectory."""
    parts = paths.split_path(path)
    entry = get_entry(txn, ROOT_INODE)
    for place, part in enumerate(parts):
        if entry.attr.kind is not Kind.DIRECTORY:
            raise errors.NotADirectory("not a directory", subject=paths.join_path(parts[:place]))
        found = lookup(txn, entry.attr.inode, part)
        if found is None:
            return Resolved(entry, parts[place:])
        entry = found
    return Resolved(entry, ())


def get_totals(txn: ReadTransaction) -> Totals:
    """Sums over the known namespace. What lies below a removed directory counts until it is purged."""
    return records.unpack_totals(txn.get(records.KEY_TOTALS))


def list_unknown(txn: ReadTransaction, files: Iterable[FileId]) -> list[FileId]:
    """Those of the files that the namespace has forgotten: no such inode, not even as an orphan."""
    asked = list(files)
    found = txn.get_many([records.inode_key(file_id.inode) for file_id in asked])
    return [file_id for file_id, data in zip(asked, found, strict=True) if data is None]


def is_pinned(txn: ReadTransaction, inode: InodeId) -> bool:
    """Whether an inode or any directory above it is pinned. Raises NotFound."""
    at = inode
    while True:
        record = tables.get_inode(txn, at)
        if record.flags & records.PINNED:
            return True
        if at == ROOT_INODE:
            return False
        at = record.parent


def set_pinned(txn: WriteTransaction, inode: InodeId, pinned: bool) -> bool:
    """Set an inode's own pin; whether it changed. Raises NotFound (also for an orphan).

    Not a change of the name or the content: it gets no sequence number, so listings under way still apply to the inode.
    """
    record = tables.get_inode(txn, inode)
    if record.flags & records.ORPHAN:
        raise errors.NotFound("the inode was removed", subject=str(inode))
    flags = record.flags | records.PINNED if pinned else record.flags & ~records.PINNED
    if flags == record.flags:
        return False
    txn.put(records.inode_key(inode), records.pack_inode(record._replace(flags=flags)))
    return True


def find_child(txn: ReadTransaction, table: int, shown: bytes, state: State | None = None) -> tuple[InodeId, Inode] | None:
    """The child that is shown under this name, in the directory with this table (`state` is the directory's, if it is at hand);
    its record is its own, whatever its other names are."""
    state = tables.get_state(txn, table) if state is None else state
    for sort_name in list_sort_names(txn, table, shown, state):
        inode = tables.lookup_child(txn, table, sort_name)
        if inode is None:
            continue
        record = tables.get_inode(txn, inode)
        named = record if record.sort_name == sort_name else record._replace(name=sort_name)
        if _show(named, bool(state.shadowed) and _is_shadowed(txn, table, named)) == shown:
            return inode, record
    return None


def list_sort_names(txn: ReadTransaction, table: int, shown: bytes, state: State) -> tuple[bytes, ...]:
    """Those that a child may have which is shown under this name."""
    asked = paths.read_name(shown)
    if asked.raw is None:
        sort_name = txn.get(records.hash_key(table, asked.shown_hash))
        return (sort_name,) if sort_name is not None else ()
    # In most directories all are files: then there is nothing to ask for under a directory's name.
    return (asked.raw + b"/", asked.raw) if state.directories and not asked.shadowed else (asked.raw,)


def show_child(txn: ReadTransaction, directory: InodeId, table: int, filed: bytes, record: Inode, any_shadowed: bool) -> bytes:
    """The name under which the dentry filed like this in a directory is shown; `record`: its inode's, which has only one of the
    names that this may have. `any_shadowed`: some of the directory's files have a directory's name."""
    named = record if not record.flags & records.LINKED else tables.rename_record(record, directory, filed)
    shadowed = any_shadowed and _is_shadowed(txn, table, named)
    return named.name if not named.flags & records.ODD and not shadowed else _show(named, shadowed)


def _show(record: Inode, shadowed: bool) -> bytes:
    return paths.show_name(record.name, record.kind, shadowed)


def _is_shadowed(txn: ReadTransaction, table: int, record: Inode) -> bool:
    """Whether a directory beside it has the file's name."""
    return record.kind is not Kind.DIRECTORY and tables.lookup_child(txn, table, record.name + b"/") is not None


def _describe(txn: ReadTransaction, directory: InodeId, record: Inode, state: State) -> _Place:
    """What a directory's children have in common, by one walk up to the root."""
    top, top_record = directory, record
    mount_id = record.mount_id
    pinned = bool(record.flags & records.PINNED)
    names: list[bytes] = []
    inside = mount_id != NO_MOUNT
    moves = False
    while directory != ROOT_INODE:
        inside = inside and not record.flags & records.MOUNT_POINT
        if inside:
            names.append(record.name + b"/")
            moves = moves or bool(record.flags & records.MOVED)
        elif pinned:
            break
        directory = record.parent
        record = tables.get_inode(txn, directory)
        pinned = pinned or bool(record.flags & records.PINNED)
    names.reverse()
    prefix = to_str(b"".join(names)) if not moves else keys.get_prefix(txn, top, top_record)
    return _Place(mount_id, prefix, pinned, state.shadowed)


def make_new_refs(
    txn: ReadTransaction, directory: InodeId, files: Sequence[tuple[InodeId, bytes, VersionId, int]], holders: tuple[str, ...]
) -> list[FileRef]:
    """What files are known by that have just been made in a directory: of each its inode, name, version and size. As `get_entry`
    says it, at less cost."""
    place = _describe(
        txn, directory, tables.get_directory(txn, directory), tables.get_state(txn, tables.get_table(txn, directory))
    )
    ids = tuple(map(WorkerId, holders))
    return [
        FileRef(
            inode,
            version,
            place.mount_id,
            place.dir_key + to_str(name),
            Fingerprint(f"{OWN_TOKEN}{version:x}", size),
            place.pinned,
            None,
            ids,
        )
        for inode, name, version, size in files
    ]


def _make_entry(txn: ReadTransaction, inode: InodeId, record: Inode, name: str, place: _Place) -> Entry:
    attr = Attr(
        inode,
        record.kind,
        record.mode,
        record.uid,
        record.gid,
        record.size,
        record.mtime_ns,
        record.ctime_ns,
        _count_links(txn, inode, record),
        record.version,
        record.atime_ns,
        tables.get_device(txn, inode, record),
        bool(record.flags & records.XATTRS),
    )
    if record.kind is not Kind.FILE:
        return Entry(name, attr)
    elsewhere = record.flags & (records.LINKED | records.MOVED | records.LOCAL)
    ref = FileRef(
        inode,
        VersionId(record.version),
        record.mount_id,
        keys.get_key(txn, inode, record) if elsewhere else place.dir_key + to_str(record.name),
        record.fingerprint,
        place.pinned or bool(record.flags & records.PINNED),
        record.source,
        tuple(map(WorkerId, tables.get_dirty(txn, inode).holders)) if record.flags & records.LOCAL else (),
    )
    return Entry(name, attr, ref)


def _count_links(txn: ReadTransaction, inode: InodeId, record: Inode) -> int:
    """st_nlink: of a directory as of old, itself and each directory in it; 1, which says nothing, where not all are known."""
    if record.kind is not Kind.DIRECTORY or record.flags & records.ORPHAN:
        return record.nlink
    state = tables.get_state(txn, tables.get_table(txn, inode))
    return 2 + state.directories if state.complete else 1
