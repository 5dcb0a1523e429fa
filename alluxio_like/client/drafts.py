"""Files that are being written, with the worker of this machine that keeps their bytes.

Owns the choice of that worker, and the opening of the draft: a file in one of the worker's cache directories, whose descriptors
its door gave (local.py). The same worker for an inode from all mounts of the machine, so that they share one draft. What a
draft is, and when it becomes a version, is the worker's. Rule of concurrency: one event loop.

Beginning and sealing may take as long as a file takes to be brought or uploaded: they have no time limit of their own. Whether
the worker lives is asked all the while; one that says nothing, or is gone, is waited for as long as any call waits.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.local import LocalCaches
from alluxio_like.client.news import News
from alluxio_like.errors import AlluxioLikeError, Cancelled, NotFound, ReadOnly, TimedOut, Unavailable
from alluxio_like.placement import rank_workers
from alluxio_like.rpc.drafts import DraftsStub
from alluxio_like.rpc.messages import MountInfo
from alluxio_like.rpc.messages_writing import DraftSealed
from alluxio_like.rpc.quotas import Claimed
from alluxio_like.types import FileId, FileRef, InodeId, MountId, VersionId, Worker, WorkerId

_NO_LIMIT_S = 0.0
_LOOK_S = 0.2
"""How often it is looked whether a worker is back. A guess."""
_ROOM_S = 2.5
"""Two messages of a worker to the master, and some. A guess."""
_LITTLE_BYTES = 64 << 20
"""The master is not asked for less. A guess."""
_END_S = 10.0
_UNLIMITED_S = 1.0
_OPEN_PAUSE_S = 0.005
_QUESTIONS = 4
"""How often, in the time that a call waits, a worker at work is asked whether it lives. A guess."""
_NOBODY = InodeId(0)
_T = TypeVar("_T")


class OpenedDraft(NamedTuple):
    """A draft, open for reading and writing; `fd` is the receiver's. `worker_id`: who keeps it."""

    worker_id: WorkerId
    fd: int


