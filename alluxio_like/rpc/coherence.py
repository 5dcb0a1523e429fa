"""The stream of leases and recalls, both ends of it in our own types.

Owns the conversion of its messages, the handler's Protocol and the stub. What a lease means is decided elsewhere
(master/core/leases.py, client/coherence.py). Rule of concurrency: as in master_servicer and master_stub.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

import grpc.aio

from alluxio_like.rpc.channel import Method, RpcChannel, call_stream
from alluxio_like.rpc.messages import WatchMessage, WatchReply
from alluxio_like.rpc.streams import closing
from alluxio_like.rpc.v1 import coherence_pb2, coherence_pb2_grpc
from alluxio_like.types import InodeId, Recall


class CoherenceHandler(Protocol):
    """One stream for each client."""

    def watch(self, messages: AsyncIterator[WatchMessage]) -> AsyncIterator[WatchReply]:
        """Answers each message and tells what is recalled, until the client goes or its lease has run out."""
        ...


def add_coherence_service(server: grpc.aio.Server, handler: CoherenceHandler) -> None:
    """Make a server (see rpc.server) answer with this handler."""
    add: Any = coherence_pb2_grpc
    add.add_CoherenceServicer_to_server(_Coherence(handler), server)


class _Coherence:
    def __init__(self, handler: CoherenceHandler) -> None:
        self._handler = handler

    async def Watch(
        self, requests: AsyncIterator[coherence_pb2.WatchRequest], _: Any
    ) -> AsyncGenerator[coherence_pb2.WatchReply]:
        async def messages() -> AsyncIterator[WatchMessage]:
            async for one in requests:
                yield WatchMessage(one.number, one.confirmed, one.session_id, one.run, one.bye, tuple(one.succeeded))

        replies = self._handler.watch(messages())
        async with closing(replies):
            async for reply in replies:
                yield _make_reply(reply)


class CoherenceStub:
    """The master's end of the stream, at the other end of a channel."""

    def __init__(self, channel: RpcChannel) -> None:
        make: Any = coherence_pb2_grpc
        self._channel = channel
        channel.add_stub("Coherence", make.CoherenceStub)

    async def watch(self, messages: AsyncIterator[WatchMessage]) -> AsyncGenerator[WatchReply]:
        """Sends what `messages` gives; not repeated when it breaks. Raises errors of the tree."""

        async def requests() -> AsyncIterator[coherence_pb2.WatchRequest]:
            async for one in messages:
                yield coherence_pb2.WatchRequest(
                    session_id=one.session_id,
                    run=one.run,
                    number=one.number,
                    confirmed=one.confirmed,
                    bye=one.bye,
                    succeeded=one.succeeded,
                )

        replies = call_stream(Method(self._channel, "master", "Coherence", "Watch"), requests(), 0.0, _to_reply)
        async with closing(replies):
            async for reply in replies:
                yield reply


def _make_reply(value: WatchReply) -> coherence_pb2.WatchReply:
    return coherence_pb2.WatchReply(
        run=value.run,
        fresh=value.fresh,
        number=value.number,
        lease_s=value.lease_s,
        recalls=[make_recall(one) for one in value.recalls],
        sequence=value.sequence,
        cluster_epoch=value.cluster_epoch,
    )


def _to_reply(message: coherence_pb2.WatchReply) -> WatchReply:
    recalls = tuple([to_recall(one) for one in message.recalls])
    return WatchReply(
        message.run, message.number, message.lease_s, message.fresh, recalls, message.sequence, message.cluster_epoch
    )


def make_recall(value: Recall) -> coherence_pb2.Recall:
    return coherence_pb2.Recall(
        directory=value.directory, names=value.names, all=value.all_names, inodes=value.inodes, pins_only=value.pins_only
    )


def to_recall(message: coherence_pb2.Recall) -> Recall:
    inodes = tuple([InodeId(inode) for inode in message.inodes])
    return Recall(InodeId(message.directory), tuple(message.names), message.all, inodes, message.pins_only)
