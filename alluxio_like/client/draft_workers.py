"""Workers of this machine, for who writes through them.

Owns which of them keeps what is written to an inode, and calls that take as long as they take: whether the worker lives is asked
all the while, and one that says nothing, or is gone, is waited for as long as any call waits. Rule of concurrency: one event
loop.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.local import LocalCaches
from alluxio_like.errors import AlluxioLikeError, Cancelled, ReadOnly, TimedOut, Unavailable
from alluxio_like.placement import rank_workers
from alluxio_like.rpc.drafts import DraftsStub
from alluxio_like.types import FileId, InodeId, VersionId, Worker, WorkerId

NO_LIMIT_S = 0.0
LOOK_S = 0.2
"""How often it is looked whether a worker is back. A guess."""
_QUESTIONS = 4
"""How often, in the time that a call waits, a worker at work is asked whether it lives. A guess."""
_NOBODY = InodeId(0)
_T = TypeVar("_T")


class DraftWorkers:
    """See the module."""

    def __init__(self, cluster: ClusterTracker, local: LocalCaches, *, io_timeout_s: float) -> None:
        self._cluster = cluster
        self._local = local
        self._io_timeout_s = io_timeout_s
        self._had_one = False
        """Whether there was ever a worker to write through."""

    async def choose(self, inode: InodeId) -> Worker:
        """The worker that has, or would have, the draft of an inode: the same from all mounts of the machine. Raises ReadOnly,
        Unavailable."""
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
                if time.monotonic() + LOOK_S > deadline:
                    raise Unavailable("files are written through a worker of this machine, and it is away: start it again")
                await asyncio.sleep(LOOK_S)
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

    async def choose_only(self) -> WorkerId | None:
        """The worker of this machine, if there is just one: it has the drafts of all inodes. Raises as `choose`."""
        chosen = await self.choose(_NOBODY)
        view = await self._cluster.get_view()
        is_only = all(one.worker_id == chosen.worker_id for one in view.workers if one.live and self._local.is_local(one))
        return chosen.worker_id if is_only else None

    def get_stub(self, worker: Worker) -> DraftsStub:
        """A worker's service."""
        return self._cluster.get_drafts_stub(worker)

    async def ask(self, worker_id: WorkerId, call: Callable[[DraftsStub], Awaitable[_T]], *, wait_s: float) -> _T:
        """Call one worker, at whatever address it has now; one that is away may come back within `wait_s`."""
        deadline = time.monotonic() + wait_s
        newer = False
        while True:
            try:
                view = await self._cluster.get_view(newer=newer)
                worker = next((one for one in view.workers if one.worker_id == worker_id and one.live), None)
                if worker is None:
                    raise Unavailable("the worker that keeps what was written is away: start it again", subject=worker_id)
                return await call(self.get_stub(worker))
            except (Unavailable, Cancelled):
                # (Cancelled: it was started anew, and the channel to it closed.)
                if time.monotonic() + LOOK_S > deadline:
                    raise
            newer = True
            await asyncio.sleep(LOOK_S)

    async def watch(self, stub: DraftsStub, call: Coroutine[Any, Any, _T]) -> _T:
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


def _is_deaf(door_path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as door:
        try:
            door.connect(door_path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # not ours to enter
        return False
