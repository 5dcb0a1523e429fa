"""What programs change in the namespace, over the wire: both ends of the service Changes in our own types.

Owns the handler's Protocol, the servicer and the stub. What a change means is decided at the master. Every call is repeated while
the master cannot be reached, under one operation id. Rule of concurrency: as in master_servicer and master_stub.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import grpc.aio

from alluxio_like.cache.new_files import NewFile
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.rpc import convert, publishing
from alluxio_like.rpc.channel import Method, RpcChannel, call_unary
from alluxio_like.rpc.messages_writing import (
    Changed,
    NewAttributes,
    NewName,
    Persisted,
    Persisting,
    PolicyAt,
    Published,
    Renaming,
    Sealed,
    SealedDraft,
    Unpersisted,
    UploadPlan,
    WritePolicy,
    XattrChange,
)
from alluxio_like.rpc.publishing import make_policy, to_policy
from alluxio_like.rpc.status import make_detail, read_detail
from alluxio_like.rpc.telling import make_recalls, make_told, to_recalls, to_told
from alluxio_like.rpc.v1 import writing_pb2, writing_pb2_grpc
from alluxio_like.types import FileId, InodeId, Kind, MountId, VersionId, WorkerId, to_bytes, to_str


class ChangesHandler(Protocol):
    """Each call is one transaction; others' leases of what was so before are gone when it returns. A power loss may still undo
    what came after the last `flush` or `seal`.

    All raise ReadOnly, NotFound, Unavailable (the store has to follow an earlier change first, and did not in time) and what
    the system call of that name fails with.
    """

    async def create(self, operation_id: str, new: NewName) -> Changed: ...

    async def link(self, operation_id: str, inode: InodeId, parent: InodeId, name: str) -> Changed: ...

    async def remove(self, operation_id: str, parent: InodeId, name: str, *, directory: bool) -> Changed:
        """unlink, or rmdir. The entry is that of the inode as it is then (nlink may be 0)."""
        ...

    async def rename(self, operation_id: str, renaming: Renaming) -> Changed: ...

    async def set_attributes(self, operation_id: str, inode: InodeId, wanted: NewAttributes) -> Changed: ...

    async def reserve_inodes(self, count: int) -> InodeId:
        """The first of so many ids in a row that nobody else is given."""
        ...

    async def publish(self, worker_id: WorkerId, lease: str, files: Sequence[NewFile]) -> Published:
        """Have files be there that the client of that lease has made, and a worker holds. Durable when it returns. Raises
        Unavailable; what is wrong with one of them is said of that one."""
        ...

    async def flush(self) -> None:
        """What was done before is durable when this returns."""
        ...

    async def read_link(self, inode: InodeId) -> str: ...

    async def get_xattrs(self, inode: InodeId) -> dict[bytes, bytes]: ...

    async def set_xattr(self, operation_id: str, inode: InodeId, change: XattrChange) -> Changed: ...

    async def seal(self, operation_id: str, draft: SealedDraft) -> Sealed:
        """Raises NotFound: the inode is gone for good, and the draft with it."""
        ...

    async def note_holders(self, file_id: FileId, worker_ids: Sequence[WorkerId]) -> None: ...

    async def plan_upload(self, file_id: FileId) -> UploadPlan:
        """Raises Stale (this version is not wanted any more), Unavailable (try again soon)."""
        ...

    async def plan_uploads(self, file_ids: Sequence[FileId]) -> list[UploadPlan | AlluxioLikeError]:
        """As `plan_upload` of each, but that what cannot be planned now is not waited for."""
        ...

    async def end_upload(self, file_id: FileId) -> None:
        """A version's upload that was planned has been given up."""
        ...

    async def note_persisted(self, persisted: Sequence[Persisted]) -> list[AlluxioLikeError | None]:
        """What is wrong with one of them is said of that one. Durable when it returns."""
        ...

    async def note_conflict(self, operation_id: str, file_id: FileId) -> Changed:
        """The entry is what was written here, under its new name. Raises Stale (this version is not wanted any more), Conflict
        (nothing foreign is there: plan the upload again)."""
        ...

    async def set_write_policy(self, operation_id: str, path: str, policy: WritePolicy | None) -> PolicyAt:
        """None: what holds above it."""
        ...

    async def get_write_policy(self, path: str) -> PolicyAt: ...

    async def list_unpersisted(self, path: str, limit: int) -> Unpersisted: ...

    async def persist(self, path: str) -> Persisting: ...


