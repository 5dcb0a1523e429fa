from alluxio_like.rpc.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_DEMAND: _ClassVar[Priority]
    PRIORITY_AHEAD: _ClassVar[Priority]
    PRIORITY_LOAD: _ClassVar[Priority]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_DEMAND: Priority
PRIORITY_AHEAD: Priority
PRIORITY_LOAD: Priority

class ReadRequest(_message.Message):
    __slots__ = ("file", "offset", "length", "priority", "cached_only")
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHED_ONLY_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileRef
    offset: int
    length: int
    priority: Priority
    cached_only: bool
    def __init__(self, file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., cached_only: _Optional[bool] = ...) -> None: ...

class ReadReply(_message.Message):
    __slots__ = ("data", "waited")
    DATA_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    waited: Waited
    def __init__(self, data: _Optional[bytes] = ..., waited: _Optional[_Union[Waited, _Mapping]] = ...) -> None: ...

class Waited(_message.Message):
    __slots__ = ("queue_s", "store_s", "peer_s", "fill_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    STORE_S_FIELD_NUMBER: _ClassVar[int]
    PEER_S_FIELD_NUMBER: _ClassVar[int]
    FILL_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    store_s: float
    peer_s: float
    fill_s: float
    def __init__(self, queue_s: _Optional[float] = ..., store_s: _Optional[float] = ..., peer_s: _Optional[float] = ..., fill_s: _Optional[float] = ...) -> None: ...

class FillRequest(_message.Message):
    __slots__ = ("file", "offset", "length", "priority")
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileRef
    offset: int
    length: int
    priority: Priority
    def __init__(self, file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class FillReply(_message.Message):
    __slots__ = ("present", "read_through", "generation", "directory", "waited")
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    READ_THROUGH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    present: _containers.RepeatedCompositeFieldContainer[PageRange]
    read_through: bool
    generation: int
    directory: int
    waited: Waited
    def __init__(self, present: _Optional[_Iterable[_Union[PageRange, _Mapping]]] = ..., read_through: _Optional[bool] = ..., generation: _Optional[int] = ..., directory: _Optional[int] = ..., waited: _Optional[_Union[Waited, _Mapping]] = ...) -> None: ...

class PageRange(_message.Message):
    __slots__ = ("first", "count", "checksums")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class TouchRequest(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[Touched]
    def __init__(self, files: _Optional[_Iterable[_Union[Touched, _Mapping]]] = ...) -> None: ...

class Touched(_message.Message):
    __slots__ = ("file", "bytes", "reads")
    FILE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileId
    bytes: int
    reads: int
    def __init__(self, file: _Optional[_Union[_common_pb2.FileId, _Mapping]] = ..., bytes: _Optional[int] = ..., reads: _Optional[int] = ...) -> None: ...

class TouchReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportBadRequest(_message.Message):
    __slots__ = ("file", "pages")
    FILE_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileRef
    pages: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., pages: _Optional[_Iterable[int]] = ...) -> None: ...

class ReportBadReply(_message.Message):
    __slots__ = ("bad_pages",)
    BAD_PAGES_FIELD_NUMBER: _ClassVar[int]
    bad_pages: int
    def __init__(self, bad_pages: _Optional[int] = ...) -> None: ...

class LoadFile(_message.Message):
    __slots__ = ("file", "blocks", "sources")
    FILE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileRef
    blocks: _containers.RepeatedScalarFieldContainer[int]
    sources: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, file: _Optional[_Union[_common_pb2.FileRef, _Mapping]] = ..., blocks: _Optional[_Iterable[int]] = ..., sources: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadFilesRequest(_message.Message):
    __slots__ = ("job_id", "files", "bandwidth_bytes_s")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    files: _containers.RepeatedCompositeFieldContainer[LoadFile]
    bandwidth_bytes_s: float
    def __init__(self, job_id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[LoadFile, _Mapping]]] = ..., bandwidth_bytes_s: _Optional[float] = ...) -> None: ...

class LoadFilesReply(_message.Message):
    __slots__ = ("loaded_bytes", "skipped_bytes", "requests", "results")
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    loaded_bytes: int
    skipped_bytes: int
    requests: int
    results: _containers.RepeatedCompositeFieldContainer[FileResult]
    def __init__(self, loaded_bytes: _Optional[int] = ..., skipped_bytes: _Optional[int] = ..., requests: _Optional[int] = ..., results: _Optional[_Iterable[_Union[FileResult, _Mapping]]] = ...) -> None: ...

