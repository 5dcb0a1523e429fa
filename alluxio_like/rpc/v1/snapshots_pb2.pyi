from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateSnapshotRequest(_message.Message):
    __slots__ = ("operation_id", "path", "name")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    name: bytes
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., name: _Optional[bytes] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("path", "name", "created_ns", "unlisted", "old_versions")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_NS_FIELD_NUMBER: _ClassVar[int]
    UNLISTED_FIELD_NUMBER: _ClassVar[int]
    OLD_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    name: bytes
    created_ns: int
    unlisted: int
    old_versions: str
    def __init__(self, path: _Optional[bytes] = ..., name: _Optional[bytes] = ..., created_ns: _Optional[int] = ..., unlisted: _Optional[int] = ..., old_versions: _Optional[str] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class ListSnapshotsReply(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[Snapshot]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[Snapshot, _Mapping]]] = ...) -> None: ...

class DeleteSnapshotRequest(_message.Message):
    __slots__ = ("operation_id", "path", "name")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    name: bytes
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., name: _Optional[bytes] = ...) -> None: ...

class DeleteSnapshotReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiffSnapshotsRequest(_message.Message):
    __slots__ = ("path", "name", "other")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    name: bytes
    other: bytes
    def __init__(self, path: _Optional[bytes] = ..., name: _Optional[bytes] = ..., other: _Optional[bytes] = ...) -> None: ...

class DiffSnapshotsReply(_message.Message):
    __slots__ = ("differences",)
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    def __init__(self, differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("path", "what", "size")
    PATH_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    what: str
    size: int
    def __init__(self, path: _Optional[bytes] = ..., what: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...
