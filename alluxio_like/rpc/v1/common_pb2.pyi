from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_FILE: _ClassVar[Kind]
    KIND_DIRECTORY: _ClassVar[Kind]
    KIND_SYMLINK: _ClassVar[Kind]
    KIND_FIFO: _ClassVar[Kind]
    KIND_SOCKET: _ClassVar[Kind]
    KIND_CHARACTER_DEVICE: _ClassVar[Kind]
    KIND_BLOCK_DEVICE: _ClassVar[Kind]
KIND_UNSPECIFIED: Kind
KIND_FILE: Kind
KIND_DIRECTORY: Kind
KIND_SYMLINK: Kind
KIND_FIFO: Kind
KIND_SOCKET: Kind
KIND_CHARACTER_DEVICE: Kind
KIND_BLOCK_DEVICE: Kind

class Fingerprint(_message.Message):
    __slots__ = ("token", "size")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    token: str
    size: int
    def __init__(self, token: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Attr(_message.Message):
    __slots__ = ("inode", "kind", "mode", "uid", "gid", "size", "mtime_ns", "ctime_ns", "nlink", "version", "atime_ns", "device", "no_xattrs")
    INODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    NLINK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NO_XATTRS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    nlink: int
    version: int
    atime_ns: int
    device: int
    no_xattrs: bool
    def __init__(self, inode: _Optional[int] = ..., kind: _Optional[_Union[Kind, str]] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., size: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., nlink: _Optional[int] = ..., version: _Optional[int] = ..., atime_ns: _Optional[int] = ..., device: _Optional[int] = ..., no_xattrs: _Optional[bool] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("name", "attr", "mount_id", "key", "fingerprint", "pinned", "source", "holders", "content_inode", "continues")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ATTR_FIELD_NUMBER: _ClassVar[int]
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_INODE_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    attr: Attr
    mount_id: int
    key: bytes
    fingerprint: Fingerprint
    pinned: bool
    source: Fingerprint
    holders: _containers.RepeatedScalarFieldContainer[str]
    content_inode: int
    continues: int
    def __init__(self, name: _Optional[bytes] = ..., attr: _Optional[_Union[Attr, _Mapping]] = ..., mount_id: _Optional[int] = ..., key: _Optional[bytes] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., pinned: _Optional[bool] = ..., source: _Optional[_Union[Fingerprint, _Mapping]] = ..., holders: _Optional[_Iterable[str]] = ..., content_inode: _Optional[int] = ..., continues: _Optional[int] = ...) -> None: ...

class FileRef(_message.Message):
    __slots__ = ("inode", "version", "mount_id", "key", "fingerprint", "pinned", "source", "holders", "frozen")
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    inode: int
    version: int
    mount_id: int
    key: bytes
    fingerprint: Fingerprint
    pinned: bool
    source: Fingerprint
    holders: _containers.RepeatedScalarFieldContainer[str]
    frozen: bool
    def __init__(self, inode: _Optional[int] = ..., version: _Optional[int] = ..., mount_id: _Optional[int] = ..., key: _Optional[bytes] = ..., fingerprint: _Optional[_Union[Fingerprint, _Mapping]] = ..., pinned: _Optional[bool] = ..., source: _Optional[_Union[Fingerprint, _Mapping]] = ..., holders: _Optional[_Iterable[str]] = ..., frozen: _Optional[bool] = ...) -> None: ...

class FileId(_message.Message):
    __slots__ = ("inode", "version")
    INODE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    inode: int
    version: int
    def __init__(self, inode: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("code", "message", "subject")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    subject: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., subject: _Optional[str] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker_id", "address", "host_id", "door_path", "capacity_bytes", "used_bytes", "live", "last_seen_s", "home_bytes", "guest_bytes", "pinned_bytes", "file_count", "data_address", "data_nonce", "usable_bytes", "unpersisted_bytes", "unpersisted_limit_bytes", "kept_bytes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    DOOR_PATH_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    HOME_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DATA_NONCE_FIELD_NUMBER: _ClassVar[int]
    USABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNPERSISTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNPERSISTED_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    address: str
    host_id: str
    door_path: str
    capacity_bytes: int
    used_bytes: int
    live: bool
    last_seen_s: float
    home_bytes: int
    guest_bytes: int
    pinned_bytes: int
    file_count: int
    data_address: str
    data_nonce: str
    usable_bytes: int
    unpersisted_bytes: int
    unpersisted_limit_bytes: int
    kept_bytes: int
    def __init__(self, worker_id: _Optional[str] = ..., address: _Optional[str] = ..., host_id: _Optional[str] = ..., door_path: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., live: _Optional[bool] = ..., last_seen_s: _Optional[float] = ..., home_bytes: _Optional[int] = ..., guest_bytes: _Optional[int] = ..., pinned_bytes: _Optional[int] = ..., file_count: _Optional[int] = ..., data_address: _Optional[str] = ..., data_nonce: _Optional[str] = ..., usable_bytes: _Optional[int] = ..., unpersisted_bytes: _Optional[int] = ..., unpersisted_limit_bytes: _Optional[int] = ..., kept_bytes: _Optional[int] = ...) -> None: ...

class ClusterView(_message.Message):
    __slots__ = ("cluster_id", "epoch", "workers", "whole_file_limit_bytes", "page_bytes", "block_bytes")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FILE_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    epoch: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    whole_file_limit_bytes: int
    page_bytes: int
    block_bytes: int
    def __init__(self, cluster_id: _Optional[str] = ..., epoch: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., whole_file_limit_bytes: _Optional[int] = ..., page_bytes: _Optional[int] = ..., block_bytes: _Optional[int] = ...) -> None: ...