class FileResult(_message.Message):
    __slots__ = ("file", "skipped", "code", "message")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileId
    skipped: bool
    code: str
    message: str
    def __init__(self, file: _Optional[_Union[_common_pb2.FileId, _Mapping]] = ..., skipped: _Optional[bool] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class CheckFilesRequest(_message.Message):
    __slots__ = ("files", "verify")
    FILES_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[LoadFile]
    verify: bool
    def __init__(self, files: _Optional[_Iterable[_Union[LoadFile, _Mapping]]] = ..., verify: _Optional[bool] = ...) -> None: ...

class CheckFilesReply(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[CheckedFile]
    def __init__(self, files: _Optional[_Iterable[_Union[CheckedFile, _Mapping]]] = ...) -> None: ...

class CheckedFile(_message.Message):
    __slots__ = ("file", "missing_pages", "bad_pages")
    FILE_FIELD_NUMBER: _ClassVar[int]
    MISSING_PAGES_FIELD_NUMBER: _ClassVar[int]
    BAD_PAGES_FIELD_NUMBER: _ClassVar[int]
    file: _common_pb2.FileId
    missing_pages: int
    bad_pages: int
    def __init__(self, file: _Optional[_Union[_common_pb2.FileId, _Mapping]] = ..., missing_pages: _Optional[int] = ..., bad_pages: _Optional[int] = ...) -> None: ...

class FreeFilesRequest(_message.Message):
    __slots__ = ("files", "force")
    FILES_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[_common_pb2.FileId]
    force: bool
    def __init__(self, files: _Optional[_Iterable[_Union[_common_pb2.FileId, _Mapping]]] = ..., force: _Optional[bool] = ...) -> None: ...

class FreeFilesReply(_message.Message):
    __slots__ = ("files", "bytes", "kept_pinned_files")
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_PINNED_FILES_FIELD_NUMBER: _ClassVar[int]
    files: int
    bytes: int
    kept_pinned_files: int
    def __init__(self, files: _Optional[int] = ..., bytes: _Optional[int] = ..., kept_pinned_files: _Optional[int] = ...) -> None: ...

class SetFilesPinnedRequest(_message.Message):
    __slots__ = ("files", "pinned")
    FILES_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[_common_pb2.FileId]
    pinned: bool
    def __init__(self, files: _Optional[_Iterable[_Union[_common_pb2.FileId, _Mapping]]] = ..., pinned: _Optional[bool] = ...) -> None: ...

class SetFilesPinnedReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerStatusReply(_message.Message):
    __slots__ = ("info", "directories", "queue_depth", "leases")
    INFO_FIELD_NUMBER: _ClassVar[int]
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    info: _common_pb2.WorkerInfo
    directories: _containers.RepeatedCompositeFieldContainer[DirectoryStatus]
    queue_depth: int
    leases: int
    def __init__(self, info: _Optional[_Union[_common_pb2.WorkerInfo, _Mapping]] = ..., directories: _Optional[_Iterable[_Union[DirectoryStatus, _Mapping]]] = ..., queue_depth: _Optional[int] = ..., leases: _Optional[int] = ...) -> None: ...

class DirectoryStatus(_message.Message):
    __slots__ = ("path", "quota_bytes", "used_bytes", "held_bytes", "free_disk_bytes", "state", "reason", "held_files", "file_system", "passthrough", "passthrough_reason")
    PATH_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HELD_FILES_FIELD_NUMBER: _ClassVar[int]
    FILE_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    PASSTHROUGH_FIELD_NUMBER: _ClassVar[int]
    PASSTHROUGH_REASON_FIELD_NUMBER: _ClassVar[int]
    path: str
    quota_bytes: int
    used_bytes: int
    held_bytes: int
    free_disk_bytes: int
    state: str
    reason: str
    held_files: int
    file_system: str
    passthrough: str
    passthrough_reason: str
    def __init__(self, path: _Optional[str] = ..., quota_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., held_bytes: _Optional[int] = ..., free_disk_bytes: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., held_files: _Optional[int] = ..., file_system: _Optional[str] = ..., passthrough: _Optional[str] = ..., passthrough_reason: _Optional[str] = ...) -> None: ...