class DraftFiles:
    """Drafts at workers of this machine. `list_mounts` asks the master for the mount table, `claim` for room."""

    def __init__(
        self,
        cluster: ClusterTracker,
        local: LocalCaches,
        list_mounts: Callable[[], Awaitable[list[MountInfo]]],
        news: News,
        claim: Callable[..., Awaitable[Claimed]],
        *,
        io_timeout_s: float,
    ) -> None:
        self._cluster = cluster
        self._local = local
        self._list_mounts = list_mounts
        self._news = news
        self._claim = claim
        self._unlimited_until_s = 0.0
        self._io_timeout_s = io_timeout_s
        self._read_only: dict[MountId, bool] = {}
        self._had_one = False
        """Whether there was ever a worker to write through."""

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
            await asyncio.sleep(_LOOK_S)
        return True

    async def begin(self, ref: FileRef, *, truncate: bool) -> OpenedDraft:
        """Have a draft of a version, or an empty one, and open it.

        Raises ReadOnly (also: no worker on this machine whose cache this user may write), NoSpace, Stale, DiskError, Store*,
        Unavailable.
        """
        await self.check_writable(ref.mount_id)
        deadline = time.monotonic() + self._io_timeout_s
        tries = 0
        while True:
            worker = await self._choose(ref.inode)
            begun = False
            try:
                # A repeat finds the draft that was begun, and changes nothing of it.
                stub = self._get_stub(worker)
                place = await self._watch(stub, stub.begin(ref, truncate=truncate, timeout_s=_NO_LIMIT_S))
                begun = True
                # (One open is no wait worth a thread; the file was made or opened a moment ago.)
                return OpenedDraft(worker.worker_id, self._local.open_draft(worker.worker_id, place.directory, place.path))
            except (Unavailable, Cancelled):
                # The worker is away; with Cancelled it is another one by now, and the channel to it closed.
                if time.monotonic() + _LOOK_S > deadline:
                    raise
            except NotFound:
                # Begun, but another mount's draft of it ended in between.
                if not begun or time.monotonic() + _LOOK_S > deadline:
                    raise
            await asyncio.sleep(min(_LOOK_S, _OPEN_PAUSE_S * tries))
            tries += 1

    async def seal(self, worker_id: WorkerId, inode: InodeId, operation_id: str, *, early: bool = False) -> DraftSealed:
        """Make what was written the file's next version, and what the policy asks for; as it is then. `early`: the file stays
        open, and others are to see it; no worker is waited for.

        Raises NotFound (there is no such draft; `early`: or no name of the file), Stale, NoSpace, Store*, Unavailable; `early`:
        Conflict (another machine has written the file)."""
        begun, told = self._news.begin(), False
        try:
            sealed = await self._ask(
                worker_id,
                lambda stub: self._watch(
                    stub, stub.seal(operation_id, inode, self._news.lease, early=early, timeout_s=_NO_LIMIT_S)
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
        await self._ask(worker_id, lambda stub: stub.end(inode, timeout_s=_END_S), wait_s=0.0)

    async def end_all(self, worker_id: WorkerId, inodes: Sequence[InodeId]) -> None:
        """As `end` of each of some, one at least."""
        await self._ask(worker_id, lambda stub: stub.end_all(inodes, timeout_s=_END_S), wait_s=0.0)

    async def sync(self, worker_id: WorkerId, inode: InodeId) -> None:
        """That there is such a draft is durable when this returns. Raises Unavailable."""
        await self._ask(worker_id, lambda stub: stub.sync(inode), wait_s=self._io_timeout_s)

    async def _watch(self, stub: DraftsStub, call: Coroutine[Any, Any, _T]) -> _T:
        """Await a call for as long as the worker lives. Raises Unavailable once it has said nothing for the time that a call
        waits."""
        loop = asyncio.get_running_loop()
        asking: asyncio.Task[None] | None = None

        def begin() -> None:
            nonlocal asking
            asking = loop.create_task(self._ask_whether_it_lives(stub, limit))

        # Most calls are answered long before: these cost no task.
        timer = loop.call_later(self._io_timeout_s / _QUESTIONS, begin)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                return await call
        except TimeoutError:
            if not limit.expired():
                raise
            raise Unavailable(
                "the worker that keeps what was written does not answer: see its log, and start it again if it hangs"
            ) from None
        finally:
            timer.cancel()
            if asking is not None:
                asking.cancel()

    async def _ask_whether_it_lives(self, stub: DraftsStub, limit: asyncio.Timeout) -> None:
        """Ends a wait once a worker has said nothing for the time that a call waits."""
        pause_s = self._io_timeout_s / _QUESTIONS
        heard_s = time.monotonic() - pause_s
        while True:
            try:
                await stub.sync(_NOBODY, timeout_s=pause_s)
                heard_s = time.monotonic()
            except (Unavailable, TimedOut, Cancelled):
                if time.monotonic() - heard_s >= self._io_timeout_s:
                    limit.reschedule(asyncio.get_running_loop().time())
                    return
            except AlluxioLikeError:
                heard_s = time.monotonic()  # an answer it is
            await asyncio.sleep(pause_s)

    async def find(self, inode: InodeId) -> WorkerId:
        """The worker that has, or would have, the draft of an inode. Raises ReadOnly, Unavailable."""
        return (await self._choose(inode)).worker_id

    async def _choose(self, inode: InodeId) -> Worker:
        deadline = time.monotonic() + self._io_timeout_s
        newer = False
        while True:
            view = await self._cluster.get_view(newer=newer)
            await self._local.refresh(view)
            chosen = self._pick(view.workers, inode)
            if chosen is not None:
                self._had_one = True
                return chosen
            if newer:
                # One that is starting again is waited for, as any answer is.
                if not self._had_one and not self._may_come(view.workers):
                    raise ReadOnly(
                        "files are written through a worker on the same machine, and none runs here whose cache this user may"
                        " write: start one, under this user"
                    )
                if time.monotonic() + _LOOK_S > deadline:
                    raise Unavailable("files are written through a worker of this machine, and it is away: start it again")
                await asyncio.sleep(_LOOK_S)
            newer = True

    def _pick(self, workers: tuple[Worker, ...], inode: InodeId) -> Worker | None:
        here = [worker for worker in workers if worker.live and self._local.is_local(worker)]
        if len(here) < 2:
            return here[0] if here else None
        return rank_workers(here, FileId(inode, VersionId(0)), None)[0]

    def _may_come(self, workers: tuple[Worker, ...]) -> bool:
        """Whether a worker of this machine may be starting, or hang: the master knows none yet, or one is gone, or nobody answers
        at its door."""
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        here = [one for one in workers if one.host_id == boot_id]
        return not workers or any(not one.live or self._local.is_silent(one) or _is_deaf(one.door_path) for one in here)

    def _get_stub(self, worker: Worker) -> DraftsStub:
        return self._cluster.get_drafts_stub(worker)

    async def _ask(self, worker_id: WorkerId, call: Callable[[DraftsStub], Awaitable[_T]], *, wait_s: float) -> _T:
        """Call one worker, at whatever address it has now; one that is away may come back within `wait_s`."""
        deadline = time.monotonic() + wait_s
        newer = False
        while True:
            try:
                view = await self._cluster.get_view(newer=newer)
                worker = next((one for one in view.workers if one.worker_id == worker_id and one.live), None)
                if worker is None:
                    raise Unavailable("the worker that keeps what was written is away: start it again", subject=worker_id)
                return await call(self._get_stub(worker))
            except (Unavailable, Cancelled):
                # (Cancelled: it was started anew, and the channel to it closed.)
                if time.monotonic() + _LOOK_S > deadline:
                    raise
            newer = True
            await asyncio.sleep(_LOOK_S)


def _is_deaf(door_path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as door:
        try:
            door.connect(door_path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # not ours to enter
        return False
