"""Files that a client has made by itself, in directories that were delegated to it, come into the namespace.

Owns how: with the inode ids that were reserved for them, as they were shown to programs already, their times too; under the name
that each was given last; what nobody has sealed yet as an empty file. Whatever has taken a name meanwhile keeps it, and the file
gets a clear one beside it. Quotas, limits of the store and defaults of the directory were for who made the file to look at; it is
there, so it is kept. Each has the operation ids that CREATE, a rename and the seal have when they come by themselves, so that a
repeat of any finds what was done.

Nothing is waited for here, since whoever takes a delegation back waits for this: a directory whose own move the store has not
followed yet takes files as well (they are as those that were there before the move and not uploaded), and one of a mount that was
made read-only keeps what was made before.

Functions over a transaction. Nobody's delegation is looked at: who publishes late, or for a client that is no more, may.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from alluxio_like import errors
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.core import changes, conflicts, namespace, operations, paths, records, restoring, tables, trash, versions
from alluxio_like.master.core.changes import Outcome
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.records import Dirty, Inode
from alluxio_like.master.core.tables import Directory, Edit
from alluxio_like.types import InodeId, Kind, MountId, Recall, VersionId, to_bytes

SEAL = ".s"
"""Behind the operation id of a file's creation: that of its seal."""
_NOTHING = b"null"

Refuses = Callable[[MountId, str], bool]
"""Whether a mount's store can have nothing of a name."""


