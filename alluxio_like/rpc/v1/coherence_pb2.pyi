from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("session_id", "run", "number", "confirmed", "bye", "succeeded")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    run: int
    number: int
    confirmed: int
    bye: bool
    succeeded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_id: _Optional[str] = ..., run: _Optional[int] = ..., number: _Optional[int] = ..., confirmed: _Optional[int] = ..., bye: _Optional[bool] = ..., succeeded: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("run", "fresh", "number", "lease_s", "recalls", "sequence", "cluster_epoch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    RECALLS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    run: int
    fresh: bool
    number: int
    lease_s: float
    recalls: _containers.RepeatedCompositeFieldContainer[Recall]
    sequence: int
    cluster_epoch: int
    def __init__(self, run: _Optional[int] = ..., fresh: _Optional[bool] = ..., number: _Optional[int] = ..., lease_s: _Optional[float] = ..., recalls: _Optional[_Iterable[_Union[Recall, _Mapping]]] = ..., sequence: _Optional[int] = ..., cluster_epoch: _Optional[int] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("directory", "names", "all", "inodes", "pins_only")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    PINS_ONLY_FIELD_NUMBER: _ClassVar[int]
    directory: int
    names: _containers.RepeatedScalarFieldContainer[bytes]
    all: bool
    inodes: _containers.RepeatedScalarFieldContainer[int]
    pins_only: bool
    def __init__(self, directory: _Optional[int] = ..., names: _Optional[_Iterable[bytes]] = ..., all: _Optional[bool] = ..., inodes: _Optional[_Iterable[int]] = ..., pins_only: _Optional[bool] = ...) -> None: ...
