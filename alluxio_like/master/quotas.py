"""Quotas as people set and see them, and the counting of what was there before.

What a quota is belongs to core/quotas.py, what is counted to core/usage.py. Rule of concurrency: event loop alone; one task
counts, a step at a time, so that whoever writes waits for no more than one step.
"""

import asyncio
import logging
from collections.abc import Callable

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import namespace, operations, quotas, usage
from alluxio_like.master.core.claims import Claims
from alluxio_like.master.core.quotas import Quota
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.metrics import Metrics
from alluxio_like.rpc import quotas as wire
from alluxio_like.types import InodeId

log = logging.getLogger(__name__)

_PAUSE_S = 0.01
_AGAIN_S = 5.0
"""How often it is looked for what is to be counted when nobody said so: directories that were moved here."""


class QuotasService:
    """QuotasHandler of rpc.quotas."""

    def __init__(self, meta: MetaStore, lister: Lister, metrics: Metrics, *, clock: Clock) -> None:
        self._meta = meta
        self._lister = lister
        self._metrics = metrics
        self._clock = clock
        self._claims = Claims()
        self._changed = asyncio.Event()
        self._changed.set()

    async def set_quota(self, operation_id: str, path: str, max_bytes: int | None, max_files: int | None) -> wire.Quota:
        directory, now_ns = await self._resolve(path), self._clock.now_ns()

        def work(txn: WriteTransaction) -> bytes:
            quotas.set_quota(txn, Quota(directory, max_bytes, max_files))
            return b""

        await self._once(operation_id, "set quota", now_ns, work)
        with self._meta.read() as txn:
            quota = quotas.lookup(txn, directory)
            if quota is None:
                raise errors.NotFound("the quota was cleared meanwhile: set it again", subject=path)
            return _describe(txn, quota)

    async def claim(self, inode: InodeId, size: int, *, only_asks: bool = False) -> wire.Claimed:
        with self._meta.read() as txn:
            if not usage.is_on(txn):
                return wire.Claimed(None, has_quotas=False)
            return wire.Claimed(self._claims.claim(txn, inode, size, self._clock.monotonic(), only_asks=only_asks))

    def note_sealed(self, inode: InodeId) -> None:
        """What was claimed for a file is counted by now."""
        self._claims.end(inode)

    async def clear_quota(self, operation_id: str, path: str) -> None:
        directory, now_ns = await self._resolve(path), self._clock.now_ns()

        def work(txn: WriteTransaction) -> bytes:
            if not quotas.clear_quota(txn, directory):
                raise errors.NotFound("this directory has no quota of its own: see `alluxio-like quota list`", subject=path)
            return b""

        await self._once(operation_id, "clear quota", now_ns, work)

    async def list_quotas(self, path: str) -> list[wire.Quota]:
        directory = await self._resolve(path) if path else None
        with self._meta.read() as txn:
            holding = quotas.list_all(txn) if directory is None else quotas.list_above(txn, directory)
            found = [_describe(txn, one) for one in holding]
        return sorted(found, key=lambda one: one.path)

    async def _resolve(self, path: str) -> InodeId:
        return await self._lister.resolve_directory(path, otherwise="quotas are those of directories")

    async def _once(self, operation_id: str, method: str, now_ns: int, work: Callable[[WriteTransaction], bytes]) -> None:
        await self._meta.write(lambda txn: operations.run_once(txn, operation_id, method, now_ns, lambda: work(txn)))
        await self._meta.flush()
        self._changed.set()

    async def count(self) -> None:
        """Count what is to be counted, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_AGAIN_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                while self._is_queued():
                    await self._meta.write(quotas.count_some)
                    await asyncio.sleep(_PAUSE_S)
                self._show()
            except errors.AlluxioLikeError as error:
                log.warning("what is below directories with quotas is counted on later: %s", error)
            except Exception:
                log.exception("counting what is below directories with quotas failed")

    def _is_queued(self) -> bool:
        with self._meta.read() as txn:
            return quotas.is_queued(txn)

    def _show(self) -> None:
        with self._meta.read() as txn:
            found = [_describe(txn, one) for one in quotas.list_all(txn)[:_SHOWN]]
        for gauge in (self._metrics.quota_used_bytes, self._metrics.quota_used_files):
            gauge.clear()
        for one in found:
            self._metrics.quota_used_bytes.labels(one.path).set(one.used_bytes)
            self._metrics.quota_used_files.labels(one.path).set(one.used_files)


_SHOWN = 1000
"""Quotas in the metrics."""


def _describe(txn: ReadTransaction, quota: Quota) -> wire.Quota:
    used = quotas.get_usage(txn, quota.directory)
    path = namespace.get_path(txn, quota.directory)
    counting = quotas.is_counting(txn, quota.directory)
    return wire.Quota(path, quota.max_bytes, quota.max_files, used.size_bytes, used.files, counting)
