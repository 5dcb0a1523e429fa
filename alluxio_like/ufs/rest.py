"""Plain HTTP to the one server behind a store, for what obstore does not do there.

Owns connections, timeouts, the bounds of an answer, and what a broken connection is called in our tree of errors. Knows no
protocol: what a status means is the store's affair, so `send` and `open` return whatever answer comes. Paths are sent byte for
byte as they are given (most client libraries take `..` and `//` out of them). Nothing is repeated, no redirect followed.
Blocks; any number of threads at once. Bodies that are sent come from descriptors, which a `Body` holds until its thread has
done with them.
"""

import os
import ssl
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    InvalidChunkLength,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from alluxio_like import errors
from alluxio_like.ufs.api import UNREACHABLE
from alluxio_like.ufs.threads import Lent
from alluxio_like.ufs.writing import Source

CONNECT_TIMEOUT_S = 5.0
"""A guess: a second SYN after 1 s and a third after 3 still count."""
USER_AGENT = "alluxio-like"
_MAX_ANSWER_BYTES = 64 << 20
"""A page of a listing with long names and metadata is some MB; anything near this is no answer of a store."""
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How a server is reached. `stall_s` is the longest silence within a request."""

    endpoint: str
    stall_s: float
    ca_file: str = ""
    verify: bool = True
    max_connections: int = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer taken whole. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """`path` begins with a slash and is percent-encoded already, `query` is not. `patience_s`: how much longer than others the
    server may think about it in silence."""

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: "bytes | Body | None" = None
    patience_s: float = 0.0

    @property
    def target(self) -> str:
        """Path and query as they go out."""
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in self.query)
        return f"{self.path}?{query}" if query else self.path


def quote_component(text: str) -> str:
    """A text as one component of a path, slashes encoded. Raises Unsupported for what is not UTF-8."""
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise errors.Unsupported("the store has no keys that are not UTF-8", subject=repr(text)) from None


class Body:
    """Bytes of a descriptor as the body of a request, between two short texts of the protocol.

    Holds a duplicate of the descriptor, so that the caller's own may be closed, and its number used for another file, while a
    thread still sends. `abandon` it once nobody waits: the thread then breaks the request off rather than finish it.
    """

    def __init__(self, source: Source, before: bytes = b"", after: bytes = b"") -> None:
        self._fd: Lent[int] = Lent(os.close)
        self._source = source
        self._before = before
        self._after = after
        self._abandoned = False
        self._check_length(os.fstat(source.fd).st_size)
        fd = os.dup(source.fd)
        with self._fd.use(lambda: fd):
            pass

    def __len__(self) -> int:
        return len(self._before) + self._source.length + len(self._after)

    def __iter__(self) -> Iterator[bytes]:
        if self._before:
            yield self._before
        with self._fd.use() as fd:
            end = self._source.offset + self._source.length
            at = self._source.offset
            while at < end:
                piece = os.pread(fd, min(_PIECE_BYTES, end - at), at)
                if not piece:
                    self._check_length(at)
                if self._abandoned:
                    raise errors.Cancelled("nobody waits for the upload any more")
                at += len(piece)
                yield piece
        if self._after:
            yield self._after

    def _check_length(self, size: int) -> None:
        """Raises InvalidArgument where the file ends before its source does."""
        if size < self._source.offset + self._source.length:
            raise errors.InvalidArgument("the file to be uploaded has become shorter")

    def abandon(self) -> None:
        """On the event loop, once nobody waits for it any more. Never blocks. Idempotent."""
        self._abandoned = True
        self._fd.abandon()


class RestClient:
    """Connections to one server."""

    def __init__(self, settings: HttpSettings) -> None:
        """Raises ConfigError for an authorities' file that cannot be used."""
        self._endpoint = settings.endpoint
        self._stall_s = settings.stall_s
        parts = urlsplit(settings.endpoint)
        secure = parts.scheme == "https"
        # Kept idle, not a limit: streams hold theirs beside what the threads do.
        options: dict[str, object] = {"maxsize": settings.max_connections * 4, "retries": False}
        if secure:
            options["ssl_context"] = _make_context(settings)
        proxy = urllib.request.getproxies().get("https") if secure else None
        manager = (
            urllib3.ProxyManager(proxy, **options)  # type: ignore[arg-type]
            if proxy and not urllib.request.proxy_bypass(parts.hostname or "")
            else urllib3.PoolManager(**options)  # type: ignore[arg-type]
        )
        # A pool of one host sends targets as they are; the manager's own `request` would take dot segments out.
        self._pool = manager.connection_from_host(parts.hostname or "", parts.port, parts.scheme)

    def send(self, request: Request, subject: str) -> Answer:
        """The whole answer, whatever its status. Raises StoreUnavailable, StoreProtocol."""
        response = self.open(request, subject)
        try:
            body = read_body(response, subject)
            return Answer(response.status, get_headers(response), body)
        finally:
            response.close()  # a connection whose answer was read whole has gone back to the pool by itself

    def open(self, request: Request, subject: str) -> BaseHTTPResponse:
        """The answer with its body still to be read, by `read_piece`; to be closed. Raises StoreUnavailable."""
        headers = {"User-Agent": USER_AGENT, **request.headers}
        if request.body is not None:
            headers["Content-Length"] = str(len(request.body))
        elif request.method in {"POST", "PUT"}:
            headers["Content-Length"] = "0"
        target = request.target  # what cannot be encoded is the caller's error, not the connection's
        try:
            response = self._pool.urlopen(
                request.method,
                target,
                body=request.body,
                headers=headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, self._stall_s), read=self._stall_s + request.patience_s),
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            raise self._convert(error, subject) from None
        return response

    def close(self) -> None:
        """Close idle connections; those in use close themselves."""
        self._pool.close()

    def _convert(self, error: Exception, subject: str) -> errors.AlluxioLikeError:
        if isinstance(error, (SSLError, ssl.SSLError)):
            return errors.StoreUnavailable(
                "the TLS connection failed: see the options ca_file and verify", subject=self._endpoint
            )
        if isinstance(error, (NewConnectionError, ConnectTimeoutError, ProxyError)):
            return errors.StoreUnavailable(UNREACHABLE, subject=self._endpoint)
        return convert_broken(error, subject)


