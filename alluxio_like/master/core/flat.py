"""Flat listings (all keys below a prefix, in their order) cut into parts of directories, and applied to the namespace.

Owns how keys become directories' entries, when a directory is known to have been listed to its end (a key behind it, or the end
of the whole listing; never because a listing stopped), and who may apply a listing to which directory (`Claims`). A part is the
same contiguous range of names as a page of the directory's own listing, and refresh.py applies it. Functions over a transaction
and plain objects; not thread-safe.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import refresh, tables
from alluxio_like.master.core.model import Changes, Listed, ListingPlan
from alluxio_like.types import Fingerprint, InodeId, Kind, MountId, StoredAttributes, to_bytes


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory that keys lie below."""

    name: str
    kind: Kind = Kind.DIRECTORY
    fingerprint: Fingerprint | None = None
    mtime_ns: int = 0
    trusted: bool = True
    attributes: StoredAttributes | None = None

    @property
    def sort_name(self) -> str:
        return self.name + "/"


@dataclass(frozen=True, slots=True)
class Part:
    """What a page says of one directory: its entries above the sort name `after` (None: from the first on) up to the last of
    these, or to the directory's end (`is_last`). `prefix` is the directory's, below the listing's base; "" is the base itself.
    `is_first`: the first that is said of it."""

    prefix: str
    after: str | None
    entries: tuple[Listed, ...]
    is_last: bool
    is_first: bool


class _Open:
    """A directory in which the listing is."""

    __slots__ = ("after", "entries", "is_new", "prefix")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.after: str | None = None
        self.entries: list[Listed] = []
        self.is_new = True


class Cutter:
    """Cuts the pages of one flat listing. `first`: the directory (its prefix below the base) at whose beginning the listing
    begins; "" for the base itself, which is cut only then: else the listing begins in the middle of it."""

    def __init__(self, first: str) -> None:
        self._with_base = not first
        self._stack = [_Open("")]
        if first:
            self._stack.append(_Open(first))
        self._last: bytes | None = None

    def cut(self, keys: Sequence[Listed], *, ended: bool) -> list[Part]:
        """The next page's parts, parents before their children. `keys` (dataclasses) are named by what stands behind the base; an
        object whose key ends in a slash is listed as a directory. `ended`: no key follows.

        Raises StoreProtocol for keys not strictly ascending by the bytes of their sort names.
        """
        opened = list(self._stack)
        closed: set[str] = set()
        for listed in keys:
            key = listed.sort_name
            self._check_order(key)
            parent = key[: key.rfind("/") + 1]
            while not parent.startswith(self._stack[-1].prefix):
                closed.add(self._stack.pop().prefix)
            while (top := self._stack[-1]).prefix != parent:
                name, _, _ = parent[len(top.prefix) :].partition("/")
                top.entries.append(Folder(name))
                self._stack.append(_Open(f"{top.prefix}{name}/"))
                opened.append(self._stack[-1])
            if parent != key:
                top.entries.append(listed if not parent else _rename(listed, key[len(parent) :]))
        if ended:
            closed.update(directory.prefix for directory in self._stack)
            self._stack.clear()
        return [part for directory in opened if (part := self._take(directory, directory.prefix in closed)) is not None]

    def list_open(self) -> set[str]:
        """The prefixes of the directories in which the listing is."""
        return {directory.prefix for directory in self._stack}

    def _take(self, directory: _Open, is_last: bool) -> Part | None:
        entries, directory.entries = tuple(directory.entries), []
        if (not directory.prefix and not self._with_base) or not (entries or is_last):
            return None
        part = Part(directory.prefix, directory.after, entries, is_last, directory.is_new)
        directory.is_new = False
        if entries:
            directory.after = entries[-1].sort_name
        return part

    def _check_order(self, key: str) -> None:
        raw = to_bytes(key)
        if self._last is not None and raw <= self._last:
            raise errors.StoreProtocol("the store does not list in the order of names, as it must", subject=key)
        self._last = raw


def _rename(listed: Listed, name: str) -> Listed:
    renamed: Listed = replace(cast(Any, listed), name=name)
    return renamed


@dataclass(frozen=True, slots=True)
class Asked:
    """The moment before a page was asked for: what changed later is believed over it."""

    start_seq: int
    started_ns: int


class Target(NamedTuple):
    """What a flat listing does with a directory. `plan` None: it leaves alone what it finds of it; `inode` None: it is not known,
    or another mount's. `is_new`: nothing was known of its children before."""

    inode: InodeId | None
    plan: ListingPlan | None = None
    is_new: bool = False


