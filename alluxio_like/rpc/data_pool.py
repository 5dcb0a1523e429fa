"""Data connections to all workers, for whoever reads from them: clients, and workers from each other.

Owns which connection a read takes: small reads share one, so that they never wait behind megabytes, large ones spread over
a few. Opened when first used, closed when idle or when the worker has gone. Where no data socket can be had (TLS, another
version, a port that is not open) `read` raises Unsupported, and the caller uses gRPC. Rule of concurrency: one event loop.
"""

import asyncio
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from alluxio_like.errors import AlluxioLikeError, Cancelled, Corrupt, Unsupported
from alluxio_like.rpc import data_wire as wire
from alluxio_like.rpc.data_connection import DataConnection, OnFrame, OnText, PendingRead, connect, verify_pages
from alluxio_like.rpc.messages import Filled, Priority
from alluxio_like.types import PAGE_BYTES, Cluster, FileRef, Worker
from alluxio_like.waits import Waits

SMALL_BYTES = 256 << 10
"""Reads up to this size share a connection of their own."""
_BULK_CONNECTIONS = 2
"""To one worker from one process. One connection's bytes are copied by one core at each end; a guess that two are enough."""
_CONNECT_S = 2.0
_RETRY_S = 10.0
"""After a failed connection gRPC is used for so long. A guess."""
_IDLE_S = 60.0


@dataclass(slots=True, eq=False)
class _Lane:
    """The connections of one kind to one worker."""

    limit: int
    open: list[DataConnection] = field(default_factory=list)
    opening: "asyncio.Task[DataConnection] | None" = None


@dataclass(slots=True, eq=False)
class _Peer:
    nonce: str
    small: _Lane = field(default_factory=lambda: _Lane(1))
    bulk: _Lane = field(default_factory=lambda: _Lane(_BULK_CONNECTIONS))
    retry_s: float = 0.0
    reason: str = ""

    @property
    def lanes(self) -> tuple[_Lane, _Lane]:
        return self.small, self.bulk


class _Enough(AlluxioLikeError):
    """Ends a fill of which nothing more is wanted."""


@dataclass(slots=True, eq=False)
class BegunRead:
    """A read that was asked for: `done` ends with it, or with what went wrong. Cancel it when nobody waits for that."""

    connection: DataConnection
    read: PendingRead

    @property
    def done(self) -> "asyncio.Future[None]":
        return self.read.done

    def cancel(self) -> None:
        """Its buffer is free at once. Does nothing to one that has ended."""
        self.connection.cancel(self.read)