def add_changes_service(server: grpc.aio.Server, handler: ChangesHandler) -> None:
    """Make a server (see rpc.server) answer with this handler."""
    add: Any = writing_pb2_grpc
    add.add_ChangesServicer_to_server(_Changes(handler), server)


class _Changes:
    def __init__(self, handler: ChangesHandler) -> None:
        self._handler = handler

    async def Create(self, request: writing_pb2.CreateRequest, _: Any) -> writing_pb2.ChangeReply:
        new = NewName(
            InodeId(request.parent),
            to_str(request.name),
            Kind(request.kind),
            request.mode,
            request.uid,
            request.gid,
            to_str(request.target),
            request.device,
            request.asked_mode if request.HasField("asked_mode") else None,
            request.unnamed,
            request.delegate,
        )
        return _change_reply(await self._handler.create(request.operation_id, new))

    async def Link(self, request: writing_pb2.LinkRequest, _: Any) -> writing_pb2.ChangeReply:
        name = to_str(request.name)
        return _change_reply(
            await self._handler.link(request.operation_id, InodeId(request.inode), InodeId(request.parent), name)
        )

    async def Remove(self, request: writing_pb2.RemoveRequest, _: Any) -> writing_pb2.ChangeReply:
        parent, name = InodeId(request.parent), to_str(request.name)
        return _change_reply(await self._handler.remove(request.operation_id, parent, name, directory=request.directory))

    async def Rename(self, request: writing_pb2.RenameRequest, _: Any) -> writing_pb2.ChangeReply:
        renaming = Renaming(
            InodeId(request.parent),
            to_str(request.name),
            InodeId(request.new_parent),
            to_str(request.new_name),
            request.no_replace,
            request.exchange,
        )
        return _change_reply(await self._handler.rename(request.operation_id, renaming))

    async def SetAttributes(self, request: writing_pb2.SetAttributesRequest, _: Any) -> writing_pb2.ChangeReply:
        wanted = NewAttributes(
            *(
                getattr(request, name) if request.HasField(name) else None
                for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns")
            )
        )
        return _change_reply(await self._handler.set_attributes(request.operation_id, InodeId(request.inode), wanted))

    async def ReserveInodes(self, request: writing_pb2.ReserveInodesRequest, _: Any) -> writing_pb2.ReserveInodesReply:
        return writing_pb2.ReserveInodesReply(first=await self._handler.reserve_inodes(request.count))

    async def PublishFiles(self, request: writing_pb2.PublishFilesRequest, _: Any) -> writing_pb2.PublishFilesReply:
        files = publishing.to_new_files(request.files)
        published = await self._handler.publish(WorkerId(request.worker_id), request.lease, files)
        return publishing.make_reply(published)

    async def Flush(self, _request: writing_pb2.FlushRequest, _: Any) -> writing_pb2.FlushReply:
        await self._handler.flush()
        return writing_pb2.FlushReply()

    async def ReadLink(self, request: writing_pb2.ReadLinkRequest, _: Any) -> writing_pb2.ReadLinkReply:
        return writing_pb2.ReadLinkReply(target=to_bytes(await self._handler.read_link(InodeId(request.inode))))

    async def GetXattrs(self, request: writing_pb2.GetXattrsRequest, _: Any) -> writing_pb2.GetXattrsReply:
        found = await self._handler.get_xattrs(InodeId(request.inode))
        return writing_pb2.GetXattrsReply(xattrs=[writing_pb2.Xattr(name=name, value=value) for name, value in found.items()])

    async def SetXattr(self, request: writing_pb2.SetXattrRequest, _: Any) -> writing_pb2.ChangeReply:
        value = None if request.remove else request.value
        change = XattrChange(request.name, value, request.create, request.replace, request.kill_sgid)
        return _change_reply(await self._handler.set_xattr(request.operation_id, InodeId(request.inode), change))

    async def Seal(self, request: writing_pb2.SealRequest, _: Any) -> writing_pb2.SealReply:
        draft = SealedDraft(
            InodeId(request.inode),
            request.size,
            request.mtime_ns,
            request.worker_id,
            request.base_version,
            request.lease,
            request.early,
            request.extends,
        )
        sealed = await self._handler.seal(request.operation_id, draft)
        return writing_pb2.SealReply(
            file=convert.file_ref(sealed.ref),
            unwanted=sealed.unwanted,
            policy=make_policy(sealed.policy),
            recalls=make_recalls(sealed.recalls),
            told=make_told(sealed.told),
            over_quota=sealed.over_quota,
        )

    async def NoteHolders(self, request: writing_pb2.NoteHoldersRequest, _: Any) -> writing_pb2.NoteHoldersReply:
        await self._handler.note_holders(_to_file_id(request), [WorkerId(one) for one in request.worker_ids])
        return writing_pb2.NoteHoldersReply()

    async def PlanUpload(self, request: writing_pb2.PlanUploadRequest, _: Any) -> writing_pb2.PlanUploadReply:
        return _make_plan(await self._handler.plan_upload(_to_file_id(request)))

    async def PlanUploads(self, request: writing_pb2.PlanUploadsRequest, _: Any) -> writing_pb2.PlanUploadsReply:
        planned = await self._handler.plan_uploads([_to_file_id(one) for one in request.uploads])
        return writing_pb2.PlanUploadsReply(
            uploads=[
                writing_pb2.PlannedUpload(error=make_detail(one))
                if isinstance(one, AlluxioLikeError)
                else writing_pb2.PlannedUpload(plan=_make_plan(one))
                for one in planned
            ]
        )

    async def EndUpload(self, request: writing_pb2.EndUploadRequest, _: Any) -> writing_pb2.EndUploadReply:
        await self._handler.end_upload(_to_file_id(request))
        return writing_pb2.EndUploadReply()

    async def NotePersisted(self, request: writing_pb2.NotePersistedRequest, _: Any) -> writing_pb2.NotePersistedReply:
        noted = await self._handler.note_persisted([_to_persisted(one) for one in request.versions])
        return writing_pb2.NotePersistedReply(
            versions=[writing_pb2.NotedPersisted(error=None if error is None else make_detail(error)) for error in noted]
        )

    async def NoteConflict(self, request: writing_pb2.NoteConflictRequest, _: Any) -> writing_pb2.ChangeReply:
        return _change_reply(await self._handler.note_conflict(request.operation_id, _to_file_id(request)))

    async def SetWritePolicy(self, request: writing_pb2.SetWritePolicyRequest, _: Any) -> writing_pb2.WritePolicyReply:
        policy = to_policy(request.policy) if request.policy.kind else None
        return _policy_reply(await self._handler.set_write_policy(request.operation_id, to_str(request.path), policy))

    async def GetWritePolicy(self, request: writing_pb2.GetWritePolicyRequest, _: Any) -> writing_pb2.WritePolicyReply:
        return _policy_reply(await self._handler.get_write_policy(to_str(request.path)))

    async def ListUnpersisted(self, request: writing_pb2.ListUnpersistedRequest, _: Any) -> writing_pb2.ListUnpersistedReply:
        found = await self._handler.list_unpersisted(to_str(request.path), request.limit or 100)
        return writing_pb2.ListUnpersistedReply(
            files=found.files,
            bytes=found.size_bytes,
            paths=[to_bytes(path) for path in found.paths],
            steps=found.steps,
            trouble=found.trouble,
            kept_files=found.kept_files,
            kept_bytes=found.kept_bytes,
            conflicts=[to_bytes(path) for path in found.conflicts],
        )

    async def Persist(self, request: writing_pb2.PersistRequest, _: Any) -> writing_pb2.PersistReply:
        found = await self._handler.persist(to_str(request.path))
        return writing_pb2.PersistReply(files=found.files, out_of_reach=found.out_of_reach)


