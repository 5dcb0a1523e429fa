from alluxio_like.rpc.v1 import common_pb2 as _common_pb2
from alluxio_like.rpc.v1 import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_PLANNING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_CHECKING: _ClassVar[JobState]
    JOB_STATE_DONE: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_PLANNING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_CHECKING: JobState
JOB_STATE_DONE: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class LookupRequest(_message.Message):
    __slots__ = ("parent", "name")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    parent: int
    name: bytes
    def __init__(self, parent: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("entry", "valid_s", "leased", "directory", "chain")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    entry: _common_pb2.Entry
    valid_s: float
    leased: bool
    directory: int
    chain: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, entry: _Optional[_Union[_common_pb2.Entry, _Mapping]] = ..., valid_s: _Optional[float] = ..., leased: _Optional[bool] = ..., directory: _Optional[int] = ..., chain: _Optional[_Iterable[int]] = ...) -> None: ...

class LookupManyRequest(_message.Message):
    __slots__ = ("lookups",)
    LOOKUPS_FIELD_NUMBER: _ClassVar[int]
    lookups: _containers.RepeatedCompositeFieldContainer[LookupRequest]
    def __init__(self, lookups: _Optional[_Iterable[_Union[LookupRequest, _Mapping]]] = ...) -> None: ...

class LookupManyReply(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[LookupReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[LookupReply, _Mapping]]] = ...) -> None: ...

class ResolvePathRequest(_message.Message):
    __slots__ = ("path", "sync")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    sync: bool
    def __init__(self, path: _Optional[bytes] = ..., sync: _Optional[bool] = ...) -> None: ...

class GetEntryRequest(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    def __init__(self, inode: _Optional[int] = ...) -> None: ...

class ListDirRequest(_message.Message):
    __slots__ = ("inode", "cursor", "limit")
    INODE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    inode: int
    cursor: bytes
    limit: int
    def __init__(self, inode: _Optional[int] = ..., cursor: _Optional[bytes] = ..., limit: _Optional[int] = ...) -> None: ...

class ListDirReply(_message.Message):
    __slots__ = ("entries", "next_cursor", "valid_s", "mount_id", "dir_key", "leased", "unleased")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    DIR_KEY_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    UNLEASED_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_common_pb2.Entry]
    next_cursor: bytes
    valid_s: float
    mount_id: int
    dir_key: bytes
    leased: bool
    unleased: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, entries: _Optional[_Iterable[_Union[_common_pb2.Entry, _Mapping]]] = ..., next_cursor: _Optional[bytes] = ..., valid_s: _Optional[float] = ..., mount_id: _Optional[int] = ..., dir_key: _Optional[bytes] = ..., leased: _Optional[bool] = ..., unleased: _Optional[_Iterable[int]] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("path", "inode", "recursive")
    PATH_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    inode: int
    recursive: bool
    def __init__(self, path: _Optional[bytes] = ..., inode: _Optional[int] = ..., recursive: _Optional[bool] = ...) -> None: ...

class SyncReply(_message.Message):
    __slots__ = ("directories", "added", "removed", "replaced")
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    directories: int
    added: int
    removed: int
    replaced: int
    def __init__(self, directories: _Optional[int] = ..., added: _Optional[int] = ..., removed: _Optional[int] = ..., replaced: _Optional[int] = ...) -> None: ...

class ListTreeRequest(_message.Message):
    __slots__ = ("path", "unless")
    PATH_FIELD_NUMBER: _ClassVar[int]
    UNLESS_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    unless: int
    def __init__(self, path: _Optional[bytes] = ..., unless: _Optional[int] = ...) -> None: ...

