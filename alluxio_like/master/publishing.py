"""Files that clients have made by themselves, published by the workers that have their bytes.

Owns what core leaves to its caller: that one bad file keeps no other away, durability, telling who holds leases. Waits neither
for a store nor for a delegation to be taken back: who takes one back waits for this. Event loop alone.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from alluxio_like import errors
from alluxio_like.cache.new_files import NewFile
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.coherence import Coherence, Telling
from alluxio_like.master.core import keys, namespace, publishing, tables
from alluxio_like.master.core.changes import Outcome
from alluxio_like.master.core.publishing import Packer, Published
from alluxio_like.master.empty_files import EmptyFiles
from alluxio_like.master.follower import Follower
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.telling import Teller
from alluxio_like.metrics import Metrics
from alluxio_like.rpc import messages_writing as wire
from alluxio_like.rpc.messages_writing import PublishedFile
from alluxio_like.types import OWN_TOKEN, FileRef, Fingerprint, InodeId, MountId, Recall, VersionId, WorkerId, to_bytes, to_str
from alluxio_like.ufs.writing import get_writable

log = logging.getLogger(__name__)

MOST_FILES = 1024
"""In one call."""
_Made = tuple[list[Published], list[PublishedFile]]


class Publisher:
    """See the module."""

    def __init__(
        self,
        meta: MetaStore,
        mounts: MountTable,
        coherence: Coherence,
        follower: Follower,
        teller: Teller,
        empty: EmptyFiles,
        note_sealed: Callable[[InodeId], None],
        packer: Packer,
        *,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._meta = meta
        self._mounts = mounts
        self._coherence = coherence
        self._follower = follower
        self._teller = teller
        self._empty = empty
        self._note_sealed = note_sealed
        self._packer = packer
        self._clock = clock
        self._metrics = metrics

    async def publish(self, worker_id: WorkerId, lease: str, files: Sequence[NewFile]) -> wire.Published:
        """See rpc.changes.ChangesHandler."""
        if len(files) > MOST_FILES:
            raise errors.InvalidArgument(f"at most {MOST_FILES} files in one call", subject=str(len(files)))
        return await run_to_end(self._publish(worker_id, lease, files))

    async def _publish(self, worker_id: WorkerId, lease: str, files: Sequence[NewFile]) -> wire.Published:
        results: dict[int, PublishedFile] = {}
        told: list[Telling] = []
        recalls: list[Recall] = []
        for numbers, (made, shown) in await self._write_all(worker_id, files, range(len(files)), results):
            results.update(zip(numbers, shown, strict=True))
            mine = publishing.list_recalls(made)
            told += self._tell(mine, lease)
            recalls += mine
            self._note([files[number] for number in numbers], made)
        await self._meta.flush()
        for telling in told:
            await self._coherence.wait_confirmed(telling)
        self._metrics.files_published.inc(sum(one.error is None for one in results.values()))
        answer = tuple(results[number] for number in range(len(files)))
        return wire.Published(answer, tuple(recalls) if lease else (), self._teller.tell_many(recalls, lease))

    async def _write_all(
        self, worker_id: WorkerId, files: Sequence[NewFile], wanted: Sequence[int], results: dict[int, PublishedFile]
    ) -> list[tuple[Sequence[int], _Made]]:
        """All of them in one transaction, or each in its own where one cannot be: why goes to the results."""
        try:
            return [(wanted, await self._write(worker_id, [files[number] for number in wanted]))]
        except Exception as error:  # noqa: BLE001 (found and told below, of the file whose it is)
            if len(wanted) == 1:
                results[wanted[0]] = PublishedFile(None, error=_describe(error, files[wanted[0]]))
                return []
        done: list[tuple[Sequence[int], _Made]] = []
        for number in wanted:
            done += await self._write_all(worker_id, files, [number], results)
        return done

    async def _write(self, worker_id: WorkerId, files: Sequence[NewFile]) -> _Made:
        now_ns = self._clock.now_ns()

        def apply(txn: WriteTransaction) -> _Made:
            made = publishing.publish(txn, files, worker_id, now_ns, self._packer, self._refuses)
            new: dict[tuple[InodeId, bool], list[int]] = {}
            for number, (file, one) in enumerate(zip(files, made, strict=True)):
                if one.is_new:
                    new.setdefault((file.parent, file.sealed), []).append(number)
            shown: dict[int, PublishedFile] = {}
            for (parent, sealed), numbers in new.items():
                refs = self._show_new(
                    txn, parent, [(files[number], made[number]) for number in numbers], worker_id, sealed=sealed
                )
                shown.update(zip(numbers, refs, strict=True))
            return made, [
                shown.get(number) or self._show(txn, file, one, worker_id)
                for number, (file, one) in enumerate(zip(files, made, strict=True))
            ]

        return await self._meta.write(apply)

    def _refuses(self, mount_id: MountId, name: str) -> bool:
        return bool(get_writable(self._mounts.get_ufs(mount_id)).refuse_name(name, at_root=False))

    def _show_new(
        self,
        txn: ReadTransaction,
        parent: InodeId,
        files: Sequence[tuple[NewFile, Published]],
        worker_id: WorkerId,
        *,
        sealed: bool,
    ) -> list[PublishedFile]:
        """Files of one directory that were not there before."""
        mount_id, prefix = namespace.get_key(txn, parent)
        policy = self._mounts.find_policy(txn, mount_id, prefix).policy
        described = [
            (file.inode, one.kept or to_bytes(file.name), one.newest.version or VersionId(1), file.size if sealed else 0)
            for file, one in files
        ]
        refs = namespace.make_new_refs(txn, parent, described, (worker_id,) if sealed else ())
        return [PublishedFile(ref, policy) for ref in refs]

    def _show(self, txn: ReadTransaction, file: NewFile, made: Published, worker_id: WorkerId) -> PublishedFile:
        entry = namespace.get_entry(txn, file.inode)
        ref = entry.ref
        assert ref is not None
        if made.sealed is not None:
            ref = get_sealed(ref, made.sealed, file.size, worker_id)
        record = tables.get_inode(txn, file.inode)
        key = keys.get_key(txn, file.inode, record, natural=True)
        policy = self._mounts.find_policy(txn, record.mount_id, key).policy
        return PublishedFile(ref, policy, unwanted=entry.attr.nlink == 0)

    def _tell(self, recalls: Sequence[Recall], lease: str) -> list[Telling]:
        """Without a lease they were made by a client that is no more: what was its alone nobody else was told of."""
        by_source: dict[str, list[Recall]] = {}
        for recall in recalls:
            by_source.setdefault(lease or self._coherence.delegations.get_holder(recall.directory), []).append(recall)
        told: list[Telling] = []
        for source, some in by_source.items():
            telling = self._coherence.begin(some, source=source)
            is_own = source and all(self._coherence.delegations.is_of(source, recall.directory) for recall in some)
            # A master before this one has told nobody else of it either.
            told.append(telling._replace(start_s=0.0) if is_own else telling)
        return told

    def _note(self, files: Sequence[NewFile], made: Sequence[Published]) -> None:
        self._follower.wake()
        for file, one in zip(files, made, strict=True):
            if one.sealed is not None:
                self._empty.note_sealed(file.inode)
                self._note_sealed(file.inode)
            elif one.is_new:
                self._empty.note_created(file.inode)
            if one.kept:
                log.warning(
                    "a name was taken by somebody else meanwhile: both are kept",
                    extra={"file": file.name, "inode": file.inode, "kept_as": to_str(one.kept)},
                )


def _describe(error: Exception, file: NewFile) -> errors.AlluxioLikeError:
    if isinstance(error, errors.AlluxioLikeError):
        return error
    log.error("a file could not be published, in a way nobody foresaw", exc_info=error, extra={"inode": file.inode})
    return errors.Internal("publishing it failed: see the master's log", subject=file.name)


def get_sealed(ref: FileRef, outcome: Outcome, size: int, holder: WorkerId) -> FileRef:
    """The version that a seal has made of a file that is `ref` now: of a repeat, after another seal, the one of then."""
    if ref.version == outcome.version:
        return ref
    fingerprint = Fingerprint(f"{OWN_TOKEN}{outcome.version:x}", size)
    return replace(ref, version=outcome.version, fingerprint=fingerprint, source=None, holders=(holder,))
