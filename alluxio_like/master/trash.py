"""The trash as people turn it on, look into it and take things out of it, and the ending of what has been in it for long enough.

What the trash is belongs to core/trash.py, its ending and the way back to core/emptying.py. Rule of concurrency: event loop
alone; one task ends what has expired.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import emptying, namespace, operations, tables, trash
from alluxio_like.master.follower import Follower
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.master.mount_table import MountTable
from alluxio_like.rpc.trash import Thrown, TrashPage, TrashSetting
from alluxio_like.types import InodeId, Recall, to_str

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""How often it is looked for what has expired. A guess: things go so much later than they may."""
_AT_ONCE = 100
_PAUSE_S = 0.02
_LISTED = 10_000


class TrashService:
    """TrashHandler of rpc.trash."""

    def __init__(
        self, meta: MetaStore, lister: Lister, mounts: MountTable, follower: Follower, coherence: Coherence, *, clock: Clock
    ) -> None:
        self._meta = meta
        self._lister = lister
        self._mounts = mounts
        self._follower = follower
        self._coherence = coherence
        self._clock = clock

    async def keep(self, operation_id: str, path: str, keep_s: float) -> None:
        directory, now_ns = await self._resolve(path), self._clock.now_ns()
        recalls: tuple[Recall, ...] = ()

        def work(txn: WriteTransaction) -> bytes:
            nonlocal recalls
            recalls = emptying.turn_on(txn, directory, int(keep_s * 10**9), now_ns)
            return b""

        await self._once(operation_id, "keep", now_ns, work)
        self._follower.wake()
        await self._coherence.invalidate(recalls, wait=True)

    async def stop_keeping(self, operation_id: str, path: str) -> None:
        directory, now_ns = await self._resolve(path), self._clock.now_ns()

        def work(txn: WriteTransaction) -> bytes:
            if not trash.clear_keep(txn, directory):
                raise errors.NotFound("the trash is not turned on there: see `alluxio-like trash list`", subject=path)
            return b""

        await self._once(operation_id, "stop keeping", now_ns, work)

    async def list_trash(self, path: str, limit: int) -> TrashPage:
        found: list[Thrown] = []
        with self._meta.read() as txn:
            for one in trash.iter_thrown(txn):
                if _is_below(one.path, path) and trash.is_there(txn, one.inode):
                    record = tables.get_inode(txn, one.inode)
                    found.append(Thrown(to_str(record.name), one.path, record.size, one.removed_ns, one.expires_ns))
            settings = [
                TrashSetting(where, one.keep_ns / 1e9)
                for one in trash.list_settings(txn)
                if (where := namespace.lookup_path(txn, one.directory)) is not None
            ]
        found.sort(key=lambda one: one.removed_ns)
        limit = limit or _LISTED
        return TrashPage(tuple(found[:limit]), len(found) > limit, tuple(settings))

    async def restore(self, operation_id: str, entry: str) -> str:
        now_ns = self._clock.now_ns()
        with self._meta.read() as txn:
            wanted = _find(txn, entry)
        if wanted is not None:
            # What is there now is to be known: a listing may still be to come.
            parent = wanted.path.rpartition("/")[0] or "/"
            if (await self._lister.resolve_path(parent)).entry is not None:
                await self._lister.resolve_path(wanted.path)
        recalls: tuple[Recall, ...] = ()

        def work(txn: WriteTransaction) -> bytes:
            nonlocal recalls
            found = _find(txn, entry)
            if found is None:
                raise errors.NotFound("nothing of that name is in the trash: see `alluxio-like trash list`", subject=entry)
            limit = self._mounts.get_key_limit(tables.get_inode(txn, found.inode).mount_id)
            try:
                path, recalls = emptying.restore(txn, found.inode, now_ns, max_key_bytes=limit)
            except errors.AlreadyExists:
                raise errors.AlreadyExists("something else has that name by now: rename it", subject=found.path) from None
            return json.dumps(path).encode()

        result = await self._once(operation_id, "restore", now_ns, work)
        self._follower.wake()
        await self._coherence.invalidate(recalls, wait=True)
        return str(json.loads(result))

    async def empty(self, path: str) -> int:
        with self._meta.read() as txn:
            wanted = [one.inode for one in trash.iter_thrown(txn) if _is_below(one.path, path)]
        count = 0
        for start in range(0, len(wanted), _AT_ONCE):
            count += await self._remove(wanted[start : start + _AT_ONCE])
            await asyncio.sleep(_PAUSE_S)
        await self._meta.flush()
        return count

    async def run(self) -> None:
        """End what has expired, until cancelled."""
        while True:
            try:
                while expired := self._list_expired():
                    await self._remove(expired)
                    await asyncio.sleep(_PAUSE_S)
            except errors.AlluxioLikeError as error:
                log.warning("what has been in the trash for long enough goes later: %s", error)
            except Exception:
                log.exception("what has been in the trash for long enough could not be removed")
            await asyncio.sleep(LOOK_S)

    def _list_expired(self) -> list[InodeId]:
        with self._meta.read() as txn:
            return trash.list_expired(txn, self._clock.now_ns(), _AT_ONCE)

    async def _remove(self, inodes: Sequence[InodeId]) -> int:
        now_ns = self._clock.now_ns()

        async def commit() -> int:
            count, recalls = await self._meta.write(lambda txn: emptying.remove(txn, inodes, now_ns))
            self._meta.flush_soon()
            self._follower.wake()
            self._coherence.tell(recalls)
            return count

        return await run_to_end(commit())

    async def _resolve(self, path: str) -> InodeId:
        return await self._lister.resolve_directory(path, otherwise="the trash is turned on for directories")

    async def _once(self, operation_id: str, method: str, now_ns: int, work: Callable[[WriteTransaction], bytes]) -> bytes:
        result = await self._meta.write(lambda txn: operations.run_once(txn, operation_id, method, now_ns, lambda: work(txn)))
        await self._meta.flush()
        return result


def _is_below(path: str, top: str) -> bool:
    return not top or path == top or path.startswith(top.rstrip("/") + "/")


def _find(txn: ReadTransaction, entry: str) -> trash.Thrown | None:
    """What is in the trash under a name, or was last removed from a path."""
    here = [one for one in trash.iter_thrown(txn) if trash.is_there(txn, one.inode)]
    matching = [one for one in here if entry in (one.path, to_str(tables.get_inode(txn, one.inode).name))]
    return max(matching, key=lambda one: one.removed_ns, default=None)