class DataPool:
    """`silence_s` is how long a worker may say nothing to a read."""

    def __init__(self, *, silence_s: float) -> None:
        self._silence_s = silence_s
        self._peers: dict[str, _Peer] = {}
        self._refs: dict[FileRef, bytes] = {}
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    def can_read(self, worker: Worker) -> bool:
        """Whether there is a data socket to try."""
        if not worker.data_address or self._closed:
            return False
        peer = self._peers.get(worker.data_address)
        return peer is None or peer.nonce != worker.data_nonce or peer.retry_s <= asyncio.get_running_loop().time()

    async def read(
        self,
        cluster: Cluster,
        worker: Worker,
        ref: FileRef,
        offset: int,
        buffer: memoryview,
        *,
        priority: Priority = Priority.DEMAND,
        cached_only: bool = False,
        on_frame: OnFrame | None = None,
        verify: bool = True,
        waits: Waits | None = None,
    ) -> None:
        """Fill `buffer` with the bytes from `offset` on; at least one.

        `on_frame` is told of parts as they land; with `verify` whole pages have been compared with their checksums before that,
        without it whoever is told does so. `waits` gets what the worker says was waited for. Cancelling leaves the buffer alone
        from then on. Raises Unsupported (use gRPC),
        Corrupt, and what the worker says: NotFound (`cached_only`), Stale, Store*, TimedOut, Unavailable, ...
        """
        begun = await self.begin(
            cluster,
            worker,
            ref,
            offset,
            buffer,
            priority=priority,
            cached_only=cached_only,
            on_frame=on_frame,
            verify=verify,
            waits=waits,
        )
        try:
            await begun.done
        except asyncio.CancelledError:
            begun.cancel()
            raise

    async def begin(
        self,
        cluster: Cluster,
        worker: Worker,
        ref: FileRef,
        offset: int,
        buffer: memoryview,
        *,
        priority: Priority,
        cached_only: bool,
        on_frame: OnFrame | None,
        verify: bool,
        ahead: int = 0,
        waits: Waits | None = None,
    ) -> BegunRead:
        """As `read`, but return when it has been asked for. `ahead`: bytes from `offset` on that will be asked for after this."""
        encoded = self._encode(ref)
        connection = self._lookup(cluster, worker, len(buffer)) or await self._open(cluster, worker, len(buffer))
        if verify:
            on_frame = self._make_check(connection, ref, encoded, offset, buffer, on_frame)
        return BegunRead(
            connection,
            connection.start(
                encoded,
                ref.size,
                offset,
                buffer,
                priority=int(priority),
                cached_only=cached_only,
                on_frame=on_frame,
                on_text=_make_listener(waits) if waits is not None else None,
                ahead=ahead,
            ),
        )

    def try_begin(
        self,
        cluster: Cluster,
        worker: Worker,
        ref: FileRef,
        offset: int,
        buffer: memoryview,
        *,
        on_frame: OnFrame,
        waits: Waits,
        again: bool,
    ) -> BegunRead | None:
        """As `begin`, verified, if a connection is open: without waiting. `again`: more of this content will be asked for.

        None: none is, or it has just broken; one is being opened then for those who come later.
        """
        connection = self._lookup(cluster, worker, len(buffer))
        if connection is None:
            self._open_later(cluster, worker, len(buffer))
            return None
        try:
            # Of what is asked for once nothing is gained by remembering how it is called.
            encoded = self._encode(ref) if again else wire.encode_ref(ref)
            check = self._make_check(connection, ref, encoded, offset, buffer, on_frame)
            read = connection.start(
                encoded,
                ref.size,
                offset,
                buffer,
                priority=int(Priority.DEMAND),
                cached_only=False,
                on_frame=check,
                on_text=_make_listener(waits),
            )
        except (wire.Malformed, AlluxioLikeError):
            return None
        return BegunRead(connection, read)

    async def fill(
        self,
        cluster: Cluster,
        worker: Worker,
        ref: FileRef,
        offset: int,
        length: int,
        *,
        priority: Priority,
        on_filled: Callable[[Filled], bool],
    ) -> None:
        """Have a worker bring a range into its cache. `on_filled` is told of pages as they land; False: the rest is cancelled.

        Raises as `read`.
        """
        connection = self._lookup(cluster, worker, 0) or await self._open(cluster, worker, 0)

        def on_text(kind: int, body: bytes) -> None:
            if kind == wire.Kind.FILLED and body and not on_filled(wire.decode_filled(body)):
                raise _Enough

        read = connection.fill(self._encode(ref), ref.size, offset, length, priority=int(priority), on_text=on_text)
        try:
            await read.done
        except _Enough:
            return
        except asyncio.CancelledError:
            connection.cancel(read)
            raise

    def report_bad(self, worker: Worker, ref: FileRef, page: int) -> None:
        """Tell a worker that a page it sent does not match its checksum, if it can be told."""
        peer = self._peers.get(worker.data_address)
        for connection in peer.bulk.open + peer.small.open if peer is not None else ():
            connection.report_bad(self._encode(ref), page)
            return

    async def keep_only(self, workers: Iterable[Worker]) -> None:
        """Close connections to others than these."""
        wanted = {(worker.data_address, worker.data_nonce) for worker in workers}
        for address, peer in list(self._peers.items()):
            if (address, peer.nonce) not in wanted:
                del self._peers[address]
                await self._close_peer(peer)

    async def close(self) -> None:
        """Close all connections. May be called twice."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        await self.keep_only(())

    # Inside.

    @staticmethod
    def _make_check(
        connection: DataConnection, ref: FileRef, encoded: bytes, offset: int, buffer: memoryview, then: OnFrame | None
    ) -> OnFrame:
        def check(start: int, length: int, sums: "array[int] | None") -> None:
            if sums is not None:
                page = (offset + start) // PAGE_BYTES
                try:
                    verify_pages(buffer[start : start + length], sums, page, ref.key)
                except Corrupt:
                    for n in range(len(sums)):
                        connection.report_bad(encoded, page + n)
                    raise
            if then is not None:
                then(start, length, None)

        return check

    def _encode(self, ref: FileRef) -> bytes:
        # Random reads of one file ask with the same words again and again.
        encoded = self._refs.get(ref)
        if encoded is None:
            try:
                encoded = wire.encode_ref(ref)
            except wire.Malformed as error:
                raise Unsupported(str(error), subject=ref.key) from None
            if len(self._refs) >= 1024:
                self._refs.clear()
            self._refs[ref] = encoded
        return encoded

    def _get_peer(self, worker: Worker) -> _Peer:
        peer = self._peers.get(worker.data_address)
        if peer is None or peer.nonce != worker.data_nonce:
            old, peer = peer, _Peer(worker.data_nonce)
            self._peers[worker.data_address] = peer
            if old is not None:
                for lane in old.lanes:
                    for connection in list(lane.open):
                        connection.close()
        return peer

    def _lookup(self, cluster: Cluster, worker: Worker, size: int) -> DataConnection | None:
        """An open connection for a read of that size, or None. Where all are busy, a further one is begun for those who come."""
        peer = self._peers.get(worker.data_address)
        if peer is None or peer.nonce != worker.data_nonce:
            return None
        lane = peer.small if size <= SMALL_BYTES else peer.bulk
        if not lane.open:
            return None
        if lane.limit == 1:
            return lane.open[0]
        best = min(lane.open, key=lambda one: one.outstanding_bytes)
        if best.outstanding_bytes and len(lane.open) < lane.limit:
            self._begin(cluster, worker, peer, lane)
        return best

    def _open_later(self, cluster: Cluster, worker: Worker, size: int) -> None:
        if self.can_read(worker):
            peer = self._get_peer(worker)
            self._begin(cluster, worker, peer, peer.small if size <= SMALL_BYTES else peer.bulk)

    async def _open(self, cluster: Cluster, worker: Worker, size: int) -> DataConnection:
        if not worker.data_address or self._closed:
            raise Unsupported(f"the worker at {worker.address} has no data socket")
        peer = self._get_peer(worker)
        loop = asyncio.get_running_loop()
        if peer.retry_s > loop.time():
            raise Unsupported(peer.reason)
        task = self._begin(cluster, worker, peer, peer.small if size <= SMALL_BYTES else peer.bulk)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Cancelled(f"the data connection to {worker.data_address} was closed") from None
            raise
        except AlluxioLikeError as error:
            raise type(error)(error.message, subject=error.subject) from None

    def _begin(self, cluster: Cluster, worker: Worker, peer: _Peer, lane: _Lane) -> "asyncio.Task[DataConnection]":
        """The opening of a connection, which goes on when whoever began it is cancelled; its error is that of all who wait."""
        if lane.opening is None:
            lane.opening = asyncio.create_task(self._connect(cluster, worker, peer, lane), name="data connection")
            lane.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        return lane.opening

    async def _connect(self, cluster: Cluster, worker: Worker, peer: _Peer, lane: _Lane) -> DataConnection:
        loop = asyncio.get_running_loop()

        def forget(connection: DataConnection) -> None:
            if connection in lane.open:
                lane.open.remove(connection)

        hello = wire.Hello(cluster.cluster_id, worker.worker_id, worker.data_nonce)
        try:
            connection = await connect(
                worker.data_address, hello, connect_s=_CONNECT_S, silence_s=self._silence_s, on_close=forget
            )
        except Unsupported as error:
            peer.retry_s, peer.reason = loop.time() + _RETRY_S, error.message
            raise
        finally:
            lane.opening = None
        lane.open.append(connection)
        connection.used_s = loop.time()
        if self._idle is None:
            self._idle = loop.call_later(_IDLE_S, self._close_idle)
        return connection

    def _close_idle(self) -> None:
        self._idle = None
        loop = asyncio.get_running_loop()
        left = 0
        for peer in self._peers.values():
            for lane in peer.lanes:
                for connection in list(lane.open):
                    if not connection.count and loop.time() - connection.used_s > _IDLE_S:
                        connection.close()
                left += len(lane.open)
        if left:
            self._idle = loop.call_later(_IDLE_S, self._close_idle)

    @staticmethod
    async def _close_peer(peer: _Peer) -> None:
        opening = [lane.opening for lane in peer.lanes if lane.opening is not None]
        for task in opening:
            task.cancel()
        if opening:
            await asyncio.gather(*opening, return_exceptions=True)
        for lane in peer.lanes:
            for connection in list(lane.open):
                connection.close(Cancelled(f"the data connection to {connection.address} was closed"))


def _make_listener(waits: Waits) -> OnText:
    def on_text(kind: int, body: bytes) -> None:
        if kind == wire.Kind.WAITED:
            waits.add_all(wire.parse_waited(body))

    return on_text
