"""What stores say about directories, applied to the namespace.

Owns the rules of listings: each page settles exactly the contiguous range of names that it covers; what the store no longer lists
there is removed, another fingerprint is a replacement under a new inode id, the same one leaves the record untouched and
unwritten;
what we changed after the listing began is left alone; a directory is complete only after a listing's last page. Functions over a
transaction, like namespace.py, which offers them.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import lt
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import acls, keys, paths, records, tables, trash
from alluxio_like.master.core.model import NO_MOUNT, Changes, Listed, ListingPlan, MountRecord
from alluxio_like.master.core.records import Inode
from alluxio_like.master.core.tables import Directory, Edit
from alluxio_like.types import ROOT_INODE, InodeId, Kind, StoredAttributes, VersionId, to_bytes, to_str

_FIXED = records.MOUNT_POINT | records.ANCHOR
_OURS = records.LOCAL | records.MOVED | records.LINKED
"""Not as the store has it, since the store is still to follow; or (LINKED) more than the store can tell."""
_TRASH = trash.NAME + b"/"
_FIRST_VERSION = VersionId(1)


class _Known(NamedTuple):
    inode: InodeId
    record: Inode


def begin_listing(txn: ReadTransaction, directory: InodeId, now_ns: int) -> ListingPlan:
    """Before the store is first asked. Raises NotFound, NotADirectory, Unsupported (no store stands behind it)."""
    record = tables.get_directory(txn, directory)
    if record.mount_id == NO_MOUNT:
        raise errors.Unsupported("no store stands behind this directory", subject=str(directory))
    at = directory
    parent = record
    while not parent.flags & records.MOUNT_POINT:
        at = parent.parent
        parent = tables.get_directory(txn, at)
        if at == ROOT_INODE and not parent.flags & records.MOUNT_POINT:
            break
    if parent.mount_id != record.mount_id:
        raise errors.NotFound("the directory was unmounted", subject=str(directory))
    prefix = keys.get_prefix(txn, directory, record)
    return ListingPlan(directory, record.mount_id, prefix, tables.get_sequence(txn), now_ns)


def apply_page(
    txn: WriteTransaction, plan: ListingPlan, after: str | None, page: Sequence[Listed], is_last: bool, now_ns: int
) -> Changes:
    """Apply a listing's next page, which covers the sort names above `after` (None: from the first on) up to its last entry's, or
    to the end if `is_last`. Call with the `covered` of the page before as `after`; a page that is empty and not the last settles
    nothing and is to be skipped (InvalidArgument).

    Raises StoreProtocol (entries not strictly ascending by the bytes of sort_name, a file without a fingerprint, a slash in a
    name) and Stale when the directory has been removed or mounted over since the plan was made: give up the listing.
    """
    if not page and not is_last:
        raise errors.InvalidArgument("an empty page that is not the last settles nothing")
    low = to_bytes(after) if after is not None else None
    sort_names = _check_order(page, low, plan)
    edit = Edit(txn, now_ns)
    directory = _open(edit, plan)
    high = None if is_last else sort_names[-1]
    known = _read_range(txn, directory.table, low, high)
    applier = _Applier(edit, plan, directory)
    if known or not applier.add_files(sort_names, page):
        for sort_name, listed in zip(sort_names, page, strict=True):
            applier.apply(sort_name, listed, known.pop(sort_name, None))
    for gone in known.values():
        applier.remove(gone)
    applier.note_listing(first=after is None, last=is_last)
    changes = applier.finish(None if is_last else page[-1].sort_name)
    edit.finish()
    return changes


def apply_stat(txn: WriteTransaction, plan: ListingPlan, raw_name: str, found: Listed | None, now_ns: int) -> Changes:
    """Apply what the store says of one file in a directory (None: not there); the plan was made before the store was asked.

    Raises like apply_page.
    """
    sort_name = to_bytes(raw_name)
    edit = Edit(txn, now_ns)
    directory = _open(edit, plan)
    inode = tables.lookup_child(txn, directory.table, sort_name)
    known = _Known(inode, tables.get_inode(txn, inode)) if inode is not None else None
    applier = _Applier(edit, plan, directory)
    if found is not None:
        if found.kind is Kind.DIRECTORY or to_bytes(found.name) != sort_name:
            raise errors.StoreProtocol("the store was asked about one file and told of another thing", subject=raw_name)
        _check_entry(found, plan)
        applier.apply(sort_name, found, known)
    elif known is None or applier.remove(known):
        # Also what was not known: a listing under way may have seen it before it went.
        edit.bury(directory, sort_name)
    applier.note_stat()
    changes = applier.finish(raw_name)
    edit.finish()
    return changes


def apply_missing(txn: WriteTransaction, plan: ListingPlan, now_ns: int) -> Changes:
    """The store says that the directory itself does not exist: remove it with all below, or leave it empty if a mount hangs on
    it.

    Raises Stale like apply_page.
    """
    edit = Edit(txn, now_ns)
    record = _open(edit, plan).record
    if (
        record.flags & (_FIXED | _OURS)
        or record.sequence > plan.start_seq
        or plan.directory == ROOT_INODE
        or tables.has_pending_below(txn, plan.directory)
    ):
        return apply_page(txn, plan, None, (), True, now_ns)
    parent = edit.open_directory(record.parent)
    edit.unlink(parent, plan.directory, record)
    parent.set_changed(now_ns)
    edit.finish()
    names = tuple(_show_names([record], shadowed=True))
    return Changes(plan.directory, removed=(plan.directory,), names=names, gone_from=record.parent)


def list_new_contents(
    txn: ReadTransaction, plan: ListingPlan, after: str | None, page: Sequence[Listed], *, is_last: bool
) -> frozenset[str]:
    """The names of a page's files of which nothing is known, or another content: those whose attributes `apply_page` would take
    from the store."""
    files = [listed for listed in page if listed.kind is not Kind.DIRECTORY]
    if not files:
        return frozenset()
    table = tables.get_table(txn, plan.directory)
    low = to_bytes(after) if after is not None else None
    known = _read_range(txn, table, low, None if is_last else to_bytes(page[-1].sort_name))

    def is_unknown(listed: Listed) -> bool:
        found = known.get(to_bytes(listed.sort_name))
        return found is None or not (found.record.flags & (_FIXED | _OURS) or _is_same(found.record, listed))

    return frozenset(listed.name for listed in files if is_unknown(listed))


def is_covered(name: str, covered: str | None) -> bool:
    """Whether a listing applied up to `covered` has settled a shown name, be it a file or a directory (None: it has ended)."""
    if covered is None:
        return True
    asked = paths.read_name(to_bytes(name))
    return asked.raw is not None and asked.raw + b"/" <= to_bytes(covered)


def _check_order(page: Sequence[Listed], low: bytes | None, plan: ListingPlan) -> list[bytes]:
    sort_names = [to_bytes(listed.sort_name) for listed in page]
    before = sort_names if low is None else [low, *sort_names]
    if not all(map(lt, before, before[1:])):
        wrong = next(name for name, following in pairwise(before) if name >= following)
        raise errors.StoreProtocol("the store's listing is not in order", subject=f"{plan.prefix}{to_str(wrong)}")
    for listed in page:
        if "/" in listed.name or (listed.fingerprint is None and listed.kind is not Kind.DIRECTORY):
            raise _refuse(listed, plan)
    return sort_names


def _check_entry(listed: Listed, plan: ListingPlan) -> None:
    if "/" in listed.name or (listed.kind is not Kind.DIRECTORY and listed.fingerprint is None):
        raise _refuse(listed, plan)


def _refuse(listed: Listed, plan: ListingPlan) -> errors.StoreProtocol:
    return errors.StoreProtocol("the store listed something that cannot be", subject=f"{plan.prefix}{listed.name}")


def _open(edit: Edit, plan: ListingPlan) -> Directory:
    """The directory of a plan; raises Stale if it is no longer what the plan was made for, or was listed from later on since."""
    try:
        directory = edit.open_directory(plan.directory)
    except (errors.NotFound, errors.NotADirectory):
        raise errors.Stale("the directory was removed while it was listed", subject=plan.prefix) from None
    if directory.record.mount_id != plan.mount_id:
        raise errors.Stale("something else was mounted while the directory was listed", subject=plan.prefix)
    if directory.state.start_seq > plan.start_seq:
        raise errors.Stale("a later listing of the directory has ended before this one", subject=plan.prefix)
    return directory


def _read_range(txn: ReadTransaction, table: int, low: bytes | None, high: bytes | None) -> dict[bytes, _Known]:
    """The known children with low < sort name <= high (None: no bound), by sort name."""
    first, stop = paths.get_bounds(low, high)
    stop_key = records.dentry_stop(table) if stop is None else records.dentry_key(table, stop)
    dentries = list(txn.scan(records.dentry_key(table, first), stop_key))
    ids = [InodeId(records.unpack_id(data)) for _, data in dentries]
    known: dict[bytes, _Known] = {}
    for inode, (key, _), data in zip(ids, dentries, txn.get_many([records.inode_key(inode) for inode in ids]), strict=True):
        if data is None:
            raise errors.Internal("a name without an inode", subject=str(inode))
        record = records.unpack_inode(data)
        sort_name = record.sort_name if not record.flags & records.LINKED else key[9:]
        if len(key) - 9 == paths.HASHED_BYTES and (
            (low is not None and sort_name <= low) or (high is not None and sort_name > high)
        ):
            continue
        known[sort_name] = _Known(inode, record)
    return known


class _Applier:
    """One application of listed entries to one directory: what it did, and what it needs for it."""

    def __init__(self, edit: Edit, plan: ListingPlan, directory: Directory) -> None:
        self._edit = edit
        self._plan = plan
        self._directory = directory
        self._buried = self._read_tombstones()
        self._mount: MountRecord | None = None
        self._untrusted = False
        self._added: list[InodeId] = []
        self._removed: list[InodeId] = []
        self._replaced: list[tuple[InodeId, InodeId]] = []
        self._unchanged = 0
        self._kept = 0
        self._renamed: list[Inode] = []
        self._plain: Sequence[bytes] = ()
        self._touched: list[InodeId] = []
        self._was_shadowed = bool(directory.state.shadowed)

    def add_files(self, sort_names: Sequence[bytes], page: Sequence[Listed]) -> bool:
        """A page of which nothing is known, if it is of the usual kind: files with plain names, in a directory without others.

        False: nothing was done, `apply` is for it. Most of a first listing comes this way (half a million entries of a flat
        directory: 200,000/s instead of 65,000/s).
        """
        state = self._directory.state
        if not page or state.directories or self._buried or not all(map(paths.is_plain, sort_names)):
            return False
        now_ns = self._edit.now_ns
        files = []
        for raw, listed in zip(sort_names, page, strict=True):
            fingerprint = listed.fingerprint
            if fingerprint is None or listed.kind is not Kind.FILE or not listed.trusted or listed.attributes is not None:
                return False
            files.append((raw, fingerprint.size, listed.mtime_ns or now_ns, records.pack_token(fingerprint.token)))
        self._added += map(InodeId, self._edit.link_files(self._directory, self._make(page[0]), files))
        self._plain = sort_names
        return True

    def apply(self, sort_name: bytes, listed: Listed, known: _Known | None) -> None:
        """One listed entry beside what is known under its sort name."""
        if not listed.trusted:
            self._untrusted = True
        if known is None:
            if sort_name == _TRASH and trash.lookup_hidden(self._edit.txn, self._directory.inode, trash.NAME) is not None:
                # Ours, and shown by no listing.
                self._kept += 1
            elif self._buried.get(paths.file_name(sort_name), 0) > self._plan.start_seq:
                self._kept += 1
            else:
                made = self._make(listed)
                self._added.append(self._edit.link(self._directory, made))
                self._renamed.append(made)
            return
        record = known.record
        if record.flags & _FIXED:
            self._unchanged += 1
        elif record.sequence > self._plan.start_seq:
            self._kept += 1
        elif record.kind is Kind.DIRECTORY:
            self._unchanged += 1
            if listed.mtime_ns and listed.mtime_ns != record.mtime_ns:
                times = record._replace(
                    mtime_ns=listed.mtime_ns, ctime_ns=listed.mtime_ns, flags=record.flags | records.STORE_TIMES
                )
                self._edit.update(known.inode, times)
                self._touched.append(known.inode)
        elif _is_same(record, listed):
            self._unchanged += 1
        elif record.flags & _OURS:
            self._kept += 1
        else:
            carried = _place_attributes(
                self._make(listed)._replace(mode=record.mode, uid=record.uid, gid=record.gid), listed.attributes
            )
            carried = carried._replace(flags=carried.flags | record.flags & records.PINNED)
            has_list = record.flags & records.XATTRS
            access = self._edit.txn.get(records.xattr_key(known.inode, acls.ACCESS)) if has_list else None
            if access is not None:
                carried = carried._replace(flags=carried.flags | records.XATTRS)
            inode = self._edit.replace(self._directory, known.inode, record, carried)
            if access is not None:
                self._edit.txn.put(records.xattr_key(inode, acls.ACCESS), access)
            self._replaced.append((known.inode, inode))
            self._renamed.append(record)

    def remove(self, known: _Known) -> bool:
        """Something known that the store no longer has; False if it is left alone."""
        if known.record.flags & _FIXED:
            self._unchanged += 1
            return False
        if known.record.sequence > self._plan.start_seq or known.record.flags & _OURS:
            self._kept += 1
            return False
        if known.record.kind is Kind.DIRECTORY and tables.has_pending_below(self._edit.txn, known.inode):
            self._kept += 1
            return False
        self._edit.unlink(self._directory, known.inode, known.record)
        self._removed.append(known.inode)
        self._renamed.append(known.record)
        return True

    def note_listing(self, *, first: bool, last: bool) -> None:
        """How far the listing is, in the directory's state."""
        state = self._directory.state
        so_far = self._untrusted or (state.untrusted_so_far and not first)
        if so_far != state.untrusted_so_far:
            state = state._replace(untrusted_so_far=so_far)
        self._set_times(state.complete)
        if last:
            state = state._replace(
                complete=True,
                untrusted=so_far,
                untrusted_so_far=False,
                listed_ns=self._plan.started_ns,
                start_seq=self._plan.start_seq,
            )
            # What was removed before this listing began cannot come back by any later one.
            for filed, sequence in self._buried.items():
                if sequence <= self._plan.start_seq:
                    self._edit.txn.delete(records.tombstone_key(self._directory.table, filed))
        self._directory.state = state

    def note_stat(self) -> None:
        """One file was asked about, in the directory's state."""
        self._set_times(self._directory.state.complete)
        if self._untrusted:
            self._directory.state = self._directory.state._replace(untrusted=True)

    def finish(self, covered: str | None) -> Changes:
        return Changes(
            self._plan.directory,
            tuple(self._added),
            tuple(self._removed),
            tuple(self._replaced),
            self._unchanged,
            self._kept,
            covered,
            (*self._plain, *_show_names(self._renamed, self._was_shadowed or bool(self._directory.state.shadowed))),
            tuple(self._touched),
        )

    def _set_times(self, was_complete: bool) -> None:
        # What a first listing finds was there before: the directory's times stay at when it was first seen.
        if was_complete and (self._added or self._removed or self._replaced):
            self._directory.set_changed(self._edit.now_ns)

    def _read_tombstones(self) -> dict[bytes, int]:
        table = self._directory.table
        pairs = self._edit.txn.scan(records.tombstone_key(table, b""), records.tombstone_key(table + 1, b""))
        return {key[9:]: records.unpack_id(data) for key, data in pairs}

    def _make(self, listed: Listed) -> Inode:
        """A new inode's record from what the store says."""
        if self._mount is None:
            data = self._edit.txn.get(records.mount_key(self._plan.mount_id))
            if data is None:
                raise errors.Stale("the directory was unmounted while it was listed", subject=self._plan.prefix)
            self._mount = records.unpack_mount(data)
        time_ns = listed.mtime_ns or self._edit.now_ns
        name = to_bytes(listed.name)
        if listed.kind is Kind.DIRECTORY:
            flags = records.STORE_TIMES if listed.mtime_ns else 0
            return tables.make_directory(name, self._plan.mount_id, self._mount.uid, self._mount.gid, time_ns, flags)
        assert listed.fingerprint is not None
        made = Inode(
            listed.kind,
            0 if listed.trusted else records.UNTRUSTED,
            tables.FILE_MODE,
            1,
            self._mount.uid,
            self._mount.gid,
            self._plan.mount_id,
            listed.fingerprint.size,
            time_ns,
            time_ns,
            _FIRST_VERSION,
            0,
            self._plan.directory,
            records.pack_token(listed.fingerprint.token),
            name,
        )
        return _place_attributes(made, listed.attributes)


