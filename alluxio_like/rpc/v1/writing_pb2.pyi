from alluxio_like.rpc.v1 import coherence_pb2 as _coherence_pb2
from alluxio_like.rpc.v1 import common_pb2 as _common_pb2
from alluxio_like.rpc.v1 import master_pb2 as _master_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateRequest(_message.Message):
    __slots__ = ("operation_id", "parent", "name", "kind", "mode", "uid", "gid", "target", "device", "asked_mode", "unnamed", "delegate")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ASKED_MODE_FIELD_NUMBER: _ClassVar[int]
    UNNAMED_FIELD_NUMBER: _ClassVar[int]
    DELEGATE_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    parent: int
    name: bytes
    kind: _common_pb2.Kind
    mode: int
    uid: int
    gid: int
    target: bytes
    device: int
    asked_mode: int
    unnamed: bool
    delegate: bool
    def __init__(self, operation_id: _Optional[str] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., kind: _Optional[_Union[_common_pb2.Kind, str]] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., target: _Optional[bytes] = ..., device: _Optional[int] = ..., asked_mode: _Optional[int] = ..., unnamed: _Optional[bool] = ..., delegate: _Optional[bool] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("operation_id", "inode", "parent", "name")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    inode: int
    parent: int
    name: bytes
    def __init__(self, operation_id: _Optional[str] = ..., inode: _Optional[int] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("operation_id", "parent", "name", "directory")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    parent: int
    name: bytes
    directory: bool
    def __init__(self, operation_id: _Optional[str] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., directory: _Optional[bool] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("operation_id", "parent", "name", "new_parent", "new_name", "no_replace", "exchange")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NEW_PARENT_FIELD_NUMBER: _ClassVar[int]
    NEW_NAME_FIELD_NUMBER: _ClassVar[int]
    NO_REPLACE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    no_replace: bool
    exchange: bool
    def __init__(self, operation_id: _Optional[str] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., new_parent: _Optional[int] = ..., new_name: _Optional[bytes] = ..., no_replace: _Optional[bool] = ..., exchange: _Optional[bool] = ...) -> None: ...

class SetAttributesRequest(_message.Message):
    __slots__ = ("operation_id", "inode", "mode", "uid", "gid", "atime_ns", "mtime_ns")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    inode: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    def __init__(self, operation_id: _Optional[str] = ..., inode: _Optional[int] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ...) -> None: ...

class ChangeReply(_message.Message):
    __slots__ = ("entry", "recalls", "told", "delegation")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    RECALLS_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    DELEGATION_FIELD_NUMBER: _ClassVar[int]
    entry: _common_pb2.Entry
    recalls: _containers.RepeatedCompositeFieldContainer[_coherence_pb2.Recall]
    told: _containers.RepeatedCompositeFieldContainer[Told]
    delegation: Delegation
    def __init__(self, entry: _Optional[_Union[_common_pb2.Entry, _Mapping]] = ..., recalls: _Optional[_Iterable[_Union[_coherence_pb2.Recall, _Mapping]]] = ..., told: _Optional[_Iterable[_Union[Told, _Mapping]]] = ..., delegation: _Optional[_Union[Delegation, _Mapping]] = ...) -> None: ...

class Delegation(_message.Message):
    __slots__ = ("name_bytes", "mount_id", "key")
    NAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    name_bytes: int
    mount_id: int
    key: bytes
    def __init__(self, name_bytes: _Optional[int] = ..., mount_id: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class ReserveInodesRequest(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class ReserveInodesReply(_message.Message):
    __slots__ = ("first",)
    FIRST_FIELD_NUMBER: _ClassVar[int]
    first: int
    def __init__(self, first: _Optional[int] = ...) -> None: ...

class NewFile(_message.Message):
    __slots__ = ("operation_id", "inode", "parent", "name", "mode", "uid", "gid", "changed_ns", "atime_ns", "mtime_ns", "sealed", "size", "made_ns", "renamed_id", "left", "left_ns")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    CHANGED_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MADE_NS_FIELD_NUMBER: _ClassVar[int]
    RENAMED_ID_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    LEFT_NS_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    inode: int
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    changed_ns: int
    atime_ns: int
    mtime_ns: int
    sealed: bool
    size: int
    made_ns: int
    renamed_id: str
    left: int
    left_ns: int
    def __init__(self, operation_id: _Optional[str] = ..., inode: _Optional[int] = ..., parent: _Optional[int] = ..., name: _Optional[bytes] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., changed_ns: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., sealed: _Optional[bool] = ..., size: _Optional[int] = ..., made_ns: _Optional[int] = ..., renamed_id: _Optional[str] = ..., left: _Optional[int] = ..., left_ns: _Optional[int] = ...) -> None: ...

class PublishFilesRequest(_message.Message):
    __slots__ = ("worker_id", "lease", "files")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    lease: str
    files: _containers.RepeatedCompositeFieldContainer[NewFile]
    def __init__(self, worker_id: _Optional[str] = ..., lease: _Optional[str] = ..., files: _Optional[_Iterable[_Union[NewFile, _Mapping]]] = ...) -> None: ...

class PublishedFile(_message.Message):
    __slots__ = ("error", "file", "policy", "unwanted")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    UNWANTED_FIELD_NUMBER: _ClassVar[int]
    error: _common_pb2.ErrorDetail
    file: _common_pb2.FileRef
    policy: WritePolicy
    unwanted: bool
    def __init__(self, error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., policy: _Optional[_Union[WritePolicy, _Mapping]] = ..., unwanted: _Optional[bool] = ...) -> None: ...

class PublishFilesReply(_message.Message):
    __slots__ = ("files", "recalls", "told")
    FILES_FIELD_NUMBER: _ClassVar[int]
    RECALLS_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[PublishedFile]
    recalls: _containers.RepeatedCompositeFieldContainer[_coherence_pb2.Recall]
    told: _containers.RepeatedCompositeFieldContainer[Told]
    def __init__(self, files: _Optional[_Iterable[_Union[PublishedFile, _Mapping]]] = ..., recalls: _Optional[_Iterable[_Union[_coherence_pb2.Recall, _Mapping]]] = ..., told: _Optional[_Iterable[_Union[Told, _Mapping]]] = ...) -> None: ...

class Told(_message.Message):
    __slots__ = ("parent", "name", "result", "empty")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    parent: int
    name: bytes
    result: _master_pb2.LookupReply
    empty: bool
    def __init__(self, parent: _Optional[int] = ..., name: _Optional[bytes] = ..., result: _Optional[_Union[_master_pb2.LookupReply, _Mapping]] = ..., empty: _Optional[bool] = ...) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FlushReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadLinkRequest(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    def __init__(self, inode: _Optional[int] = ...) -> None: ...

class ReadLinkReply(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: bytes
    def __init__(self, target: _Optional[bytes] = ...) -> None: ...

class GetXattrsRequest(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    def __init__(self, inode: _Optional[int] = ...) -> None: ...

class Xattr(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class GetXattrsReply(_message.Message):
    __slots__ = ("xattrs",)
    XATTRS_FIELD_NUMBER: _ClassVar[int]
    xattrs: _containers.RepeatedCompositeFieldContainer[Xattr]
    def __init__(self, xattrs: _Optional[_Iterable[_Union[Xattr, _Mapping]]] = ...) -> None: ...

class SetXattrRequest(_message.Message):
    __slots__ = ("operation_id", "inode", "name", "value", "create", "replace", "remove", "kill_sgid")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    KILL_SGID_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    inode: int
    name: bytes
    value: bytes
    create: bool
    replace: bool
    remove: bool
    kill_sgid: bool
    def __init__(self, operation_id: _Optional[str] = ..., inode: _Optional[int] = ..., name: _Optional[bytes] = ..., value: _Optional[bytes] = ..., create: _Optional[bool] = ..., replace: _Optional[bool] = ..., remove: _Optional[bool] = ..., kill_sgid: _Optional[bool] = ...) -> None: ...

class SealRequest(_message.Message):
    __slots__ = ("operation_id", "inode", "size", "mtime_ns", "worker_id", "base_version", "lease", "early", "extends")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    EARLY_FIELD_NUMBER: _ClassVar[int]
    EXTENDS_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    inode: int
    size: int
    mtime_ns: int
    worker_id: str
    base_version: int
    lease: str
    early: bool
    extends: bool
    def __init__(self, operation_id: _Optional[str] = ..., inode: _Optional[int] = ..., size: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., worker_id: _Optional[str] = ..., base_version: _Optional[int] = ..., lease: _Optional[str] = ..., early: _Optional[bool] = ..., extends: _Optional[bool] = ...) -> None: ...

class SealReply(_message.Message):
    __slots__ = ("file", "unwanted", "policy", "recalls", "told", "over_quota")
    FILE_FIELD_NUMBER: _ClassVar[int]
    UNWANTED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RECALLS_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    OVER_QUOTA_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileRef
    unwanted: bool
    policy: WritePolicy
    recalls: _containers.RepeatedCompositeFieldContainer[_coherence_pb2.Recall]
    told: _containers.RepeatedCompositeFieldContainer[Told]
    over_quota: bool
    def __init__(self, file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., unwanted: _Optional[bool] = ..., policy: _Optional[_Union[WritePolicy, _Mapping]] = ..., recalls: _Optional[_Iterable[_Union[_coherence_pb2.Recall, _Mapping]]] = ..., told: _Optional[_Iterable[_Union[Told, _Mapping]]] = ..., over_quota: _Optional[bool] = ...) -> None: ...

class WritePolicy(_message.Message):
    __slots__ = ("kind", "replicas")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    replicas: int
    def __init__(self, kind: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class NoteHoldersRequest(_message.Message):
    __slots__ = ("inode", "version", "worker_ids")
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    version: int
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, inode: _Optional[int] = ..., version: _Optional[int] = ..., worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class NoteHoldersReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PlanUploadRequest(_message.Message):
    __slots__ = ("inode", "version")
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    inode: int
    version: int
    def __init__(self, inode: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class PlanUploadReply(_message.Message):
    __slots__ = ("mount_id", "key", "expected", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    mount_id: int
    key: bytes
    expected: _common_pb2.Fingerprint
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, mount_id: _Optional[int] = ..., key: _Optional[bytes] = ..., expected: _Optional[_Union[_common_pb2.Fingerprint, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class EndUploadRequest(_message.Message):
    __slots__ = ("inode", "version")
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    inode: int
    version: int
    def __init__(self, inode: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class EndUploadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PersistedVersion(_message.Message):
    __slots__ = ("inode", "version", "mount_id", "key", "expected", "stored")
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    inode: int
    version: int
    mount_id: int
    key: bytes
    expected: _common_pb2.Fingerprint
    stored: _common_pb2.Fingerprint
    def __init__(self, inode: _Optional[int] = ..., version: _Optional[int] = ..., mount_id: _Optional[int] = ..., key: _Optional[bytes] = ..., expected: _Optional[_Union[_common_pb2.Fingerprint, _Mapping]] = ..., stored: _Optional[_Union[_common_pb2.Fingerprint, _Mapping]] = ...) -> None: ...

class NotePersistedRequest(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[PersistedVersion]
    def __init__(self, versions: _Optional[_Iterable[_Union[PersistedVersion, _Mapping]]] = ...) -> None: ...

class NotedPersisted(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: _common_pb2.ErrorDetail
    def __init__(self, error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class NotePersistedReply(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[NotedPersisted]
    def __init__(self, versions: _Optional[_Iterable[_Union[NotedPersisted, _Mapping]]] = ...) -> None: ...

class PlanUploadsRequest(_message.Message):
    __slots__ = ("uploads",)
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    uploads: _containers.RepeatedCompositeFieldContainer[PlanUploadRequest]
    def __init__(self, uploads: _Optional[_Iterable[_Union[PlanUploadRequest, _Mapping]]] = ...) -> None: ...

class PlannedUpload(_message.Message):
    __slots__ = ("error", "plan")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    error: _common_pb2.ErrorDetail
    plan: PlanUploadReply
    def __init__(self, error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., plan: _Optional[_Union[PlanUploadReply, _Mapping]] = ...) -> None: ...

class PlanUploadsReply(_message.Message):
    __slots__ = ("uploads",)
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    uploads: _containers.RepeatedCompositeFieldContainer[PlannedUpload]
    def __init__(self, uploads: _Optional[_Iterable[_Union[PlannedUpload, _Mapping]]] = ...) -> None: ...

class NoteConflictRequest(_message.Message):
    __slots__ = ("operation_id", "inode", "version")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    inode: int
    version: int
    def __init__(self, operation_id: _Optional[str] = ..., inode: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class SetWritePolicyRequest(_message.Message):
    __slots__ = ("operation_id", "path", "policy")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    policy: WritePolicy
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., policy: _Optional[_Union[WritePolicy, _Mapping]] = ...) -> None: ...

class GetWritePolicyRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class WritePolicyReply(_message.Message):
    __slots__ = ("policy", "set_at")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SET_AT_FIELD_NUMBER: _ClassVar[int]
    policy: WritePolicy
    set_at: bytes
    def __init__(self, policy: _Optional[_Union[WritePolicy, _Mapping]] = ..., set_at: _Optional[bytes] = ...) -> None: ...

class ListUnpersistedRequest(_message.Message):
    __slots__ = ("path", "limit")
    PATH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    limit: int
    def __init__(self, path: _Optional[bytes] = ..., limit: _Optional[int] = ...) -> None: ...

class ListUnpersistedReply(_message.Message):
    __slots__ = ("files", "bytes", "paths", "steps", "trouble", "kept_files", "kept_bytes", "conflicts")
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    KEPT_FILES_FIELD_NUMBER: _ClassVar[int]
    KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    files: int
    bytes: int
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    steps: int
    trouble: str
    kept_files: int
    kept_bytes: int
    conflicts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, files: _Optional[int] = ..., bytes: _Optional[int] = ..., paths: _Optional[_Iterable[bytes]] = ..., steps: _Optional[int] = ..., trouble: _Optional[str] = ..., kept_files: _Optional[int] = ..., kept_bytes: _Optional[int] = ..., conflicts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PersistRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class PersistReply(_message.Message):
    __slots__ = ("files", "out_of_reach")
    FILES_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_REACH_FIELD_NUMBER: _ClassVar[int]
    files: int
    out_of_reach: int
    def __init__(self, files: _Optional[int] = ..., out_of_reach: _Optional[int] = ...) -> None: ...

class BeginDraftRequest(_message.Message):
    __slots__ = ("file", "truncate")
    FILE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileRef
    truncate: bool
    def __init__(self, file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., truncate: _Optional[bool] = ...) -> None: ...

class BeginDraftReply(_message.Message):
    __slots__ = ("directory", "path")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    directory: int
    path: str
    def __init__(self, directory: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class BeginBlankRequest(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class BeginBlankReply(_message.Message):
    __slots__ = ("places", "noted")
    PLACES_FIELD_NUMBER: _ClassVar[int]
    NOTED_FIELD_NUMBER: _ClassVar[int]
    places: _containers.RepeatedCompositeFieldContainer[BeginDraftReply]
    noted: bool
    def __init__(self, places: _Optional[_Iterable[_Union[BeginDraftReply, _Mapping]]] = ..., noted: _Optional[bool] = ...) -> None: ...

class PublishDraftsRequest(_message.Message):
    __slots__ = ("lease", "files")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    lease: str
    files: _containers.RepeatedCompositeFieldContainer[NewFile]
    def __init__(self, lease: _Optional[str] = ..., files: _Optional[_Iterable[_Union[NewFile, _Mapping]]] = ...) -> None: ...

class PublishLeftRequest(_message.Message):
    __slots__ = ("owner",)
    OWNER_FIELD_NUMBER: _ClassVar[int]
    owner: str
    def __init__(self, owner: _Optional[str] = ...) -> None: ...

class PublishLeftReply(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: int
    def __init__(self, files: _Optional[int] = ...) -> None: ...

class SealDraftRequest(_message.Message):
    __slots__ = ("operation_id", "inode", "lease", "early")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    EARLY_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    inode: int
    lease: str
    early: bool
    def __init__(self, operation_id: _Optional[str] = ..., inode: _Optional[int] = ..., lease: _Optional[str] = ..., early: _Optional[bool] = ...) -> None: ...

class SealDraftReply(_message.Message):
    __slots__ = ("file", "unchanged", "mtime_ns", "recalls", "told", "over_quota")
    FILE_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    RECALLS_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    OVER_QUOTA_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileRef
    unchanged: bool
    mtime_ns: int
    recalls: _containers.RepeatedCompositeFieldContainer[_coherence_pb2.Recall]
    told: _containers.RepeatedCompositeFieldContainer[Told]
    over_quota: bool
    def __init__(self, file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., unchanged: _Optional[bool] = ..., mtime_ns: _Optional[int] = ..., recalls: _Optional[_Iterable[_Union[_coherence_pb2.Recall, _Mapping]]] = ..., told: _Optional[_Iterable[_Union[Told, _Mapping]]] = ..., over_quota: _Optional[bool] = ...) -> None: ...

class EndDraftRequest(_message.Message):
    __slots__ = ("inode", "others")
    INODE_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    others: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, inode: _Optional[int] = ..., others: _Optional[_Iterable[int]] = ...) -> None: ...

class EndDraftReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SyncDraftRequest(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    def __init__(self, inode: _Optional[int] = ...) -> None: ...

class SyncDraftReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PersistDraftsRequest(_message.Message):
    __slots__ = ("inodes",)
    INODES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, inodes: _Optional[_Iterable[int]] = ...) -> None: ...

class PersistDraftsReply(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: int
    def __init__(self, files: _Optional[int] = ...) -> None: ...