class ChangesStub:
    """The master's service at the other end of a channel; methods are those of the handler.

    `timeout_s` bounds each call, its repeats included.
    """

    def __init__(self, channel: RpcChannel, *, timeout_s: float = 30.0) -> None:
        make: Any = writing_pb2_grpc
        self._channel = channel
        self._timeout_s = timeout_s
        channel.add_stub("Changes", make.ChangesStub)

    async def _call(self, name: str, request: Any, timeout_s: float | None = None) -> Any:
        timeout = self._timeout_s if timeout_s is None else timeout_s
        return await call_unary(Method(self._channel, "master", "Changes", name), request, timeout, repeat_s=self._timeout_s)

    async def create(self, operation_id: str, new: NewName) -> Changed:
        request = writing_pb2.CreateRequest(
            operation_id=operation_id,
            parent=new.parent,
            name=to_bytes(new.name),
            kind=int(new.kind),  # type: ignore[arg-type]
            mode=new.mode,
            uid=new.uid,
            gid=new.gid,
            target=to_bytes(new.target),
            device=new.device,
            asked_mode=new.asked_mode,
            unnamed=new.unnamed,
            delegate=new.delegate,
        )
        return _to_changed(await self._call("Create", request))

    async def link(self, operation_id: str, inode: InodeId, parent: InodeId, name: str) -> Changed:
        request = writing_pb2.LinkRequest(operation_id=operation_id, inode=inode, parent=parent, name=to_bytes(name))
        return _to_changed(await self._call("Link", request))

    async def remove(self, operation_id: str, parent: InodeId, name: str, *, directory: bool) -> Changed:
        request = writing_pb2.RemoveRequest(operation_id=operation_id, parent=parent, name=to_bytes(name), directory=directory)
        return _to_changed(await self._call("Remove", request))

    async def rename(self, operation_id: str, renaming: Renaming) -> Changed:
        request = writing_pb2.RenameRequest(
            operation_id=operation_id,
            parent=renaming.parent,
            name=to_bytes(renaming.name),
            new_parent=renaming.new_parent,
            new_name=to_bytes(renaming.new_name),
            no_replace=renaming.no_replace,
            exchange=renaming.exchange,
        )
        return _to_changed(await self._call("Rename", request))

    async def set_attributes(self, operation_id: str, inode: InodeId, wanted: NewAttributes) -> Changed:
        request = writing_pb2.SetAttributesRequest(
            operation_id=operation_id,
            inode=inode,
            mode=wanted.mode,
            uid=wanted.uid,
            gid=wanted.gid,
            atime_ns=wanted.atime_ns,
            mtime_ns=wanted.mtime_ns,
        )
        return _to_changed(await self._call("SetAttributes", request))

    async def reserve_inodes(self, count: int) -> InodeId:
        reply = await self._call("ReserveInodes", writing_pb2.ReserveInodesRequest(count=count))
        return InodeId(reply.first)

    async def publish(self, worker_id: WorkerId, lease: str, files: Sequence[NewFile]) -> Published:
        request = writing_pb2.PublishFilesRequest(worker_id=worker_id, lease=lease, files=publishing.make_new_files(files))
        return publishing.to_published(await self._call("PublishFiles", request))

    async def flush(self) -> None:
        await self._call("Flush", writing_pb2.FlushRequest())

    async def read_link(self, inode: InodeId) -> str:
        return to_str((await self._call("ReadLink", writing_pb2.ReadLinkRequest(inode=inode))).target)

    async def get_xattrs(self, inode: InodeId) -> dict[bytes, bytes]:
        reply = await self._call("GetXattrs", writing_pb2.GetXattrsRequest(inode=inode))
        return {one.name: one.value for one in reply.xattrs}

    async def set_xattr(self, operation_id: str, inode: InodeId, change: XattrChange) -> Changed:
        request = writing_pb2.SetXattrRequest(
            operation_id=operation_id,
            inode=inode,
            name=change.name,
            value=change.value or b"",
            create=change.create,
            replace=change.replace,
            remove=change.value is None,
            kill_sgid=change.kill_sgid,
        )
        return _to_changed(await self._call("SetXattr", request))

    async def seal(self, operation_id: str, draft: SealedDraft) -> Sealed:
        request = writing_pb2.SealRequest(
            operation_id=operation_id,
            inode=draft.inode,
            size=draft.size,
            mtime_ns=draft.mtime_ns,
            worker_id=draft.worker_id,
            base_version=draft.base_version,
            lease=draft.lease,
            early=draft.early,
            extends=draft.extends,
        )
        reply = await self._call("Seal", request)
        recalls, told = to_recalls(reply.recalls), to_told(reply.told)
        return Sealed(convert.to_file_ref(reply.file), to_policy(reply.policy), reply.unwanted, recalls, told, reply.over_quota)

    async def note_holders(self, file_id: FileId, worker_ids: Sequence[WorkerId]) -> None:
        request = writing_pb2.NoteHoldersRequest(inode=file_id.inode, version=file_id.version, worker_ids=worker_ids)
        await self._call("NoteHolders", request)

    async def plan_upload(self, file_id: FileId) -> UploadPlan:
        return _to_plan(await self._call("PlanUpload", _make_planning(file_id)))

    async def plan_uploads(self, file_ids: Sequence[FileId]) -> list[UploadPlan | AlluxioLikeError]:
        request = writing_pb2.PlanUploadsRequest(uploads=[_make_planning(file_id) for file_id in file_ids])
        reply = await self._call("PlanUploads", request)
        return [read_detail(one.error) if one.HasField("error") else _to_plan(one.plan) for one in reply.uploads]

    async def end_upload(self, file_id: FileId) -> None:
        await self._call("EndUpload", writing_pb2.EndUploadRequest(inode=file_id.inode, version=file_id.version))

    async def note_persisted(self, persisted: Sequence[Persisted]) -> list[AlluxioLikeError | None]:
        request = writing_pb2.NotePersistedRequest(versions=[_make_persisted(one) for one in persisted])
        reply = await self._call("NotePersisted", request)
        return [read_detail(one.error) if one.HasField("error") else None for one in reply.versions]

    async def note_conflict(self, operation_id: str, file_id: FileId) -> Changed:
        request = writing_pb2.NoteConflictRequest(operation_id=operation_id, inode=file_id.inode, version=file_id.version)
        return _to_changed(await self._call("NoteConflict", request))

    async def set_write_policy(self, operation_id: str, path: str, policy: WritePolicy | None) -> PolicyAt:
        request = writing_pb2.SetWritePolicyRequest(
            operation_id=operation_id, path=to_bytes(path), policy=None if policy is None else make_policy(policy)
        )
        return _to_policy_at(await self._call("SetWritePolicy", request))

    async def get_write_policy(self, path: str) -> PolicyAt:
        return _to_policy_at(await self._call("GetWritePolicy", writing_pb2.GetWritePolicyRequest(path=to_bytes(path))))

    async def list_unpersisted(self, path: str, limit: int = 100) -> Unpersisted:
        reply = await self._call("ListUnpersisted", writing_pb2.ListUnpersistedRequest(path=to_bytes(path), limit=limit))
        return Unpersisted(
            reply.files,
            reply.bytes,
            tuple(to_str(path) for path in reply.paths),
            reply.steps,
            reply.trouble,
            reply.kept_files,
            reply.kept_bytes,
            tuple(to_str(path) for path in reply.conflicts),
        )

    async def persist(self, path: str) -> Persisting:
        reply = await self._call("Persist", writing_pb2.PersistRequest(path=to_bytes(path)))
        return Persisting(reply.files, reply.out_of_reach)


