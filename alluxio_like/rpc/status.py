"""Between our tree of errors and what gRPC carries.

Owns both directions: an error becomes a status and a detail in the trailing metadata ("alluxio-error-bin"); a failed call becomes
the error the detail names, or, where there is none (the peer was not reached, or is not one of ours), the one its
status stands for. Pure functions, safe from any thread.
"""

import grpc
import grpc.aio

from alluxio_like.errors import (
    AccessDenied,
    AlluxioLikeError,
    Cancelled,
    Internal,
    TimedOut,
    Unavailable,
    Unsupported,
    get_disposition,
    make_error,
)
from alluxio_like.rpc.v1 import common_pb2

ERROR_KEY = "alluxio-error-bin"

_MAX_TEXT = 2000
"""Characters of a message or subject that are sent: gRPC allows 8 KiB of metadata in all."""

_WITHOUT_DETAIL: dict[grpc.StatusCode, type[AlluxioLikeError]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.INVALID_ARGUMENT: Internal,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.NOT_FOUND: Internal,
    grpc.StatusCode.ALREADY_EXISTS: Internal,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Internal,
    grpc.StatusCode.FAILED_PRECONDITION: Internal,
    grpc.StatusCode.ABORTED: Internal,
    grpc.StatusCode.OUT_OF_RANGE: Internal,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: Internal,
    grpc.StatusCode.OK: Internal,
}
"""What a failed call means that carries no detail of ours: gRPC itself, or something between, ended it."""


def get_status_code(error: AlluxioLikeError) -> grpc.StatusCode:
    """The gRPC status of an error."""
    return grpc.StatusCode[get_disposition(error).grpc_status]


def _clean(text: str) -> str:
    # Names may hold surrogates (bytes that are not UTF-8), which no wire string can.
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def make_detail(error: AlluxioLikeError) -> common_pb2.ErrorDetail:
    """An error as it travels."""
    return common_pb2.ErrorDetail(code=error.code, message=_clean(error.message), subject=_clean(error.subject))


def read_detail(detail: common_pb2.ErrorDetail) -> AlluxioLikeError:
    """The error that a detail describes."""
    return make_error(detail.code, detail.message, detail.subject)


def encode_error(error: AlluxioLikeError) -> bytes:
    """The detail that travels in the trailing metadata."""
    return make_detail(error).SerializeToString()


def decode_error(wire: bytes) -> AlluxioLikeError:
    """The error that such a detail describes."""
    return read_detail(common_pb2.ErrorDetail.FromString(wire))


def has_detail(failure: grpc.aio.AioRpcError) -> bool:
    """Whether a failed call reached a service of ours, which said what was wrong."""
    return any(key == ERROR_KEY for key, _ in failure.trailing_metadata() or ())


def to_error(failure: grpc.aio.AioRpcError, target: str) -> AlluxioLikeError:
    """The error that a failed call to `target` (a service's name and address, for the message) stands for."""
    for key, value in failure.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            return decode_error(value)
    code = failure.code()
    kind = _WITHOUT_DETAIL.get(code, Internal)
    if kind is Unavailable:
        return Unavailable(f"{target} cannot be reached")
    if kind is TimedOut:
        return TimedOut(f"{target} did not answer in time")
    return kind(f"{target} answered {code.name}: {failure.details() or 'no details'}")
