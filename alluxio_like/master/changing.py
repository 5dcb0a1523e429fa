"""What programs change, as they ask for it: the service Changes over the core's functions.

Owns what the core leaves to its caller: that names are known before something is decided about them, waiting while a store has to
follow an earlier change first, one execution for each operation id, durability, and telling who holds leases. What a change means
is core's (changes.py, versions.py), how stores follow is follower.py's.

Rule of concurrency: event loop alone. A change that was begun goes on to its end when its caller is cancelled, so that what has
committed is always told.
"""

import json
import logging
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from alluxio_like import errors
from alluxio_like.cache.new_files import NewFile
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import acls, changes, conflicts, keys, namespace, operations, tables, unpersisted, versions, xattrs
from alluxio_like.master.core.changes import Outcome
from alluxio_like.master.core.growth import Growth
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.publishing import Packer
from alluxio_like.master.delegating import Delegator
from alluxio_like.master.empty_files import EmptyFiles
from alluxio_like.master.follower import Follower, wait_until
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.publishing import Publisher, get_sealed
from alluxio_like.master.snapshot_trees import is_frozen, open_tree
from alluxio_like.master.telling import Teller
from alluxio_like.master.unpersisted_files import UnpersistedFiles
from alluxio_like.master.uploads import Uploads
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.context import get_lease, get_remaining_s
from alluxio_like.rpc.messages_writing import (
    Changed,
    NewAttributes,
    NewName,
    Persisted,
    Persisting,
    PolicyAt,
    Published,
    Renaming,
    Sealed,
    SealedDraft,
    Unpersisted,
    UploadPlan,
    WritePolicy,
    XattrChange,
)
from alluxio_like.types import (
    Entry,
    FileId,
    Fingerprint,
    InodeId,
    Kind,
    MountId,
    Recall,
    VersionId,
    WorkerId,
    to_bytes,
    to_str,
)
from alluxio_like.ufs.writing import get_writable

A = TypeVar("A", Changed, Sealed)

log = logging.getLogger(__name__)

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

ANSWER_S = 1.0
"""Less than the caller waits, so that it hears the reason from us."""
_NOT_NOW = (errors.StoreUnavailable, errors.StoreThrottled, errors.TimedOut)
"""While a store does not answer, what is known of it must do."""
_MOST_STALE = 3