class TreePage(_message.Message):
    __slots__ = ("directories", "counts", "inodes", "kinds", "sizes", "mtimes_ns", "names", "name_ends", "tokens", "token_ends", "mark", "unchanged")
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    MTIMES_NS_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NAME_ENDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ENDS_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    directories: _containers.RepeatedScalarFieldContainer[bytes]
    counts: bytes
    inodes: bytes
    kinds: bytes
    sizes: bytes
    mtimes_ns: bytes
    names: bytes
    name_ends: bytes
    tokens: bytes
    token_ends: bytes
    mark: int
    unchanged: bool
    def __init__(self, directories: _Optional[_Iterable[bytes]] = ..., counts: _Optional[bytes] = ..., inodes: _Optional[bytes] = ..., kinds: _Optional[bytes] = ..., sizes: _Optional[bytes] = ..., mtimes_ns: _Optional[bytes] = ..., names: _Optional[bytes] = ..., name_ends: _Optional[bytes] = ..., tokens: _Optional[bytes] = ..., token_ends: _Optional[bytes] = ..., mark: _Optional[int] = ..., unchanged: _Optional[bool] = ...) -> None: ...

class StatFsRequest(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: int
    def __init__(self, inode: _Optional[int] = ...) -> None: ...

class Space(_message.Message):
    __slots__ = ("total_bytes", "free_bytes", "total_files", "free_files")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FILES_FIELD_NUMBER: _ClassVar[int]
    FREE_FILES_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    free_bytes: int
    total_files: int
    free_files: int
    def __init__(self, total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., total_files: _Optional[int] = ..., free_files: _Optional[int] = ...) -> None: ...

class StatFsReply(_message.Message):
    __slots__ = ("files", "known_bytes", "capacity_bytes", "used_bytes", "space", "policy", "quota_free_bytes", "has_quotas")
    FILES_FIELD_NUMBER: _ClassVar[int]
    KNOWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HAS_QUOTAS_FIELD_NUMBER: _ClassVar[int]
    files: int
    known_bytes: int
    capacity_bytes: int
    used_bytes: int
    space: Space
    policy: str
    quota_free_bytes: int
    has_quotas: bool
    def __init__(self, files: _Optional[int] = ..., known_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., space: _Optional[_Union[Space, _Mapping]] = ..., policy: _Optional[str] = ..., quota_free_bytes: _Optional[int] = ..., has_quotas: _Optional[bool] = ...) -> None: ...

class GetArchiveStatusRequest(_message.Message):
    __slots__ = ("mount_id", "key")
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    mount_id: int
    key: bytes
    def __init__(self, mount_id: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("mount_id", "key", "days", "tier")
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    DAYS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    mount_id: int
    key: bytes
    days: int
    tier: str
    def __init__(self, mount_id: _Optional[int] = ..., key: _Optional[bytes] = ..., days: _Optional[int] = ..., tier: _Optional[str] = ...) -> None: ...

class ArchiveStatus(_message.Message):
    __slots__ = ("state", "storage_class", "until_ns")
    STATE_FIELD_NUMBER: _ClassVar[int]
    STORAGE_CLASS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    state: str
    storage_class: str
    until_ns: int
    def __init__(self, state: _Optional[str] = ..., storage_class: _Optional[str] = ..., until_ns: _Optional[int] = ...) -> None: ...

class MountRequest(_message.Message):
    __slots__ = ("operation_id", "path", "uri", "options", "read_only", "sync_interval_s", "uid", "gid", "skip_check", "update", "keep_others")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    SYNC_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    SKIP_CHECK_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    KEEP_OTHERS_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    uri: str
    options: _containers.ScalarMap[str, str]
    read_only: bool
    sync_interval_s: float
    uid: int
    gid: int
    skip_check: bool
    update: bool
    keep_others: bool
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., uri: _Optional[str] = ..., options: _Optional[_Mapping[str, str]] = ..., read_only: _Optional[bool] = ..., sync_interval_s: _Optional[float] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., skip_check: _Optional[bool] = ..., update: _Optional[bool] = ..., keep_others: _Optional[bool] = ...) -> None: ...

class MountReply(_message.Message):
    __slots__ = ("mount",)
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    mount: MountInfo
    def __init__(self, mount: _Optional[_Union[MountInfo, _Mapping]] = ...) -> None: ...

class UnmountRequest(_message.Message):
    __slots__ = ("operation_id", "path", "force")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    force: bool
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., force: _Optional[bool] = ...) -> None: ...

class UnmountReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMountsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMountsReply(_message.Message):
    __slots__ = ("mounts",)
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    mounts: _containers.RepeatedCompositeFieldContainer[MountInfo]
    def __init__(self, mounts: _Optional[_Iterable[_Union[MountInfo, _Mapping]]] = ...) -> None: ...

class MountInfo(_message.Message):
    __slots__ = ("mount_id", "path", "uri", "options", "read_only", "sync_interval_s", "uid", "gid", "created_ns", "trouble", "sync_paths", "write", "write_paths")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    SYNC_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    SYNC_PATHS_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    WRITE_PATHS_FIELD_NUMBER: _ClassVar[int]
    mount_id: int
    path: bytes
    uri: str
    options: _containers.ScalarMap[str, str]
    read_only: bool
    sync_interval_s: float
    uid: int
    gid: int
    created_ns: int
    trouble: str
    sync_paths: _containers.RepeatedCompositeFieldContainer[PathInterval]
    write: str
    write_paths: _containers.RepeatedCompositeFieldContainer[PathPolicy]
    def __init__(self, mount_id: _Optional[int] = ..., path: _Optional[bytes] = ..., uri: _Optional[str] = ..., options: _Optional[_Mapping[str, str]] = ..., read_only: _Optional[bool] = ..., sync_interval_s: _Optional[float] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., created_ns: _Optional[int] = ..., trouble: _Optional[str] = ..., sync_paths: _Optional[_Iterable[_Union[PathInterval, _Mapping]]] = ..., write: _Optional[str] = ..., write_paths: _Optional[_Iterable[_Union[PathPolicy, _Mapping]]] = ...) -> None: ...

class PathPolicy(_message.Message):
    __slots__ = ("path", "policy")
    PATH_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    policy: str
    def __init__(self, path: _Optional[bytes] = ..., policy: _Optional[str] = ...) -> None: ...

class PathInterval(_message.Message):
    __slots__ = ("path", "interval_s")
    PATH_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    interval_s: float
    def __init__(self, path: _Optional[bytes] = ..., interval_s: _Optional[float] = ...) -> None: ...

class SetSyncIntervalRequest(_message.Message):
    __slots__ = ("operation_id", "path", "interval_s")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    interval_s: float
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., interval_s: _Optional[float] = ...) -> None: ...

class GetSyncIntervalRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class SyncIntervalReply(_message.Message):
    __slots__ = ("interval_s", "set_at")
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    SET_AT_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    set_at: bytes
    def __init__(self, interval_s: _Optional[float] = ..., set_at: _Optional[bytes] = ...) -> None: ...

class GetMountSecretsRequest(_message.Message):
    __slots__ = ("mount_id",)
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    mount_id: int
    def __init__(self, mount_id: _Optional[int] = ...) -> None: ...

