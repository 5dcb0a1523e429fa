"""Other workers as sources of bytes.

Owns the channels to them, opened when first needed and closed when a worker is gone. Rule of concurrency: the event loop only.
"""

from collections.abc import AsyncIterator, Callable, Iterable



from alluxio_like.rpc.channel import RpcChannel
from alluxio_like.rpc.messages import Priority
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import FileRef


class Peers:
    """`open_channel` makes a channel to an address."""

    def __init__(self, open_channel: Callable[[str], RpcChannel], timeout_s: float) -> None:
        self._open_channel = open_channel
        self._timeout_s = timeout_s
        self._open: dict[str, tuple[RpcChannel, WorkerStub]] = {}

    def read(
        self, address: str, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool
    ) -> AsyncIterator[memoryview]:
        """The bytes of a range from a worker. `cached_only`: NotFound rather than have it ask the store."""
        found = self._open.get(address)
        if found is None:
            channel = self._open_channel(address)
            found = self._open[address] = (channel, WorkerStub(channel, timeout_s=self._timeout_s))
        return found[1].read(ref, offset, length, priority=priority, cached_only=cached_only)

    async def keep_only(self, addresses: Iterable[str]) -> None:
        """Close the channels to others than these."""
        wanted = set(addresses)
        for address in [known for known in self._open if known not in wanted]:
            channel, _ = self._open.pop(address)
            await channel.close()

    async def close(self) -> None:
        await self.keep_only(())
