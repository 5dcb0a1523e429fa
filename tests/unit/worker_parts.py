"""The worker's inner parts, wired as in its app but around a store in memory, without services and without a master."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alluxio_like.cache.store import CacheDirSpec, CacheStore
from alluxio_like.clock import SystemClock
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.channel import RpcChannel
from alluxio_like.rpc.messages import MountInfo, MountSecrets
from alluxio_like.types import FileRef, Fingerprint, InodeId, MountId, VersionId
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.memory import MemoryUfs
from alluxio_like.worker.cluster import ClusterView
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.evictor import Evictor
from alluxio_like.worker.fetcher import Fetcher
from alluxio_like.worker.loader import Loader
from alluxio_like.worker.peers import Peers
from alluxio_like.worker.pilot import Pilot
from alluxio_like.worker.stores import Stores
from alluxio_like.worker.turns import Turns

MOUNT = MountId(7)
MIB = 1 << 20


@dataclass
class Parts:
    ufs: MemoryUfs
    store: CacheStore
    evictor: Evictor
    turns: Turns
    fetcher: Fetcher
    loader: Loader
    metrics: Metrics
    view: ClusterView

    def put(self, inode: int, data: bytes) -> FileRef:
        """An object of the store, as a worker is told of it."""
        key = f"file-{inode}"
        return make_ref(inode, key, self.ufs.put(key, data))


def make_ref(inode: int, key: str, fingerprint: Fingerprint) -> FileRef:
    return FileRef(InodeId(inode), VersionId(1), MOUNT, key, fingerprint)


def make_data(size: int, seed: int = 0) -> bytes:
    """Bytes in which every 8-byte word tells its place."""
    words = b"".join((n * 2654435761 + seed).to_bytes(8, "big") for n in range(-(-min(size, 256 << 10) // 8)))
    stamps = [bytes([seed % 251, n % 251]) + words[2:] for n in range(-(-size // len(words)) if words else 0)]
    return b"".join(stamps)[:size]


def no_channel(address: str) -> RpcChannel:
    """For what is not to ask others."""
    raise AssertionError(f"nobody is to be asked at {address}")


def mount_secrets() -> MountSecrets:
    return MountSecrets(MountInfo(MOUNT, "/data", "memory://bucket", {}, True, 0.0, 0, 0, 0), {})


@asynccontextmanager
async def running_parts(
    directory: Path,
    *,
    quota_bytes: int = 1 << 30,
    io_timeout_s: float = 10.0,
    demand_slots: int = 8,
    load_slots: int = 4,
    max_request_bytes: int = 8 << 20,
    wrap: Callable[[MemoryUfs], Any] = lambda ufs: ufs,
) -> AsyncIterator[Parts]:
    """Parts that are taken down at the end; `wrap` puts something around the store."""
    clock = SystemClock()
    ufs = MemoryUfs(name="bucket")
    wrapped: Ufs = wrap(ufs)
    metrics = Metrics()
    store = CacheStore.open(
        [CacheDirSpec(directory / "cache", quota_bytes, allow_root_disk=True, keep_free_fraction=0.0)],
        cluster_id=None,
        clock=clock,
        boot_id="boot",
    )
    evictor = Evictor(store, clock)
    evictor.start()
    writes, reads, slow = DiskQueue("write", 2), DiskQueue("read", 2), DiskQueue("slow", 1)

    async def get_secrets(_: MountId) -> MountSecrets:
        return mount_secrets()

    stores = Stores(get_secrets, lambda _mount, on_request: wrapped, lambda op, mount: None, time.monotonic)
    peers = Peers(no_channel, 5.0)
    view = ClusterView(store.worker_id)
    turns = Turns(demand_slots, load_slots, time.monotonic)
    pilot = Pilot(
        stores=stores,
        peers=peers,
        view=view,
        evictor=evictor,
        turns=turns,
        disk=writes,
        drafts=store.drafts,
        metrics=metrics,
        io_timeout_s=io_timeout_s,
    )
    fetcher = Fetcher(
        store=store,
        pilot=pilot,
        turns=turns,
        view=view,
        reads=reads,
        metrics=metrics,
        io_timeout_s=io_timeout_s,
        max_request_bytes=max_request_bytes,
    )
    loader = Loader(
        fetcher=fetcher,
        store=store,
        evictor=evictor,
        disk=slow,
        slots=load_slots,
        max_request_bytes=max_request_bytes,
        monotonic=time.monotonic,
        metrics=metrics,
    )
    try:
        yield Parts(ufs, store, evictor, turns, fetcher, loader, metrics, view)
    finally:
        await fetcher.close()
        turns.close()
        await stores.close()
        await peers.close()
        await asyncio.to_thread(evictor.stop)
        for queue in (writes, reads, slow):
            await queue.close()
        await asyncio.to_thread(store.close)


async def gather_bytes(pieces: AsyncIterator[Any]) -> bytes:
    """All bytes of a read."""
    out = bytearray()
    async for piece in pieces:
        out += piece[0] if isinstance(piece, tuple) else piece
    return bytes(out)


async def wait_until(condition: Callable[[], bool], what: str = "", timeout_s: float = 60.0) -> None:
    """Wait for a condition, checked often; fails by its deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not reached in {timeout_s} s: {what}"
        await asyncio.sleep(0.005)


def total_length(requests: Iterable[Any]) -> int:
    return sum(request.length for request in requests if request.op == "GET")
