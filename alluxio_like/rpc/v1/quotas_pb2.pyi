from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SetQuotaRequest(_message.Message):
    __slots__ = ("operation_id", "path", "max_bytes", "max_files")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FILES_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    max_bytes: int
    max_files: int
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ..., max_bytes: _Optional[int] = ..., max_files: _Optional[int] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("path", "max_bytes", "max_files", "used_bytes", "used_files", "counting")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FILES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_FILES_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    max_bytes: int
    max_files: int
    used_bytes: int
    used_files: int
    counting: bool
    def __init__(self, path: _Optional[bytes] = ..., max_bytes: _Optional[int] = ..., max_files: _Optional[int] = ..., used_bytes: _Optional[int] = ..., used_files: _Optional[int] = ..., counting: _Optional[bool] = ...) -> None: ...

class ClaimRequest(_message.Message):
    __slots__ = ("inode", "size", "only_asks")
    INODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ONLY_ASKS_FIELD_NUMBER: _ClassVar[int]
    inode: int
    size: int
    only_asks: bool
    def __init__(self, inode: _Optional[int] = ..., size: _Optional[int] = ..., only_asks: _Optional[bool] = ...) -> None: ...

class ClaimReply(_message.Message):
    __slots__ = ("size", "has_quotas")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    HAS_QUOTAS_FIELD_NUMBER: _ClassVar[int]
    size: int
    has_quotas: bool
    def __init__(self, size: _Optional[int] = ..., has_quotas: _Optional[bool] = ...) -> None: ...

class ClearQuotaRequest(_message.Message):
    __slots__ = ("operation_id", "path")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    path: bytes
    def __init__(self, operation_id: _Optional[str] = ..., path: _Optional[bytes] = ...) -> None: ...

class ClearQuotaReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListQuotasRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class ListQuotasReply(_message.Message):
    __slots__ = ("quotas",)
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    def __init__(self, quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ...) -> None: ...
