from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LockKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCK_KIND_NONE: _ClassVar[LockKind]
    LOCK_KIND_READ: _ClassVar[LockKind]
    LOCK_KIND_WRITE: _ClassVar[LockKind]
LOCK_KIND_NONE: LockKind
LOCK_KIND_READ: LockKind
LOCK_KIND_WRITE: LockKind

class FileLock(_message.Message):
    __slots__ = ("inode", "whole", "owner", "kind", "start", "end", "pid", "holder")
    INODE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    inode: int
    whole: bool
    owner: int
    kind: LockKind
    start: int
    end: int
    pid: int
    holder: str
    def __init__(self, inode: _Optional[int] = ..., whole: _Optional[bool] = ..., owner: _Optional[int] = ..., kind: _Optional[_Union[LockKind, str]] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., pid: _Optional[int] = ..., holder: _Optional[str] = ...) -> None: ...

class AttachLocksRequest(_message.Message):
    __slots__ = ("holder", "locks")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    holder: str
    locks: _containers.RepeatedCompositeFieldContainer[FileLock]
    def __init__(self, holder: _Optional[str] = ..., locks: _Optional[_Iterable[_Union[FileLock, _Mapping]]] = ...) -> None: ...

class AttachLocksReply(_message.Message):
    __slots__ = ("locks", "lost")
    LOCKS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    locks: _containers.RepeatedCompositeFieldContainer[FileLock]
    lost: _containers.RepeatedCompositeFieldContainer[FileLock]
    def __init__(self, locks: _Optional[_Iterable[_Union[FileLock, _Mapping]]] = ..., lost: _Optional[_Iterable[_Union[FileLock, _Mapping]]] = ...) -> None: ...

class SetLockRequest(_message.Message):
    __slots__ = ("holder", "lock")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    holder: str
    lock: FileLock
    def __init__(self, holder: _Optional[str] = ..., lock: _Optional[_Union[FileLock, _Mapping]] = ...) -> None: ...

class SetLockReply(_message.Message):
    __slots__ = ("conflict", "wait_s")
    CONFLICT_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    conflict: FileLock
    wait_s: float
    def __init__(self, conflict: _Optional[_Union[FileLock, _Mapping]] = ..., wait_s: _Optional[float] = ...) -> None: ...

class WaitLockRequest(_message.Message):
    __slots__ = ("holder", "lock", "wait_s")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    holder: str
    lock: FileLock
    wait_s: float
    def __init__(self, holder: _Optional[str] = ..., lock: _Optional[_Union[FileLock, _Mapping]] = ..., wait_s: _Optional[float] = ...) -> None: ...

class WaitLockReply(_message.Message):
    __slots__ = ("free",)
    FREE_FIELD_NUMBER: _ClassVar[int]
    free: bool
    def __init__(self, free: _Optional[bool] = ...) -> None: ...

class DropLocksRequest(_message.Message):
    __slots__ = ("holder", "inode", "whole", "owner")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    holder: str
    inode: int
    whole: bool
    owner: int
    def __init__(self, holder: _Optional[str] = ..., inode: _Optional[int] = ..., whole: _Optional[bool] = ..., owner: _Optional[int] = ...) -> None: ...

class DropLocksReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