def read_piece(response: BaseHTTPResponse, size: int, subject: str) -> bytes:
    """Up to `size` bytes of a body, b"" at its end. Raises StoreUnavailable when it breaks off."""
    try:
        return response.read(size)
    except (HTTPError, OSError, ValueError) as error:
        raise convert_broken(error, subject) from None


def read_body(response: BaseHTTPResponse, subject: str) -> bytes:
    """All of a body. Raises StoreUnavailable, StoreProtocol."""
    pieces = []
    left = _MAX_ANSWER_BYTES
    while piece := read_piece(response, _PIECE_BYTES, subject):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            raise errors.StoreProtocol("the store's answer does not end", subject=subject)
    return b"".join(pieces)


def get_headers(response: BaseHTTPResponse) -> dict[str, str]:
    """The headers by their names in lower case."""
    return {name.lower(): value for name, value in response.headers.items()}


def convert_broken(error: Exception, subject: str) -> errors.AlluxioLikeError:
    """What a connection that once stood has done."""
    if isinstance(error, errors.AlluxioLikeError):
        return error
    if isinstance(error, (ReadTimeoutError, TimeoutError)):
        return errors.StoreUnavailable("the store stopped answering", subject=subject)
    if isinstance(error, (ProtocolError, IncompleteRead, InvalidChunkLength, ConnectionError)):
        return errors.StoreUnavailable("the connection to the store broke", subject=subject)
    if isinstance(error, OSError):
        return errors.StoreUnavailable(f"the connection to the store failed ({type(error).__name__})", subject=subject)
    return errors.StoreProtocol(f"the store's answer was not understood ({type(error).__name__})", subject=subject)


def read_ca_file(path: str) -> bytes | None:
    """The authorities' certificates, None for the system's. Raises ConfigError."""
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise errors.ConfigError(f"option ca_file: cannot be read ({error.strerror})", subject=path) from None


def _make_context(settings: HttpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if settings.ca_file:
        read_ca_file(settings.ca_file)
        try:
            context.load_verify_locations(settings.ca_file)
        except (OSError, ssl.SSLError):
            raise errors.ConfigError("option ca_file: has no certificates in PEM form", subject=settings.ca_file) from None
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return context
