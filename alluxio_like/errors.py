"""The one tree of errors, and what each of them means at the borders.

    AlluxioLikeError
    ├── NotFound                no such path, key, job, mount
    ├── AlreadyExists
    ├── NotADirectory
    ├── IsADirectory
    ├── DirectoryNotEmpty
    ├── InvalidArgument         wrong usage: an option, a size, a URI
    │   └── ConfigError         a configuration that cannot be used
    ├── NameTooLong
    ├── AccessDenied            the caller may not (POSIX permissions, tokens)
    ├── NotPermitted            nobody may: a hard link to a directory
    ├── CrossDevice             a rename or link between two mounts
    ├── ReadOnly                a write where nothing can be written
    ├── Stale                   the content asked for is no longer in the store
    ├── NoSpace                 a full disk or cache
    │   └── QuotaExceeded       more than the directory's quota allows
    ├── NoData                  no such extended attribute
    ├── Unsupported
    ├── Conflict                somebody else holds it: two processes on one home, a mount in use
    ├── FormatTooNew            data on disk written by a newer release
    ├── Cancelled
    ├── TimedOut                not done within the stated time
    ├── Unavailable             a service of ours cannot be reached now
    │   └── Untrusted           one of the two ends shows no certificate that the other accepts; waiting does not help
    ├── StoreError              what the store did wrong
    │   ├── StoreDenied         credentials refused
    │   ├── StoreMissing        no such bucket, file system, directory
    │   ├── StoreArchived       in the store's archive, to be asked back before it can be read
    │   ├── StoreThrottled      SlowDown, 429, 503
    │   ├── StoreUnavailable    cannot be reached, 5xx, broken connection
    │   └── StoreProtocol       an answer other than what was asked: length, range, ETag
    ├── DiskError               a cache disk failed
    ├── Corrupt                 bytes that do not match their checksum
    └── Internal                a defect of ours

`TABLE` gives each its disposition: errno (replied only in fuse/), gRPC status (used only in rpc/), and whether the same call may
succeed when it is repeated. Errors cross the wire by `code`; no code anywhere parses a message. Plain data, safe from any thread.
"""

import errno
from typing import ClassVar, NamedTuple


class AlluxioLikeError(Exception):
    """Root of the tree. `message` is one line for a person; `subject` is the path, key or option it is about."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str = "", *, subject: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject

    def __str__(self) -> str:
        if self.subject and self.subject not in self.message:
            return f"{self.message}: {self.subject}" if self.message else self.subject
        return self.message or self.code


class NotFound(AlluxioLikeError):
    code = "not_found"


class AlreadyExists(AlluxioLikeError):
    code = "already_exists"


class NotADirectory(AlluxioLikeError):
    code = "not_a_directory"


class IsADirectory(AlluxioLikeError):
    code = "is_a_directory"


class DirectoryNotEmpty(AlluxioLikeError):
    code = "directory_not_empty"


class InvalidArgument(AlluxioLikeError):
    code = "invalid_argument"


class ConfigError(InvalidArgument):
    code = "config_error"


class NameTooLong(AlluxioLikeError):
    code = "name_too_long"


class AccessDenied(AlluxioLikeError):
    code = "access_denied"


class NotPermitted(AlluxioLikeError):
    code = "not_permitted"


class CrossDevice(AlluxioLikeError):
    code = "cross_device"


class ReadOnly(AlluxioLikeError):
    code = "read_only"


class Stale(AlluxioLikeError):
    code = "stale"


class NoSpace(AlluxioLikeError):
    code = "no_space"


class QuotaExceeded(NoSpace):
    code = "quota_exceeded"


class NoData(AlluxioLikeError):
    code = "no_data"


class Unsupported(AlluxioLikeError):
    code = "unsupported"


class Conflict(AlluxioLikeError):
    code = "conflict"


class FormatTooNew(AlluxioLikeError):
    code = "format_too_new"


class Cancelled(AlluxioLikeError):
    code = "cancelled"


class TimedOut(AlluxioLikeError):
    code = "timed_out"


class Unavailable(AlluxioLikeError):
    code = "unavailable"


class Untrusted(Unavailable):
    code = "untrusted"


class StoreError(AlluxioLikeError):
    code = "store_error"


class StoreDenied(StoreError):
    code = "store_denied"


class StoreMissing(StoreError):
    code = "store_missing"


class StoreArchived(StoreError):
    code = "store_archived"


class StoreThrottled(StoreError):
    code = "store_throttled"


class StoreUnavailable(StoreError):
    code = "store_unavailable"


class StoreProtocol(StoreError):
    code = "store_protocol"


class DiskError(AlluxioLikeError):
    code = "disk_error"


class Corrupt(AlluxioLikeError):
    code = "corrupt"


class Internal(AlluxioLikeError):
    code = "internal"


class Disposition(NamedTuple):
    """What an error means at the borders: errno for POSIX callers, the gRPC status' name, whether a repeat may succeed."""

    errno: int
    grpc_status: str
    retryable: bool