class MountSecrets(_message.Message):
    __slots__ = ("mount", "secrets")
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    mount: MountInfo
    secrets: _containers.ScalarMap[str, str]
    def __init__(self, mount: _Optional[_Union[MountInfo, _Mapping]] = ..., secrets: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("worker", "cluster_id", "session_id")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.WorkerInfo
    cluster_id: str
    session_id: str
    def __init__(self, worker: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ..., cluster_id: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("cluster_id", "cluster")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    cluster: _common_pb2.ClusterView
    def __init__(self, cluster_id: _Optional[str] = ..., cluster: _Optional[_Union[_common_pb2.ClusterView, _Mapping]] = ...) -> None: ...

class BlockDelta(_message.Message):
    __slots__ = ("inode", "version", "block", "present_bits", "bytes")
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    PRESENT_BITS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    inode: int
    version: int
    block: int
    present_bits: int
    bytes: int
    def __init__(self, inode: _Optional[int] = ..., version: _Optional[int] = ..., block: _Optional[int] = ..., present_bits: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class BlockReport(_message.Message):
    __slots__ = ("worker_id", "session_id", "blocks", "whole_inodes", "whole_versions", "whole_sizes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_INODES_FIELD_NUMBER: _ClassVar[int]
    WHOLE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_SIZES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    session_id: str
    blocks: _containers.RepeatedCompositeFieldContainer[BlockDelta]
    whole_inodes: bytes
    whole_versions: bytes
    whole_sizes: bytes
    def __init__(self, worker_id: _Optional[str] = ..., session_id: _Optional[str] = ..., blocks: _Optional[_Iterable[_Union[BlockDelta, _Mapping]]] = ..., whole_inodes: _Optional[bytes] = ..., whole_versions: _Optional[bytes] = ..., whole_sizes: _Optional[bytes] = ...) -> None: ...

class ReportBlocksReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("worker_id", "session_id", "sequence", "changes", "status", "throttles", "cluster_epoch", "demand")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    THROTTLES_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    session_id: str
    sequence: int
    changes: _containers.RepeatedCompositeFieldContainer[BlockDelta]
    status: _common_pb2.WorkerInfo
    throttles: _containers.RepeatedCompositeFieldContainer[Throttle]
    cluster_epoch: int
    demand: int
    def __init__(self, worker_id: _Optional[str] = ..., session_id: _Optional[str] = ..., sequence: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[BlockDelta, _Mapping]]] = ..., status: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ..., throttles: _Optional[_Iterable[_Union[Throttle, _Mapping]]] = ..., cluster_epoch: _Optional[int] = ..., demand: _Optional[int] = ...) -> None: ...

class Throttle(_message.Message):
    __slots__ = ("bucket", "count", "used_rate")
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    USED_RATE_FIELD_NUMBER: _ClassVar[int]
    bucket: str
    count: int
    used_rate: float
    def __init__(self, bucket: _Optional[str] = ..., count: _Optional[int] = ..., used_rate: _Optional[float] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("register_again", "cluster", "rates", "demand_elsewhere")
    REGISTER_AGAIN_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    DEMAND_ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    register_again: bool
    cluster: _common_pb2.ClusterView
    rates: _containers.RepeatedCompositeFieldContainer[RateShare]
    demand_elsewhere: int
    def __init__(self, register_again: _Optional[bool] = ..., cluster: _Optional[_Union[_common_pb2.ClusterView, _Mapping]] = ..., rates: _Optional[_Iterable[_Union[RateShare, _Mapping]]] = ..., demand_elsewhere: _Optional[int] = ...) -> None: ...

class RateShare(_message.Message):
    __slots__ = ("bucket", "requests_per_s")
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    bucket: str
    requests_per_s: float
    def __init__(self, bucket: _Optional[str] = ..., requests_per_s: _Optional[float] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("worker_id", "session_id")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    session_id: str
    def __init__(self, worker_id: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[_common_pb2.FileId]
    def __init__(self, files: _Optional[_Iterable[_Union[_common_pb2.FileId, _Mapping]]] = ...) -> None: ...

class LocateReply(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileLocations]
    def __init__(self, files: _Optional[_Iterable[_Union[FileLocations, _Mapping]]] = ...) -> None: ...

class FileLocations(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[BlockLocation]
    def __init__(self, blocks: _Optional[_Iterable[_Union[BlockLocation, _Mapping]]] = ...) -> None: ...

class BlockLocation(_message.Message):
    __slots__ = ("block", "worker_id", "present_bits", "bytes")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PRESENT_BITS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    block: int
    worker_id: str
    present_bits: int
    bytes: int
    def __init__(self, block: _Optional[int] = ..., worker_id: _Optional[str] = ..., present_bits: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class LoadSpec(_message.Message):
    __slots__ = ("replicas", "glob", "bandwidth_bytes_s", "hosts", "dry_run", "fit", "verify")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    GLOB_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    glob: str
    bandwidth_bytes_s: int
    hosts: _containers.RepeatedScalarFieldContainer[str]
    dry_run: bool
    fit: bool
    verify: bool
    def __init__(self, replicas: _Optional[int] = ..., glob: _Optional[str] = ..., bandwidth_bytes_s: _Optional[int] = ..., hosts: _Optional[_Iterable[str]] = ..., dry_run: _Optional[bool] = ..., fit: _Optional[bool] = ..., verify: _Optional[bool] = ...) -> None: ...

class SubmitLoadRequest(_message.Message):
    __slots__ = ("operation_id", "spec", "paths")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    spec: LoadSpec
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, operation_id: _Optional[str] = ..., spec: _Optional[_Union[LoadSpec, _Mapping]] = ..., paths: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SubmitLoadReply(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "state", "spec", "paths", "path_count", "listing_done", "total_files", "total_bytes", "done_files", "done_bytes", "skipped_files", "skipped_bytes", "failed_files", "unfit_files", "unfit_bytes", "checked_files", "requests", "rate_bytes_s", "eta_s", "free_bytes", "created_ns", "ended_ns", "reason", "problems")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    PATH_COUNT_FIELD_NUMBER: _ClassVar[int]
    LISTING_DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FILES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DONE_FILES_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FILES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FAILED_FILES_FIELD_NUMBER: _ClassVar[int]
    UNFIT_FILES_FIELD_NUMBER: _ClassVar[int]
    UNFIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FILES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RATE_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    ENDED_NS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    state: JobState
    spec: LoadSpec
    paths: _containers.RepeatedScalarFieldContainer[bytes]
    path_count: int
    listing_done: bool
    total_files: int
    total_bytes: int
    done_files: int
    done_bytes: int
    skipped_files: int
    skipped_bytes: int
    failed_files: int
    unfit_files: int
    unfit_bytes: int
    checked_files: int
    requests: int
    rate_bytes_s: float
    eta_s: float
    free_bytes: int
    created_ns: int
    ended_ns: int
    reason: str
    problems: _containers.RepeatedCompositeFieldContainer[JobProblem]
    def __init__(self, job_id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., spec: _Optional[_Union[LoadSpec, _Mapping]] = ..., paths: _Optional[_Iterable[bytes]] = ..., path_count: _Optional[int] = ..., listing_done: _Optional[bool] = ..., total_files: _Optional[int] = ..., total_bytes: _Optional[int] = ..., done_files: _Optional[int] = ..., done_bytes: _Optional[int] = ..., skipped_files: _Optional[int] = ..., skipped_bytes: _Optional[int] = ..., failed_files: _Optional[int] = ..., unfit_files: _Optional[int] = ..., unfit_bytes: _Optional[int] = ..., checked_files: _Optional[int] = ..., requests: _Optional[int] = ..., rate_bytes_s: _Optional[float] = ..., eta_s: _Optional[float] = ..., free_bytes: _Optional[int] = ..., created_ns: _Optional[int] = ..., ended_ns: _Optional[int] = ..., reason: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[JobProblem, _Mapping]]] = ...) -> None: ...

class JobProblem(_message.Message):
    __slots__ = ("path", "code", "message")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    code: str
    message: str
    def __init__(self, path: _Optional[bytes] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListJobsReply(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("operation_id", "job_id")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    job_id: str
    def __init__(self, operation_id: _Optional[str] = ..., job_id: _Optional[str] = ...) -> None: ...

class ListJobProblemsRequest(_message.Message):
    __slots__ = ("job_id", "cursor")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    cursor: int
    def __init__(self, job_id: _Optional[str] = ..., cursor: _Optional[int] = ...) -> None: ...

class ListJobProblemsReply(_message.Message):
    __slots__ = ("problems", "next_cursor")
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    problems: _containers.RepeatedCompositeFieldContainer[JobProblem]
    next_cursor: int
    def __init__(self, problems: _Optional[_Iterable[_Union[JobProblem, _Mapping]]] = ..., next_cursor: _Optional[int] = ...) -> None: ...

class CacheStatusRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class CacheStatusReply(_message.Message):
    __slots__ = ("files", "bytes", "cached_files", "cached_bytes", "stored_bytes", "pinned_files", "holders", "replicas", "version", "complete", "summed")
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHED_FILES_FIELD_NUMBER: _ClassVar[int]
    CACHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FILES_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    SUMMED_FIELD_NUMBER: _ClassVar[int]
    files: int
    bytes: int
    cached_files: int
    cached_bytes: int
    stored_bytes: int
    pinned_files: int
    holders: _containers.RepeatedCompositeFieldContainer[HolderStatus]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaCount]
    version: int
    complete: bool
    summed: bool
    def __init__(self, files: _Optional[int] = ..., bytes: _Optional[int] = ..., cached_files: _Optional[int] = ..., cached_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., pinned_files: _Optional[int] = ..., holders: _Optional[_Iterable[_Union[HolderStatus, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaCount, _Mapping]]] = ..., version: _Optional[int] = ..., complete: _Optional[bool] = ..., summed: _Optional[bool] = ...) -> None: ...

class HolderStatus(_message.Message):
    __slots__ = ("worker_id", "address", "files", "bytes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    address: str
    files: int
    bytes: int
    def __init__(self, worker_id: _Optional[str] = ..., address: _Optional[str] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class ReplicaCount(_message.Message):
    __slots__ = ("replicas", "files")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    files: int
    def __init__(self, replicas: _Optional[int] = ..., files: _Optional[int] = ...) -> None: ...

class FreeRequest(_message.Message):
    __slots__ = ("operation_id", "path", "force")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    force: bool
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., force: _Optional[bool] = ...) -> None: ...

class FreeReply(_message.Message):
    __slots__ = ("files", "bytes", "kept_pinned_files")
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_PINNED_FILES_FIELD_NUMBER: _ClassVar[int]
    files: int
    bytes: int
    kept_pinned_files: int
    def __init__(self, files: _Optional[int] = ..., bytes: _Optional[int] = ..., kept_pinned_files: _Optional[int] = ...) -> None: ...

class SetPinnedRequest(_message.Message):
    __slots__ = ("operation_id", "path", "pinned")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    pinned: bool
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., pinned: _Optional[bool] = ...) -> None: ...

class SetPinnedReply(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: int
    def __init__(self, files: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("cluster", "mounts", "jobs", "totals", "uptime_s", "software_version", "limited_buckets", "warnings", "details", "unpersisted_files", "unpersisted_bytes", "journal_steps")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMITED_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    UNPERSISTED_FILES_FIELD_NUMBER: _ClassVar[int]
    UNPERSISTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    cluster: _common_pb2.ClusterView
    mounts: _containers.RepeatedCompositeFieldContainer[MountInfo]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    totals: StatFsReply
    uptime_s: float
    software_version: str
    limited_buckets: _containers.RepeatedCompositeFieldContainer[RateShare]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    details: _containers.RepeatedCompositeFieldContainer[_worker_pb2.WorkerStatusReply]
    unpersisted_files: int
    unpersisted_bytes: int
    journal_steps: int
    def __init__(self, cluster: _Optional[_Union[_common_pb2.ClusterView, _Mapping]] = ..., mounts: _Optional[_Iterable[_Union[MountInfo, _Mapping]]] = ..., jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., totals: _Optional[_Union[StatFsReply, _Mapping]] = ..., uptime_s: _Optional[float] = ..., software_version: _Optional[str] = ..., limited_buckets: _Optional[_Iterable[_Union[RateShare, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., details: _Optional[_Iterable[_Union[_worker_pb2.WorkerStatusReply, _Mapping]]] = ..., unpersisted_files: _Optional[int] = ..., unpersisted_bytes: _Optional[int] = ..., journal_steps: _Optional[int] = ...) -> None: ...
