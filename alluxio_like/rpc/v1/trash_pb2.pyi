from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeepRequest(_message.Message):
    __slots__ = ("operation_id", "path", "keep_s")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    KEEP_S_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    keep_s: float
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., keep_s: _Optional[float] = ...) -> None: ...

class KeepReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopKeepingRequest(_message.Message):
    __slots__ = ("operation_id", "path")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ...) -> None: ...

class StopKeepingReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTrashRequest(_message.Message):
    __slots__ = ("path", "limit")
    PATH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    limit: int
    def __init__(self, path: _Optional[bytes] = ..., limit: _Optional[int] = ...) -> None: ...

class ListTrashReply(_message.Message):
    __slots__ = ("entries", "more", "settings")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Thrown]
    more: bool
    settings: _containers.RepeatedCompositeFieldContainer[TrashSetting]
    def __init__(self, entries: _Optional[_Iterable[_Union[Thrown, _Mapping]]] = ..., more: _Optional[bool] = ..., settings: _Optional[_Iterable[_Union[TrashSetting, _Mapping]]] = ...) -> None: ...

class Thrown(_message.Message):
    __slots__ = ("entry", "path", "size", "removed_ns", "expires_ns")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_NS_FIELD_NUMBER: _ClassVar[int]
    entry: bytes
    path: bytes
    size: int
    removed_ns: int
    expires_ns: int
    def __init__(self, entry: _Optional[bytes] = ..., path: _Optional[bytes] = ..., size: _Optional[int] = ..., removed_ns: _Optional[int] = ..., expires_ns: _Optional[int] = ...) -> None: ...

class TrashSetting(_message.Message):
    __slots__ = ("path", "keep_s")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KEEP_S_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    keep_s: float
    def __init__(self, path: _Optional[bytes] = ..., keep_s: _Optional[float] = ...) -> None: ...

class RestoreThrownRequest(_message.Message):
    __slots__ = ("operation_id", "entry")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    entry: bytes
    def __init__(self, operation_id: _Optional[str] = ..., entry: _Optional[bytes] = ...) -> None: ...

class RestoreThrownReply(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class EmptyRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class EmptyReply(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: int
    def __init__(self, files: _Optional[int] = ...) -> None: ...