class ChangesService:
    """ChangesHandler of rpc.changes."""

    def __init__(
        self,
        meta: MetaStore,
        lister: Lister,
        mounts: MountTable,
        coherence: Coherence,
        follower: Follower,
        unpersisted: UnpersistedFiles,
        empty: EmptyFiles,
        note_sealed: Callable[[InodeId], None],
        growth: Growth,
        *,
        clock: Clock,
        io_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._meta = meta
        self._lister = lister
        self._teller = Teller(meta, lister)
        self._mounts = mounts
        self._coherence = coherence
        self._follower = follower
        self._unpersisted = unpersisted
        self._empty = empty
        self._note_sealed = note_sealed
        self._growth = growth
        self._clock = clock
        self._io_timeout_s = io_timeout_s
        self._uploads = Uploads(meta, follower, empty, self._get_wait_s, clock=clock)
        self._delegator = Delegator(meta, mounts, coherence)
        packer = Packer(_pack_outcome, _unpack_outcome)
        self._publisher = Publisher(
            meta, mounts, coherence, follower, self._teller, empty, note_sealed, packer, clock=clock, metrics=metrics
        )

    # -- names ---------------------------------------------------------------------------------------------------------------

    async def create(self, operation_id: str, new: NewName) -> Changed:
        made = changes.NewInode(new.kind, new.mode, new.uid, new.gid, to_bytes(new.target), new.device, new.asked_mode)
        if len(made.target) > changes.MAX_SYMLINK_BYTES:
            raise errors.NameTooLong(f"a symbolic link has at most {changes.MAX_SYMLINK_BYTES} bytes", subject=new.name)
        if new.kind is Kind.SYMLINK and not made.target:
            raise errors.NotFound("a symbolic link leads somewhere", subject=new.name)

        def make_unnamed(txn: WriteTransaction, now_ns: int) -> Outcome:
            return changes.create_unnamed(txn, new.parent, made, now_ns)

        if new.unnamed:
            return await self._change(operation_id, "create", make_unnamed)

        delegation = self._delegator.begin(get_lease()) if new.delegate and new.kind is Kind.DIRECTORY else None

        def apply(txn: WriteTransaction, now_ns: int) -> Outcome:
            limit = self._check_name(txn, new.parent, new.name)
            outcome = changes.create(txn, new.parent, to_bytes(new.name), made, now_ns, max_key_bytes=limit)
            if delegation is not None:
                delegation.note(txn, outcome.inode)
            return outcome

        making = self._change(
            operation_id,
            "create",
            apply,
            place=(new.parent, new.name),
            prepare=lambda: self._know((new.parent, new.name)),
            note=None if delegation is None else delegation.give,
        )
        changed = await (making if delegation is None else run_to_end(delegation.make(making)))
        if new.kind is Kind.FILE and changed.entry is not None:
            self._empty.note_created(changed.entry.attr.inode)
        return changed

    async def link(self, operation_id: str, inode: InodeId, parent: InodeId, name: str) -> Changed:
        def apply(txn: WriteTransaction, now_ns: int) -> Outcome:
            limit = self._check_name(txn, parent, name)
            return changes.link(txn, inode, parent, to_bytes(name), now_ns, max_key_bytes=limit)

        place = (parent, name)
        changed = await self._change(operation_id, "link", apply, place=place, prepare=lambda: self._know(place))
        if changed.entry is not None and changed.entry.attr.nlink == 1:
            # Its first name: nothing may ever be written into it.
            self._empty.note_created(inode)
        return changed

    async def remove(self, operation_id: str, parent: InodeId, name: str, *, directory: bool) -> Changed:
        lease = get_lease()

        def apply(txn: WriteTransaction, now_ns: int) -> Outcome:
            if directory:
                self._delegator.check(txn, parent, name, lease)
                return changes.rmdir(txn, parent, to_bytes(name), now_ns)
            return changes.unlink(txn, parent, to_bytes(name), now_ns)

        async def prepare() -> None:
            await self._know((parent, name))
            if directory:
                await self._know_all_below(parent, name)

        if not directory:
            return await self._change(operation_id, "unlink", apply, prepare=prepare)
        return await self._change(operation_id, "rmdir", apply, prepare=prepare, note=self._delegator.forget)

    async def rename(self, operation_id: str, renaming: Renaming) -> Changed:
        old = renaming.parent, to_bytes(renaming.name)
        new = renaming.new_parent, to_bytes(renaming.new_name)
        if renaming.exchange and renaming.no_replace:
            raise errors.InvalidArgument("a rename either swaps two names or replaces none")

        lease = get_lease()

        def apply(txn: WriteTransaction, now_ns: int) -> Outcome:
            limit = self._check_name(txn, renaming.new_parent, renaming.new_name)
            self._delegator.check(txn, renaming.new_parent, renaming.new_name, lease)
            if renaming.exchange:
                self._check_name(txn, renaming.parent, renaming.name)
            if renaming.exchange:
                return changes.exchange(txn, *old, *new, now_ns, max_key_bytes=limit)
            return changes.rename(txn, *old, *new, now_ns, max_key_bytes=limit, replace=not renaming.no_replace)

        async def prepare() -> None:
            await self._know((renaming.parent, renaming.name), (renaming.new_parent, renaming.new_name))
            if not renaming.exchange and not renaming.no_replace and self._is_directory(renaming.parent, renaming.name):
                await self._know_all_below(renaming.new_parent, renaming.new_name)

        place = (renaming.new_parent, renaming.new_name)
        return await self._change(operation_id, "rename", apply, place=place, prepare=prepare)

    # -- attributes ----------------------------------------------------------------------------------------------------------

    async def set_attributes(self, operation_id: str, inode: InodeId, wanted: NewAttributes) -> Changed:
        core = changes.Attributes(wanted.mode, wanted.uid, wanted.gid, wanted.atime_ns, wanted.mtime_ns)

        def apply(txn: WriteTransaction, now_ns: int) -> Outcome:
            return changes.set_attributes(txn, inode, core, now_ns)

        note = self._delegator.end if wanted.mode is not None and wanted.mode & stat.S_ISGID else None
        return await self._change(operation_id, "setattr", apply, note=note)

    async def reserve_inodes(self, count: int) -> InodeId:
        first = await self._meta.write(lambda txn: tables.reserve_inodes(txn, count))
        # Who is given them uses them for long without a word: no power loss may undo it.
        await self._meta.flush()
        return first

    async def publish(self, worker_id: WorkerId, lease: str, files: Sequence[NewFile]) -> Published:
        return await self._publisher.publish(worker_id, lease, files)

    async def flush(self) -> None:
        await self._meta.flush()

    async def read_link(self, inode: InodeId) -> str:
        with self._meta.read() as txn:
            return to_str(changes.read_link(*open_tree(txn, inode)))

    async def get_xattrs(self, inode: InodeId) -> dict[bytes, bytes]:
        with self._meta.read() as txn:
            return xattrs.get_xattrs(*open_tree(txn, inode))

    async def set_xattr(self, operation_id: str, inode: InodeId, change: XattrChange) -> Changed:
        def apply(txn: WriteTransaction, now_ns: int) -> Outcome:
            return xattrs.set_xattr(
                txn,
                inode,
                change.name,
                change.value,
                now_ns,
                create=change.create,
                replace=change.replace,
                kill_sgid=change.kill_sgid,
            )

        note = self._delegator.end if change.name == acls.DEFAULT else None
        return await self._change(operation_id, "setxattr", apply, note=note)

    # -- versions ------------------------------------------------------------------------------------------------------------

    async def seal(self, operation_id: str, draft: SealedDraft) -> Sealed:
        inode, holder = draft.inode, WorkerId(draft.worker_id)

        def apply(txn: WriteTransaction, now_ns: int) -> Outcome:
            return versions.seal(txn, inode, draft.size, draft.mtime_ns, (holder,), now_ns, early=draft.early)

        def view(txn: ReadTransaction, outcome: Outcome) -> Sealed:
            entry = namespace.get_entry(txn, inode)
            ref = entry.ref
            assert ref is not None
            ref = get_sealed(ref, outcome, draft.size, holder)
            policy = self._find_policy(txn, inode).policy
            recalls = outcome.recalls if draft.lease else ()
            return Sealed(ref, policy, unwanted=entry.attr.nlink == 0, recalls=recalls, over_quota=outcome.over_quota)

        def note(_: Outcome, sealed: Sealed) -> Sealed:
            self._growth.note_sealed(inode, draft.base_version, sealed.ref.version, extends=draft.extends)
            return sealed

        sealed = await self._commit(operation_id, "seal", apply, view, lease=draft.lease, note=note)
        self._empty.note_sealed(inode)
        self._note_sealed(inode)
        return sealed

    async def note_holders(self, file_id: FileId, worker_ids: Sequence[WorkerId]) -> None:
        holders = tuple(worker_ids)
        await self._meta.write(lambda txn: unpersisted.add_holders(txn, file_id.inode, file_id.version, holders))
        await self._meta.flush()

    async def plan_upload(self, file_id: FileId) -> UploadPlan:
        return await self._uploads.plan(file_id)

    async def plan_uploads(self, file_ids: Sequence[FileId]) -> list[UploadPlan | errors.AlluxioLikeError]:
        return await self._uploads.plan_many(file_ids)

    async def end_upload(self, file_id: FileId) -> None:
        self._follower.end_upload(file_id)

    async def note_persisted(self, persisted: Sequence[Persisted]) -> list[errors.AlluxioLikeError | None]:
        return await self._uploads.note_persisted(persisted)

    async def note_conflict(self, operation_id: str, file_id: FileId) -> Changed:
        key, expected, there = await self._check_conflict(file_id)

        def set_aside(txn: WriteTransaction, now_ns: int) -> Outcome:
            record = tables.get_inode(txn, file_id.inode)
            now = keys.get_key(txn, file_id.inode, record, natural=True), tables.get_dirty(txn, file_id.inode).base
            if now != (key, expected):
                # It was renamed while the store was asked, or another worker has told of what is there.
                raise errors.Conflict("something else is expected there by now: plan the upload again", subject=key)
            return conflicts.set_aside(txn, file_id.inode, file_id.version, now_ns)

        changed = await self._change(operation_id, "conflict", set_aside)
        self._follower.end_upload(file_id)
        if changed.entry is not None:
            self._follower.report_conflict(file_id.inode, f"the upload of version {file_id.version}", key, expected, there)
        return changed

    async def _check_conflict(self, file_id: FileId) -> tuple[str, Fingerprint | None, Fingerprint | None]:
        """Whether something that is not ours is where a version is to go: its key, what was expected there, and what is (None
        also of a directory). Raises Conflict where that is not so: the upload is to be planned again; Unavailable: try again."""
        with self._meta.read() as txn:
            record = tables.get_inode(txn, file_id.inode)
            if record.version != file_id.version:
                raise errors.Stale("this version is not wanted any more", subject=str(file_id.inode))
            key = keys.get_key(txn, file_id.inode, record, natural=True)
            base = tables.get_dirty(txn, file_id.inode).base
        if not self._follower.is_uploading(file_id, record.mount_id, key):
            # It was renamed since: what is at its new key may just be changed by a step of the journal.
            raise errors.Conflict("the file belongs elsewhere by now: plan the upload again", subject=key)
        try:
            there = (await self._mounts.get_ufs(record.mount_id).stat(key)).fingerprint
        except errors.NotFound:
            there = None
        except errors.IsADirectory:
            return key, base, None
        empty = (
            await self._empty.lookup_put(record.mount_id, key, file_id.inode) if there is not None and not there.size else None
        )
        if empty is not None:
            core = versions.UploadPlan(record.mount_id, key, None)
            now_ns = self._clock.now_ns()
            await self._meta.write(lambda txn: versions.note_persisted(txn, file_id.inode, VersionId(1), core, empty, now_ns))
        if there == base or empty is not None:
            raise errors.Conflict("the store has what was expected there: plan the upload again", subject=key)
        self._follower.check_heard(key)
        return key, base, there

    # -- policies ------------------------------------------------------------------------------------------------------------

    async def set_write_policy(self, operation_id: str, path: str, policy: WritePolicy | None) -> PolicyAt:
        # Idempotent by itself.
        inode = await self._get_inode(path)
        with self._meta.read() as txn:
            mount_id, prefix = self._get_prefix(txn, inode, path)
        await run_to_end(self._mounts.set_policy(mount_id, prefix, policy))
        return await self.get_write_policy(path)

    async def get_write_policy(self, path: str) -> PolicyAt:
        inode = await self._get_inode(path)
        with self._meta.read() as txn:
            mount_id, prefix = self._get_prefix(txn, inode, path)
            return self._mounts.find_policy(txn, mount_id, prefix)

    def _get_prefix(self, txn: ReadTransaction, inode: InodeId, path: str) -> tuple[MountId, str]:
        record = tables.get_inode(txn, inode)
        if record.mount_id == NO_MOUNT:
            raise errors.InvalidArgument("no store is mounted there: see `alluxio-like mounts`", subject=path)
        if record.kind is not Kind.DIRECTORY:
            raise errors.NotADirectory("policies are those of directories: name the one that the file is in", subject=path)
        return record.mount_id, keys.get_prefix(txn, inode, record, natural=True)

    def _find_policy(self, txn: ReadTransaction, inode: InodeId) -> PolicyAt:
        record = tables.get_inode(txn, inode)
        return self._mounts.find_policy(txn, record.mount_id, keys.get_key(txn, inode, record, natural=True))

    # -- what is not at the store --------------------------------------------------------------------------------------------

    async def list_unpersisted(self, path: str, limit: int) -> Unpersisted:
        return await self._unpersisted.summarize(await self._get_inode(path), limit)

    async def persist(self, path: str) -> Persisting:
        return await self._unpersisted.persist(await self._get_inode(path))

    async def _get_inode(self, path: str) -> InodeId:
        entry = (await self._lister.resolve_path(path)).entry
        if entry is None:
            raise errors.NotFound("no such file or directory: see `alluxio-like fs ls` of the one above it", subject=path)
        if is_frozen(entry.attr.inode):
            raise errors.InvalidArgument("what is below .snapshots is frozen: ask for the directory itself", subject=path)
        return entry.attr.inode

    # -- how a change is made ------------------------------------------------------------------------------------------------

    async def _change(
        self,
        operation_id: str,
        method: str,
        apply: Callable[[WriteTransaction, int], Outcome],
        *,
        place: tuple[InodeId, str] | None = None,
        prepare: Callable[[], Awaitable[None]] | None = None,
        note: Callable[[Outcome, Changed], Changed] | None = None,
    ) -> Changed:
        """Make a change once it can be decided and the store is ready for it. `place`: where its inode is then. `note`: see
        `_commit`."""

        def view(txn: ReadTransaction, outcome: Outcome) -> Changed:
            return Changed(_read_entry(txn, outcome.inode, place), outcome.recalls)

        deadline = self._clock.monotonic() + self._get_wait_s()
        stale = 0
        while True:
            if prepare is not None:
                await prepare()
            progress = self._follower.progress
            try:
                return await self._commit(operation_id, method, apply, view, lease=get_lease(), durable=False, note=note)
            except errors.Stale:
                # A listing has ended in between, or was undone: what it has not covered is asked for again.
                stale += 1
                if prepare is None or stale >= _MOST_STALE:
                    raise
            except errors.Unavailable:
                if not await wait_until(progress, deadline - self._clock.monotonic()):
                    raise

    async def _commit(
        self,
        operation_id: str,
        method: str,
        apply: Callable[[WriteTransaction, int], Outcome],
        view: Callable[[ReadTransaction, Outcome], A],
        *,
        lease: str,
        durable: bool = True,
        note: Callable[[Outcome, A], A] | None = None,
    ) -> A:
        """`lease`: whose change it is, which is told by the answer. `durable`: when it returns. Names are made so by `flush`, or
        soon. `note`: what is to be done with the answer as soon as it is so, before others are told anything."""
        now_ns = self._clock.now_ns()

        def work(txn: WriteTransaction) -> tuple[Outcome, A]:
            made: list[Outcome] = []

            def make() -> bytes:
                made.append(apply(txn, now_ns))
                return _pack_outcome(made[0])

            raw = operations.run_once(txn, operation_id, method, now_ns, make)
            outcome = made[0] if made else _unpack_outcome(raw)
            return outcome, view(txn, outcome)

        async def commit() -> A:
            outcome, answer = await self._meta.write(work)
            if note is not None:
                answer = note(outcome, answer)
            self._follower.wake()
            telling = self._coherence.begin(outcome.recalls, source=lease)
            if durable:
                # (Those who are told confirm it meanwhile.)
                await self._meta.flush()
            else:
                self._meta.flush_soon()
            await self._coherence.wait_confirmed(telling)
            return replace(answer, told=self._teller.tell(outcome.recalls, lease))

        return await run_to_end(commit())

    def _get_wait_s(self) -> float:
        remaining = get_remaining_s()
        return self._io_timeout_s if remaining is None else max(0.1, min(self._io_timeout_s, remaining - ANSWER_S))

    # -- what is known -------------------------------------------------------------------------------------------------------

    async def _know(self, *places: tuple[InodeId, str]) -> None:
        """Have names covered by a listing that is still believed, as a lookup has. Raises NotFound, NotADirectory, and the
        store's errors where nothing is known of the directory."""
        for parent, name in places:
            changes.check_not_frozen(parent)
            try:
                await self._lister.lookup(parent, name)
            except _NOT_NOW:
                with self._meta.read() as txn:
                    if not namespace.get_dir_state(txn, parent).complete:
                        raise

    async def _know_all_below(self, parent: InodeId, name: str) -> None:
        """Have all of a directory known, if there is one of that name: it is to be empty."""
        changes.check_not_frozen(parent)
        with self._meta.read() as txn:
            entry = namespace.lookup(txn, parent, name)
            if entry is None or entry.attr.kind is not Kind.DIRECTORY:
                return
            state = namespace.get_dir_state(txn, entry.attr.inode)
        if state.files or state.directories or self._lister.is_listed(entry.attr.inode, 0):
            return
        try:
            await self._lister.refresh(entry.attr.inode, self._clock.now_ns())
        except _NOT_NOW:
            if not state.complete:
                raise

    def _is_directory(self, parent: InodeId, name: str) -> bool:
        with self._meta.read() as txn:
            entry = namespace.lookup(txn, parent, name)
        return entry is not None and entry.attr.kind is Kind.DIRECTORY

    def _check_name(self, txn: ReadTransaction, directory: InodeId, name: str) -> int:
        """Raises InvalidArgument for what the directory's store can have nothing by that name; else bytes that a key may have."""
        mount_id = tables.get_directory(txn, directory).mount_id
        if not self._mounts.can_be_written(mount_id):
            return 0  # which is refused for that
        at_root = self._mounts.get_record(mount_id).root == directory
        if problem := get_writable(self._mounts.get_ufs(mount_id)).refuse_name(name, at_root=at_root):
            raise errors.InvalidArgument(f"choose another name: {problem}", subject=name)
        return self._mounts.get_key_limit(mount_id)


def _read_entry(txn: ReadTransaction, inode: InodeId, place: tuple[InodeId, str] | None) -> Entry | None:
    """An inode as it is now, under the name that a change gave it if it still has that."""
    try:
        found = namespace.lookup(txn, *place) if place is not None else None
        return found if found is not None and found.attr.inode == inode else namespace.get_entry(txn, inode)
    except errors.NotFound:
        return None


def _pack_outcome(outcome: Outcome) -> bytes:
    recalls = [
        [recall.directory, [name.hex() for name in recall.names], recall.all_names, list(recall.inodes)]
        for recall in outcome.recalls
    ]
    return _encode([outcome.inode, recalls, outcome.version, outcome.over_quota]).encode()


def _unpack_outcome(data: bytes) -> Outcome:
    # (The last is missing in what an earlier release has left.)
    inode, recalls, version, *over_quota = json.loads(data)
    return Outcome(
        InodeId(inode),
        tuple(
            Recall(InodeId(directory), tuple(map(bytes.fromhex, names)), all_names, inodes=tuple(map(InodeId, inodes)))
            for directory, names, all_names, inodes in recalls
        ),
        VersionId(version),
        bool(over_quota and over_quota[0]),
    )