def _to_file_id(message: Any) -> FileId:
    return FileId(InodeId(message.inode), VersionId(message.version))


def _make_planning(file_id: FileId) -> writing_pb2.PlanUploadRequest:
    return writing_pb2.PlanUploadRequest(inode=file_id.inode, version=file_id.version)


def _make_plan(plan: UploadPlan) -> writing_pb2.PlanUploadReply:
    expected = None if plan.expected is None else convert.fingerprint(plan.expected)
    return writing_pb2.PlanUploadReply(mount_id=plan.mount_id, key=to_bytes(plan.key), expected=expected, metadata=plan.metadata)


def _to_plan(message: writing_pb2.PlanUploadReply) -> UploadPlan:
    expected = convert.to_fingerprint(message.expected) if message.HasField("expected") else None
    return UploadPlan(MountId(message.mount_id), to_str(message.key), expected, dict(message.metadata))


def _make_persisted(value: Persisted) -> writing_pb2.PersistedVersion:
    plan = value.plan
    return writing_pb2.PersistedVersion(
        inode=value.file_id.inode,
        version=value.file_id.version,
        mount_id=plan.mount_id,
        key=to_bytes(plan.key),
        expected=None if plan.expected is None else convert.fingerprint(plan.expected),
        stored=convert.fingerprint(value.stored),
    )


