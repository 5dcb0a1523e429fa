"""Files that clients make by themselves, over the wire: conversions that the services Changes and Drafts share.

Owns nothing; pure functions, safe from any thread.
"""

from collections.abc import Iterable, Sequence

from alluxio_like.cache.new_files import NewFile
from alluxio_like.rpc import convert
from alluxio_like.rpc.messages_writing import Delegation, Published, PublishedFile, WriteMode, WritePolicy
from alluxio_like.rpc.status import make_detail, read_detail
from alluxio_like.rpc.telling import make_recalls, make_told, to_recalls, to_told
from alluxio_like.rpc.v1 import writing_pb2
from alluxio_like.types import InodeId, MountId, to_bytes, to_str


def make_new_files(files: Iterable[NewFile]) -> list[writing_pb2.NewFile]:
    return [
        writing_pb2.NewFile(
            operation_id=file.operation_id,
            inode=file.inode,
            parent=file.parent,
            name=to_bytes(file.name),
            mode=file.mode,
            uid=file.uid,
            gid=file.gid,
            changed_ns=file.changed_ns,
            mtime_ns=file.mtime_ns,
            atime_ns=file.atime_ns,
            sealed=file.sealed,
            size=file.size,
            made_ns=file.made_ns,
            renamed_id=file.renamed_id,
            left=file.left,
            left_ns=file.left_ns,
        )
        for file in files
    ]


def to_new_files(messages: Iterable[writing_pb2.NewFile]) -> list[NewFile]:
    return [
        NewFile(
            one.operation_id,
            InodeId(one.inode),
            InodeId(one.parent),
            to_str(one.name),
            one.mode,
            one.uid,
            one.gid,
            one.changed_ns,
            one.mtime_ns,
            one.atime_ns if one.HasField("atime_ns") else None,
            one.sealed,
            one.size,
            one.made_ns,
            one.renamed_id,
            InodeId(one.left),
            one.left_ns,
        )
        for one in messages
    ]


def make_reply(value: Published) -> writing_pb2.PublishFilesReply:
    return writing_pb2.PublishFilesReply(
        files=[_make_file(one) for one in value.files], recalls=make_recalls(value.recalls), told=make_told(value.told)
    )


def _make_file(value: PublishedFile) -> writing_pb2.PublishedFile:
    return writing_pb2.PublishedFile(
        error=None if value.error is None else make_detail(value.error),
        file=None if value.ref is None else convert.file_ref(value.ref),
        policy=None if value.policy is None else make_policy(value.policy),
        unwanted=value.unwanted,
    )


def to_published(message: writing_pb2.PublishFilesReply) -> Published:
    files: Sequence[PublishedFile] = [
        PublishedFile(
            convert.to_file_ref(one.file) if one.HasField("file") else None,
            to_policy(one.policy) if one.HasField("policy") else None,
            one.unwanted,
            read_detail(one.error) if one.HasField("error") else None,
        )
        for one in message.files
    ]
    return Published(tuple(files), to_recalls(message.recalls), to_told(message.told))


def make_delegation(value: Delegation) -> writing_pb2.Delegation:
    return writing_pb2.Delegation(name_bytes=value.name_bytes, mount_id=value.mount_id, key=to_bytes(value.key))


def to_delegation(message: writing_pb2.Delegation) -> Delegation:
    return Delegation(message.name_bytes, MountId(message.mount_id), to_str(message.key))


def make_policy(value: WritePolicy) -> writing_pb2.WritePolicy:
    return writing_pb2.WritePolicy(kind=value.mode.value, replicas=value.replicas)


def to_policy(message: writing_pb2.WritePolicy) -> WritePolicy:
    return WritePolicy(WriteMode(message.kind), max(1, message.replicas))
