"""Other workers as sources of bytes.

Owns the connections to them, opened when first needed and closed when a worker is gone: data sockets, and gRPC's channels for
where there is none. Rule of concurrency: the event loop only.
"""

from collections.abc import AsyncIterator, Callable, Iterable

from alluxio_like.errors import Unsupported
from alluxio_like.rpc.channel import RpcChannel
from alluxio_like.rpc.data_connection import OnFrame
from alluxio_like.rpc.data_pool import BegunRead, DataPool
from alluxio_like.rpc.messages import Priority
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import Cluster, FileRef, Worker
from alluxio_like.waits import Waits


class Peers:
    """`open_channel` makes a channel to an address; `pool` None: bytes come by gRPC alone."""

    def __init__(self, open_channel: Callable[[str], RpcChannel], timeout_s: float, pool: DataPool | None = None) -> None:
        self._open_channel = open_channel
        self._timeout_s = timeout_s
        self._pool = pool
        self._cluster: Cluster | None = None
        self._workers: dict[str, Worker] = {}
        self._open: dict[str, tuple[RpcChannel, WorkerStub]] = {}

    def read(
        self, address: str, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool
    ) -> AsyncIterator[memoryview]:
        """The bytes of a range from a worker. `cached_only`: NotFound rather than have it ask the store."""
        return self.get_stub(address).read(ref, offset, length, priority=priority, cached_only=cached_only)

    def get_stub(self, address: str) -> WorkerStub:
        """For calls to a worker by gRPC; not to be kept."""
        found = self._open.get(address)
        if found is None:
            channel = self._open_channel(address)
            found = self._open[address] = (channel, WorkerStub(channel, timeout_s=self._timeout_s))
        return found[1]

    def has_data_socket(self, address: str) -> bool:
        """Whether `receive` is worth trying."""
        worker = self._workers.get(address)
        return worker is not None and self._pool is not None and self._pool.can_read(worker)

    async def begin(
        self,
        address: str,
        ref: FileRef,
        offset: int,
        buffer: memoryview,
        *,
        priority: Priority,
        cached_only: bool,
        on_frame: OnFrame,
        ahead: int,
        waits: Waits,
    ) -> BegunRead:
        """Begin to fill `buffer` from a worker's data socket. Whoever asks compares the checksums that `on_frame` is given.

        Raises as `DataPool.read`: Unsupported where there is no data socket after all.
        """
        worker = self._workers.get(address)
        if worker is None or self._pool is None or self._cluster is None:
            raise Unsupported(f"no data socket at {address}")
        return await self._pool.begin(
            self._cluster,
            worker,
            ref,
            offset,
            buffer,
            priority=priority,
            cached_only=cached_only,
            on_frame=on_frame,
            verify=False,
            ahead=ahead,
            waits=waits,
        )

    def report_bad(self, address: str, ref: FileRef, page: int) -> None:
        """Tell a worker that a page it sent does not match the checksum that came with it."""
        worker = self._workers.get(address)
        if worker is not None and self._pool is not None:
            self._pool.report_bad(worker, ref, page)

    async def set_cluster(self, cluster: Cluster) -> None:
        """A newer view of the cluster: who is not in it any more is disconnected."""
        live = [worker for worker in cluster.workers if worker.live]
        self._cluster = cluster
        self._workers = {worker.address: worker for worker in live}
        if self._pool is not None:
            await self._pool.keep_only(live)
        await self._keep_only(self._workers)

    async def _keep_only(self, addresses: Iterable[str]) -> None:
        wanted = set(addresses)
        for address in [known for known in self._open if known not in wanted]:
            channel, _ = self._open.pop(address)
            await channel.close()

    async def close(self) -> None:
        """Disconnect from all."""
        if self._pool is not None:
            await self._pool.close()
        await self._keep_only(())