def _to_persisted(message: writing_pb2.PersistedVersion) -> Persisted:
    expected = convert.to_fingerprint(message.expected) if message.HasField("expected") else None
    plan = UploadPlan(MountId(message.mount_id), to_str(message.key), expected)
    return Persisted(_to_file_id(message), plan, convert.to_fingerprint(message.stored))


def _change_reply(value: Changed) -> writing_pb2.ChangeReply:
    entry = None if value.entry is None else convert.entry(value.entry)
    given = value.delegation
    return writing_pb2.ChangeReply(
        entry=entry,
        recalls=make_recalls(value.recalls),
        told=make_told(value.told),
        delegation=None if given is None else publishing.make_delegation(given),
    )


def _to_changed(message: writing_pb2.ChangeReply) -> Changed:
    entry = convert.to_entry(message.entry) if message.HasField("entry") else None
    given = publishing.to_delegation(message.delegation) if message.HasField("delegation") else None
    return Changed(entry, to_recalls(message.recalls), to_told(message.told), given)


def _policy_reply(value: PolicyAt) -> writing_pb2.WritePolicyReply:
    return writing_pb2.WritePolicyReply(policy=make_policy(value.policy), set_at=to_bytes(value.set_at))


def _to_policy_at(message: writing_pb2.WritePolicyReply) -> PolicyAt:
    return PolicyAt(to_policy(message.policy), to_str(message.set_at))