def _place_attributes(record: Inode, stored: StoredAttributes | None) -> Inode:
    """A file's record with those attributes that the store keeps with its content; ctime stays what the store says of itself."""
    if stored is None:
        return record
    return record._replace(
        mode=record.mode if stored.mode is None else stored.mode,
        uid=record.uid if stored.uid is None else stored.uid,
        gid=record.gid if stored.gid is None else stored.gid,
        mtime_ns=record.mtime_ns if stored.mtime_ns is None else stored.mtime_ns,
    )


def _show_names(changed: Iterable[Inode], shadowed: bool) -> Iterator[bytes]:
    """The names under which any of these is shown; `shadowed`: also those that a file has or had beside a directory of its
    name."""
    for record in changed:
        yield paths.show_name(record.name, record.kind, False)
        if shadowed:
            yield paths.show_name(record.name, Kind.FILE, True)


def _is_same(record: Inode, listed: Listed) -> bool:
    """Whether a file's content is still the known one. A fingerprint that was too young may have stood for two contents, so when
    it is trusted at last, what was cached under it is not to be believed."""
    fingerprint = listed.fingerprint
    assert fingerprint is not None
    return (
        record.size == fingerprint.size
        and records.get_stored_token(record.token) == records.pack_token(fingerprint.token)
        and record.kind is listed.kind
        and not (record.flags & records.UNTRUSTED and listed.trusted)
    )
