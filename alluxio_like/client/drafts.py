"""Files that are being written, with the worker of this machine that keeps their bytes.

Owns the opening of the draft: a file in one of the worker's cache directories, whose descriptors its door gave (local.py). Which
worker that is, draft_workers.py knows: the same for an inode from all mounts of the machine, so that they share one draft. What a
draft is, and when it becomes a version, is the worker's; files that the master is yet to hear of are pending.py's. Rule of
concurrency: one event loop.

Beginning and sealing may take as long as a file takes to be brought or uploaded: they have no time limit of their own.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from alluxio_like.client.blanks import OpenedDraft
from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.draft_workers import LOOK_S, NO_LIMIT_S, DraftWorkers
from alluxio_like.client.local import LocalCaches
from alluxio_like.client.news import News
from alluxio_like.client.pending import PendingFiles
from alluxio_like.errors import Cancelled, NotFound, ReadOnly, TimedOut, Unavailable
from alluxio_like.rpc.messages import MountInfo
from alluxio_like.rpc.messages_writing import DraftSealed
from alluxio_like.rpc.quotas import Claimed
from alluxio_like.types import FileRef, InodeId, MountId, WorkerId

_ROOM_S = 2.5
"""Two messages of a worker to the master, and some. A guess."""
_LITTLE_BYTES = 64 << 20
"""The master is not asked for less. A guess."""
_END_S = 10.0
_UNLIMITED_S = 1.0
_OPEN_PAUSE_S = 0.005


class DraftFiles:
    """Drafts at workers of this machine. `list_mounts` asks the master for the mount table, `claim` for room."""

    def __init__(
        self,
        cluster: ClusterTracker,
        workers: DraftWorkers,
        local: LocalCaches,
        pending: PendingFiles,
        list_mounts: Callable[[], Awaitable[list[MountInfo]]],
        news: News,
        claim: Callable[..., Awaitable[Claimed]],
        *,
        io_timeout_s: float,
    ) -> None:
        self._cluster = cluster
        self._workers = workers
        self._local = local
        self._pending = pending
        self._list_mounts = list_mounts
        self._news = news
        self._claim = claim
        self._unlimited_until_s = 0.0
        self._io_timeout_s = io_timeout_s
        self._read_only: dict[MountId, bool] = {}

    async def check_writable(self, mount_id: MountId) -> None:
        """Raises ReadOnly for a file of a mount that is not to be written."""
        if mount_id not in self._read_only:
            self._read_only = {mount.mount_id: mount.read_only for mount in await self._list_mounts()}
        if self._read_only.get(mount_id, True):
            raise ReadOnly("the mount is read-only: mount it with -o write=through", subject=str(mount_id))

    def forget_mounts(self) -> None:
        """The mount table may be another one."""
        self._read_only = {}

    async def claim(self, inode: InodeId, size: int, *, only_asks: bool = False) -> int | None:
        """The size up to `size` that quotas let a file grow to, kept for it until it is sealed unless `only_asks`; None: no quota
        limits it, or (`only_asks`) the master is away. Where there was none anywhere, the first one is noticed after a second."""
        if only_asks and self._pending.is_pending(inode):
            # Directories are delegated where there are none.
            return None
        await self._pending.settle([inode])
        if time.monotonic() < self._unlimited_until_s:
            return None
        try:
            claimed = await self._claim(inode, size, only_asks=only_asks)
        except (Unavailable, TimedOut):
            if only_asks:
                return None
            raise
        if not claimed.has_quotas:
            self._unlimited_until_s = time.monotonic() + _UNLIMITED_S
        return claimed.size

    async def has_room(self, worker_id: WorkerId, size: int) -> bool:
        """Whether a worker's cache can take so many bytes more when all goes that may go; where nobody can tell, and for little,
        it is not in the way. What was just removed is heard of after a moment, so that who is to be refused waits for that."""
        deadline = time.monotonic() + _ROOM_S
        while size >= _LITTLE_BYTES:
            view = await self._cluster.get_view(newer=True)
            worker = next((one for one in view.workers if one.worker_id == worker_id), None)
            if worker is None or size <= worker.writable_bytes:
                return True
            if size > worker.capacity_bytes or time.monotonic() > deadline:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def begin(self, ref: FileRef, *, truncate: bool) -> OpenedDraft:
        """Have a draft of a version, or an empty one, and open it.

        Raises ReadOnly (also: no worker on this machine whose cache this user may write), NoSpace, Stale, DiskError, Store*,
        Unavailable.
        """
        if (blank := self._pending.take_draft(ref.inode)) is not None:
            return blank
        await self._pending.settle([ref.inode])
        await self.check_writable(ref.mount_id)
        deadline = time.monotonic() + self._io_timeout_s
        tries = 0
        while True:
            worker = await self._workers.choose(ref.inode)
            begun = False
            try:
                # A repeat finds the draft that was begun, and changes nothing of it.
                stub = self._workers.get_stub(worker)
                place = await self._workers.watch(stub, stub.begin(ref, truncate=truncate, timeout_s=NO_LIMIT_S))
                begun = True
                # (One open is no wait worth a thread; the file was made or opened a moment ago.)
                return OpenedDraft(worker.worker_id, self._local.open_draft(worker.worker_id, place.directory, place.path))
            except (Unavailable, Cancelled):
                # The worker is away; with Cancelled it is another one by now, and the channel to it closed.
                if time.monotonic() + LOOK_S > deadline:
                    raise
            except NotFound:
                # Begun, but another mount's draft of it ended in between.
                if not begun or time.monotonic() + LOOK_S > deadline:
                    raise
            await asyncio.sleep(min(LOOK_S, _OPEN_PAUSE_S * tries))
            tries += 1

    async def seal(self, worker_id: WorkerId, inode: InodeId, operation_id: str, *, early: bool = False) -> DraftSealed | None:
        """Make what was written the file's next version, and what the policy asks for; as it is then. None: it becomes that with
        others before long, and before anybody asks. `early`: the file stays open, and others are to see it; no worker is waited
        for.

        Raises NotFound (there is no such draft; `early`: or no name of the file), Stale, NoSpace, Store*, Unavailable; `early`:
        Conflict (another machine has written the file)."""
        if not early and await self._pending.note_closed(inode):
            return None
        await self._pending.settle([inode])
        begun, told = self._news.begin(), False
        try:
            sealed = await self._workers.ask(
                worker_id,
                lambda stub: self._workers.watch(
                    stub, stub.seal(operation_id, inode, self._news.lease, early=early, timeout_s=NO_LIMIT_S)
                ),
                wait_s=0.0 if early else self._io_timeout_s,
            )
            if told := bool(sealed.recalls):
                self._news.take(sealed.recalls, sealed.told, begun)
            return sealed
        finally:
            if not told:
                # It may be sealed nevertheless, or was before; nobody tells us but this answer.
                self._news.doubt(inode)

    async def end(self, worker_id: WorkerId, inode: InodeId) -> None:
        """Nothing here has the draft open for writing any more. Raises Unavailable; the worker finds out by itself, too."""
        await self._workers.ask(worker_id, lambda stub: stub.end(inode, timeout_s=_END_S), wait_s=0.0)

    async def end_all(self, worker_id: WorkerId, inodes: Sequence[InodeId]) -> None:
        """As `end` of each of some, one at least."""
        await self._workers.ask(worker_id, lambda stub: stub.end_all(inodes, timeout_s=_END_S), wait_s=0.0)

    async def sync(self, worker_id: WorkerId, inode: InodeId) -> None:
        """That there is such a draft is durable when this returns. Raises Unavailable."""
        await self._workers.ask(worker_id, lambda stub: stub.sync(inode), wait_s=self._io_timeout_s)

    def is_pending(self, inode: InodeId) -> bool:
        """Whether the master is yet to hear of a file."""
        return self._pending.is_pending(inode)

    async def settle(self, inodes: Iterable[InodeId]) -> None:
        """Have the master know of files, where it is yet to hear of them. Raises what keeps it from that."""
        await self._pending.settle(inodes)

    async def find(self, inode: InodeId) -> WorkerId:
        """The worker that has, or would have, the draft of an inode. Raises ReadOnly, Unavailable."""
        return (await self._workers.choose(inode)).worker_id