class Applied(NamedTuple):
    """What applying a page did: the changes of each directory that it was applied to; and all targets known then."""

    changes: list[tuple[Part, Target, Changes]]
    targets: dict[str, Target]


def apply_parts(
    txn: WriteTransaction,
    mount_id: MountId,
    base_prefix: str,
    targets: Mapping[str, Target],
    parts: Sequence[Part],
    asked: Asked,
    *,
    busy: AbstractSet[InodeId],
    since_ns: int,
    now_ns: int,
) -> Applied:
    """Apply a page's parts. `targets` are those known from the pages before, the base and the first directory among them;
    `busy` directories, which others list, and those listed since `since_ns` are left alone. Raises StoreProtocol."""
    known = dict(targets)
    done: list[tuple[Part, Target, Changes]] = []
    for part in parts:
        target = known.get(part.prefix)
        if target is None:
            target = known[part.prefix] = _find_target(txn, mount_id, base_prefix, known, part.prefix, asked)
        if target.inode is None or target.plan is None:
            continue
        if target.inode in busy or (part.is_first and _is_listed(txn, target.inode, since_ns)):
            known[part.prefix] = target._replace(plan=None)
            continue
        try:
            changes = refresh.apply_page(txn, target.plan, part.after, part.entries, part.is_last, now_ns)
            done.append((part, target, changes))
        except errors.Stale:
            # Removed, mounted over, or listed by somebody who began later: not ours any more.
            known[part.prefix] = target._replace(plan=None)
    return Applied(done, known)


def make_target(txn: ReadTransaction, directory: InodeId, mount_id: MountId, prefix: str, asked: Asked) -> Target:
    """A directory of a mount as something to apply to; `prefix` is the whole one in the store."""
    if tables.get_inode(txn, directory).mount_id != mount_id:
        return Target(None)
    state = tables.get_state(txn, tables.get_table(txn, directory))
    is_new = not (state.complete or state.files or state.directories)
    return Target(directory, ListingPlan(directory, mount_id, prefix, asked.start_seq, asked.started_ns), is_new)


def _find_target(
    txn: WriteTransaction, mount_id: MountId, base_prefix: str, known: Mapping[str, Target], prefix: str, asked: Asked
) -> Target:
    """A directory that a page has come to: by its name in its parent, which came before it."""
    name_at = prefix.rfind("/", 0, -1) + 1
    parent = known.get(prefix[:name_at], Target(None)).inode
    if parent is None:
        return Target(None)
    inode = tables.lookup_child(txn, tables.get_table(txn, parent), to_bytes(prefix[name_at:]))
    return make_target(txn, inode, mount_id, base_prefix + prefix, asked) if inode is not None else Target(None)


def _is_listed(txn: WriteTransaction, directory: InodeId, since_ns: int) -> bool:
    state = tables.get_state(txn, tables.get_table(txn, directory))
    return state.complete and state.listed_ns >= since_ns


@dataclass(slots=True, eq=False)
class Run:
    """One flat listing's part in `Claims`: the directories in which it is, and those that it must leave alone for good."""

    ended: bool = False
    open: set[InodeId] = field(default_factory=set)
    taken: set[InodeId] = field(default_factory=set)


class Claims:
    """Who lists which directory, so that two listings of one directory never overlap in time.

    A directory's own listing goes before flat ones: from when it starts, every flat one under way leaves the directory alone for
    good (what it was told of it is older). Of two flat ones it is that which comes to the directory first. A listing that starts
    while a flat one's page is being applied must wait for that before it is planned; its caller sees to it.
    """

    def __init__(self) -> None:
        self._own: set[InodeId] = set()
        self._runs: list[Run] = []

    def start(self, directory: InodeId) -> None:
        """A listing of this directory alone begins."""
        self._own.add(directory)
        for run in self._runs:
            run.taken.add(directory)

    def end(self, directory: InodeId) -> None:
        self._own.discard(directory)

    def start_run(self) -> Run:
        """A flat listing begins: to be called before its store is first asked."""
        run = Run(taken=self._own.union(*(other.open for other in self._runs)))
        self._runs.append(run)
        return run

    def enter(self, run: Run, directory: InodeId) -> None:
        """A flat listing was applied to a directory that it is not through with."""
        run.open.add(directory)
        self._take(run, directory)

    def leave(self, run: Run, directory: InodeId) -> None:
        """A flat listing was applied to a directory to its end, or has nothing to do with it any more."""
        run.open.discard(directory)
        self._take(run, directory)

    def _take(self, run: Run, directory: InodeId) -> None:
        for other in self._runs:
            if other is not run:
                other.taken.add(directory)

    def end_run(self, run: Run) -> None:
        run.ended = True
        self._runs.remove(run)