TABLE: dict[type[AlluxioLikeError], Disposition] = {
    AlluxioLikeError: Disposition(errno.EIO, "UNKNOWN", False),
    NotFound: Disposition(errno.ENOENT, "NOT_FOUND", False),
    AlreadyExists: Disposition(errno.EEXIST, "ALREADY_EXISTS", False),
    NotADirectory: Disposition(errno.ENOTDIR, "FAILED_PRECONDITION", False),
    IsADirectory: Disposition(errno.EISDIR, "FAILED_PRECONDITION", False),
    DirectoryNotEmpty: Disposition(errno.ENOTEMPTY, "FAILED_PRECONDITION", False),
    InvalidArgument: Disposition(errno.EINVAL, "INVALID_ARGUMENT", False),
    ConfigError: Disposition(errno.EINVAL, "INVALID_ARGUMENT", False),
    NameTooLong: Disposition(errno.ENAMETOOLONG, "INVALID_ARGUMENT", False),
    AccessDenied: Disposition(errno.EACCES, "PERMISSION_DENIED", False),
    NotPermitted: Disposition(errno.EPERM, "FAILED_PRECONDITION", False),
    CrossDevice: Disposition(errno.EXDEV, "FAILED_PRECONDITION", False),
    ReadOnly: Disposition(errno.EROFS, "FAILED_PRECONDITION", False),
    Stale: Disposition(errno.ESTALE, "ABORTED", False),
    NoSpace: Disposition(errno.ENOSPC, "RESOURCE_EXHAUSTED", False),
    QuotaExceeded: Disposition(errno.EDQUOT, "RESOURCE_EXHAUSTED", False),
    NoData: Disposition(errno.ENODATA, "NOT_FOUND", False),
    Unsupported: Disposition(errno.EOPNOTSUPP, "UNIMPLEMENTED", False),
    Conflict: Disposition(errno.EBUSY, "FAILED_PRECONDITION", False),
    FormatTooNew: Disposition(errno.EIO, "FAILED_PRECONDITION", False),
    Cancelled: Disposition(errno.EINTR, "CANCELLED", False),
    TimedOut: Disposition(errno.EIO, "DEADLINE_EXCEEDED", False),
    Unavailable: Disposition(errno.EIO, "UNAVAILABLE", True),
    Untrusted: Disposition(errno.EIO, "UNAVAILABLE", False),
    StoreError: Disposition(errno.EIO, "UNKNOWN", False),
    StoreDenied: Disposition(errno.EACCES, "PERMISSION_DENIED", False),
    StoreMissing: Disposition(errno.EIO, "NOT_FOUND", False),
    StoreArchived: Disposition(errno.ENODATA, "FAILED_PRECONDITION", False),
    StoreThrottled: Disposition(errno.EIO, "UNAVAILABLE", True),
    StoreUnavailable: Disposition(errno.EIO, "UNAVAILABLE", True),
    StoreProtocol: Disposition(errno.EIO, "DATA_LOSS", True),
    DiskError: Disposition(errno.EIO, "DATA_LOSS", True),
    Corrupt: Disposition(errno.EIO, "DATA_LOSS", True),
    Internal: Disposition(errno.EIO, "INTERNAL", False),
}

BY_CODE: dict[str, type[AlluxioLikeError]] = {cls.code: cls for cls in TABLE}


def get_disposition(error: BaseException) -> Disposition:
    """The disposition of an error; one that is not of our tree counts as Internal."""
    return TABLE.get(type(error), TABLE[Internal]) if isinstance(error, AlluxioLikeError) else TABLE[Internal]


def make_error(code: str, message: str, subject: str = "") -> AlluxioLikeError:
    """The error that a code names; a code of a newer peer that is not known here gives the tree's root."""
    return BY_CODE.get(code, AlluxioLikeError)(message, subject=subject)