class NewFile(Protocol):
    """What is to be known of a file: cache/new_files.py."""

    @property
    def operation_id(self) -> str: ...
    @property
    def inode(self) -> InodeId: ...
    @property
    def parent(self) -> InodeId: ...
    @property
    def name(self) -> str: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def changed_ns(self) -> int: ...
    @property
    def made_ns(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def atime_ns(self) -> int | None: ...
    @property
    def sealed(self) -> bool: ...
    @property
    def size(self) -> int: ...
    @property
    def renamed_id(self) -> str: ...
    @property
    def left(self) -> InodeId: ...
    @property
    def left_ns(self) -> int: ...


class Published(NamedTuple):
    """What has become of one file: `sealed` is of its seal, where it has a content. `kept`: what it is called beside what has its
    name."""

    outcome: Outcome
    sealed: Outcome | None = None
    is_new: bool = False
    kept: bytes = b""

    @property
    def newest(self) -> Outcome:
        """Of its seal, or else of its creation."""
        return self.outcome if self.sealed is None else self.sealed


class Packer(NamedTuple):
    """How results of operations are stored."""

    pack: Callable[[Outcome], bytes]
    unpack: Callable[[bytes], Outcome]


def publish(
    txn: WriteTransaction, files: Sequence[NewFile], holder: str, now_ns: int, packer: Packer, refuses: Refuses
) -> list[Published]:
    """Have all of them there, in their order, or none: raises for one that cannot be. NotFound (its directory is gone),
    NotADirectory, InvalidArgument, ReadOnly (it is no mount's), Conflict (see restoring.check_known)."""
    work = _Work(txn, holder, now_ns, packer, refuses)
    made = [work.make(file) for file in files]
    work.edit.finish()
    # What has been there already changes one by one.
    return [work.seal(file, one) if file.sealed and one.sealed is None else one for file, one in zip(files, made, strict=True)]


class _Work:
    """One call of `publish`."""

    def __init__(self, txn: WriteTransaction, holder: str, now_ns: int, packer: Packer, refuses: Refuses) -> None:
        self._txn = txn
        self._holder = holder
        self._now_ns = now_ns
        self._packer = packer
        self._refuses = refuses
        self.edit = Edit(txn, now_ns)
        self._opened: dict[InodeId, Directory] = {}
        self._stop = tables.get_next_inode(txn)
        self._second = restoring.get_next_version(txn, 1)
        self._dirty = {True: records.pack_dirty(Dirty((holder,))), False: records.pack_dirty(Dirty())}

    def make(self, file: NewFile) -> Published:
        txn, made = self._txn, [Published(Outcome(file.inode, ()))]

        def create() -> bytes:
            if tables.lookup_inode(txn, file.inode) is None:
                made[0] = self._create(file)
            # (Else it was published so long ago that the result is forgotten: nobody else is given its id.)
            return self._packer.pack(made[0].outcome)

        raw = operations.run_once(txn, file.operation_id, "create", self._now_ns, create)
        one = made[0]
        if one.is_new:
            packed_name = self._packer.pack(one.outcome)
            operations.run_once(txn, file.renamed_id, "rename", self._now_ns, lambda: packed_name)
        if not one.is_new:
            one = one._replace(outcome=self._packer.unpack(raw)._replace(recalls=()))
            if one.outcome.inode != file.inode:
                raise errors.NotFound("the call that was to make the file was answered with another one", subject=file.name)
            return one
        if file.sealed:
            sealed = one.outcome._replace(version=self._second)
            packed = self._packer.pack(sealed)
            operations.run_once(txn, file.operation_id + SEAL, "seal", self._now_ns, lambda: packed)
            return one._replace(sealed=sealed)
        return one

    def _create(self, file: NewFile) -> Published:
        directory = self._open(file.parent)
        name = to_bytes(file.name)
        self._check(file, name)
        chosen = name
        if self._is_taken(directory, name, file.name):
            chosen = conflicts.choose_name(self._txn, directory.table, name, self._now_ns)
        record = Inode(
            Kind.FILE,
            records.LOCAL | records.OWN,
            file.mode,
            1,
            file.uid,
            file.gid,
            directory.record.mount_id,
            file.size if file.sealed else 0,
            file.mtime_ns,
            file.changed_ns,
            self._second if file.sealed else VersionId(1),
            0,
            directory.inode,
            b"",
            chosen,
            file.atime_ns,
        )
        self.edit.link(directory, record, file.inode)
        self._txn.put(records.dirty_key(file.inode), self._dirty[file.sealed])
        directory.note_changed(file.made_ns)
        left = self._leave(file)
        if chosen == name:
            return Published(Outcome(file.inode, (Recall(file.parent, (name,)), *left)), None, is_new=True)
        conflicts.note_kept(self._txn, file.inode, name, chosen)
        recalls = (Recall(file.parent, (name, chosen)), *left)
        return Published(Outcome(file.inode, recalls), None, is_new=True, kept=chosen)

    def _leave(self, file: NewFile) -> tuple[Recall, ...]:
        """What it was moved from was changed by that. (No name there: nobody has heard of the one that it had.)"""
        if not file.left:
            return ()
        try:
            directory = self._open(file.left)
        except (errors.NotFound, errors.NotADirectory):
            return ()  # it was removed since
        directory.note_changed(file.left_ns)
        return (Recall(file.left),)

    def _open(self, inode: InodeId) -> Directory:
        if inode not in self._opened:
            changes.check_not_frozen(inode)
            directory = self.edit.open_directory(inode)
            if directory.record.mount_id == NO_MOUNT:
                raise errors.ReadOnly("no store is mounted there: nothing can be written", subject=str(inode))
            self._opened[inode] = directory
        return self._opened[inode]

    def _check(self, file: NewFile, name: bytes) -> None:
        if file.inode >= self._stop:
            raise errors.InvalidArgument("no such inode id was reserved", subject=str(file.inode))
        restoring.check_known(self._txn, file.inode)
        if not name or b"/" in name or len(name) > paths.NAME_MAX_BYTES or paths.is_odd(name):
            raise errors.InvalidArgument("such a name cannot be made: it would stand for another one", subject=file.name)

    def _is_taken(self, directory: Directory, name: bytes, shown: str) -> bool:
        txn = self._txn
        return (
            namespace.find_child(txn, directory.table, name, directory.state) is not None
            or trash.lookup_hidden(txn, directory.inode, name) is not None
            or self._refuses(directory.record.mount_id, shown)
        )

    def seal(self, file: NewFile, made: Published) -> Published:
        """The content of a file that was there without it."""
        txn = self._txn
        sealed: list[Outcome] = []

        def seal() -> bytes:
            sealed.append(
                versions.seal(
                    txn, file.inode, file.size, file.mtime_ns, (self._holder,), self._now_ns, changed_ns=file.changed_ns
                )
            )
            return self._packer.pack(sealed[0])

        raw = operations.run_once(txn, file.operation_id + SEAL, "seal", self._now_ns, seal)
        return made._replace(sealed=sealed[0] if sealed else self._packer.unpack(raw)._replace(recalls=()))


def list_recalls(published: Sequence[Published]) -> tuple[Recall, ...]:
    """What all of them take back: one recall for each directory."""
    names: dict[InodeId, dict[bytes, None]] = {}
    inodes: dict[InodeId, dict[InodeId, None]] = {}
    for one in published:
        # (The recalls of a seal right with its creation are those.)
        outcome = one.outcome if one.is_new or one.sealed is None else one.sealed
        for recall in outcome.recalls:
            names.setdefault(recall.directory, {}).update(dict.fromkeys(recall.names))
            inodes.setdefault(recall.directory, {}).update(dict.fromkeys(recall.inodes))
    return tuple(Recall(directory, tuple(called), inodes=tuple(inodes.get(directory, ()))) for directory, called in names.items())
