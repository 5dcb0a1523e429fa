"""Drafts over the wire: both ends of the service Drafts in our own types.

Owns the handler's Protocol, the servicer and the stub. What a draft is belongs to the worker. Rule of concurrency: as in
worker_servicer and worker_stub.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import grpc.aio

from alluxio_like.cache.new_files import NewFile
from alluxio_like.rpc import convert, publishing
from alluxio_like.rpc.channel import Method, RpcChannel, call_unary
from alluxio_like.rpc.messages_writing import BlankDrafts, DraftPlace, DraftSealed, Published
from alluxio_like.rpc.telling import make_recalls, make_told, to_recalls, to_told
from alluxio_like.rpc.v1 import writing_pb2, writing_pb2_grpc
from alluxio_like.types import FileRef, InodeId


class DraftsHandler(Protocol):
    """Drafts of one worker."""

    async def begin(self, ref: FileRef, *, truncate: bool) -> DraftPlace:
        """Have a draft ready; recorded when this returns, and durable after `sync`. It is opened with
        `cache.draft_files.open_draft`, and begun again when that raises NotFound: nobody had it open, and so it may be over by
        then.

        Raises NoSpace, DiskError, Stale (the version is gone), Store*, Unavailable.
        """
        ...

    async def begin_blank(self, first: InodeId, count: int) -> BlankDrafts:
        """Have empty drafts ready for files that the master does not know yet. As long as nothing is noted with one, it goes when
        nobody has it open. Raises NoSpace, DiskError."""
        ...

    async def publish(self, lease: str, files: Sequence[NewFile]) -> Published:
        """Have the master know files whose drafts are here; where they are `sealed`, with what is in them now. Returns when
        their policy is met. What is wrong with one of them is said of that one. Raises Unavailable."""
        ...

    async def publish_left(self, owner: str) -> int:
        """Do so for all that a client of that name has noted, which is no more; how many."""
        ...

    async def seal(self, operation_id: str, inode: InodeId, lease: str, *, early: bool = False) -> DraftSealed:
        """Make what is in the draft now the next version; returns when its policy is met. `lease`: the caller's, which is told by
        the answer alone. `early`: the file stays open, and is sealed for others to see; no policy is met.

        Raises NotFound (no draft here); where it is early, also Conflict (another machine has written it since)."""
        ...

    async def end(self, inode: InodeId) -> None:
        """The caller has closed its descriptors. One that is not there is fine."""
        ...

    async def end_all(self, inodes: Sequence[InodeId]) -> None:
        """As `end` of each."""
        ...

    async def sync(self, inode: InodeId) -> None:
        """What is known of a draft outlives the loss of power when this returns. One that is not there is fine."""
        ...

    async def persist(self, inodes: Sequence[InodeId]) -> int:
        """Have the newest versions of these uploaded, whatever their policy; how many are here and not in the store."""
        ...


def add_drafts_service(server: grpc.aio.Server, handler: DraftsHandler) -> None:
    """Make a server (see rpc.server) answer with this handler."""
    add: Any = writing_pb2_grpc
    add.add_DraftsServicer_to_server(_Drafts(handler), server)


class _Drafts:
    def __init__(self, handler: DraftsHandler) -> None:
        self._handler = handler

    async def Begin(self, request: writing_pb2.BeginDraftRequest, _: Any) -> writing_pb2.BeginDraftReply:
        place = await self._handler.begin(convert.to_file_ref(request.file), truncate=request.truncate)
        return writing_pb2.BeginDraftReply(directory=place.directory, path=place.path)

    async def BeginBlank(self, request: writing_pb2.BeginBlankRequest, _: Any) -> writing_pb2.BeginBlankReply:
        blank = await self._handler.begin_blank(InodeId(request.first), request.count)
        places = [writing_pb2.BeginDraftReply(directory=place.directory, path=place.path) for place in blank.places]
        return writing_pb2.BeginBlankReply(places=places, noted=blank.noted)

    async def Publish(self, request: writing_pb2.PublishDraftsRequest, _: Any) -> writing_pb2.PublishFilesReply:
        return publishing.make_reply(await self._handler.publish(request.lease, publishing.to_new_files(request.files)))

    async def PublishLeft(self, request: writing_pb2.PublishLeftRequest, _: Any) -> writing_pb2.PublishLeftReply:
        return writing_pb2.PublishLeftReply(files=await self._handler.publish_left(request.owner))

    async def Seal(self, request: writing_pb2.SealDraftRequest, _: Any) -> writing_pb2.SealDraftReply:
        sealed = await self._handler.seal(request.operation_id, InodeId(request.inode), request.lease, early=request.early)
        file = None if sealed.ref is None else convert.file_ref(sealed.ref)
        return writing_pb2.SealDraftReply(
            file=file,
            unchanged=sealed.unchanged,
            mtime_ns=sealed.mtime_ns,
            recalls=make_recalls(sealed.recalls),
            told=make_told(sealed.told),
            over_quota=sealed.over_quota,
        )

    async def End(self, request: writing_pb2.EndDraftRequest, _: Any) -> writing_pb2.EndDraftReply:
        if request.others:
            await self._handler.end_all([InodeId(inode) for inode in (request.inode, *request.others)])
        else:
            await self._handler.end(InodeId(request.inode))
        return writing_pb2.EndDraftReply()

    async def Sync(self, request: writing_pb2.SyncDraftRequest, _: Any) -> writing_pb2.SyncDraftReply:
        await self._handler.sync(InodeId(request.inode))
        return writing_pb2.SyncDraftReply()

    async def Persist(self, request: writing_pb2.PersistDraftsRequest, _: Any) -> writing_pb2.PersistDraftsReply:
        count = await self._handler.persist([InodeId(inode) for inode in request.inodes])
        return writing_pb2.PersistDraftsReply(files=count)


class DraftsStub:
    """A worker's drafts at the other end of a channel; methods are those of the handler. `timeout_s` bounds each call."""

    def __init__(self, channel: RpcChannel, *, timeout_s: float = 30.0) -> None:
        make: Any = writing_pb2_grpc
        self._channel = channel
        self._timeout_s = timeout_s
        channel.add_stub("Drafts", make.DraftsStub)

    async def _call(self, name: str, request: Any, timeout_s: float | None) -> Any:
        timeout = self._timeout_s if timeout_s is None else timeout_s
        return await call_unary(Method(self._channel, "worker", "Drafts", name), request, timeout, repeat_s=self._timeout_s)

    async def begin(self, ref: FileRef, *, truncate: bool, timeout_s: float | None = None) -> DraftPlace:
        request = writing_pb2.BeginDraftRequest(file=convert.file_ref(ref), truncate=truncate)
        reply = await self._call("Begin", request, timeout_s)
        return DraftPlace(reply.directory, reply.path)

    async def begin_blank(self, first: InodeId, count: int, *, timeout_s: float | None = None) -> BlankDrafts:
        reply = await self._call("BeginBlank", writing_pb2.BeginBlankRequest(first=first, count=count), timeout_s)
        return BlankDrafts(first, tuple(DraftPlace(place.directory, place.path) for place in reply.places), reply.noted)

    async def publish(self, lease: str, files: Sequence[NewFile], *, timeout_s: float | None = None) -> Published:
        request = writing_pb2.PublishDraftsRequest(lease=lease, files=publishing.make_new_files(files))
        return publishing.to_published(await self._call("Publish", request, timeout_s))

    async def publish_left(self, owner: str, *, timeout_s: float | None = None) -> int:
        return int((await self._call("PublishLeft", writing_pb2.PublishLeftRequest(owner=owner), timeout_s)).files)

    async def seal(
        self, operation_id: str, inode: InodeId, lease: str, *, early: bool = False, timeout_s: float | None = None
    ) -> DraftSealed:
        request = writing_pb2.SealDraftRequest(operation_id=operation_id, inode=inode, lease=lease, early=early)
        reply = await self._call("Seal", request, timeout_s)
        ref = convert.to_file_ref(reply.file) if reply.HasField("file") else None
        recalls, told = to_recalls(reply.recalls), to_told(reply.told)
        return DraftSealed(ref, reply.mtime_ns, reply.unchanged, recalls, told, reply.over_quota)

    async def end(self, inode: InodeId, *, timeout_s: float | None = None) -> None:
        await self._call("End", writing_pb2.EndDraftRequest(inode=inode), timeout_s)

    async def end_all(self, inodes: Sequence[InodeId], *, timeout_s: float | None = None) -> None:
        await self._call("End", writing_pb2.EndDraftRequest(inode=inodes[0], others=inodes[1:]), timeout_s)

    async def sync(self, inode: InodeId, *, timeout_s: float | None = None) -> None:
        await self._call("Sync", writing_pb2.SyncDraftRequest(inode=inode), timeout_s)

    async def persist(self, inodes: Sequence[InodeId], *, timeout_s: float | None = None) -> int:
        return int((await self._call("Persist", writing_pb2.PersistDraftsRequest(inodes=inodes), timeout_s)).files)
