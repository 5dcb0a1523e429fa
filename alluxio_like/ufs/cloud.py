"""What Google Cloud Storage and Azure have in common as stores.

Owns the reading of an object and the way every request goes: obstore reads, conditional on the content's identity, each answer
checked; plain HTTP (rest.py) does the rest, and reads the keys that obstore cannot express. Where obstore's failure has no
status, the request is repeated once over plain HTTP, which has; other than that nothing is retried. Knows neither service: what
differs is asked of the subclass. Used on one event loop; plain HTTP runs in threads of its own, bounded in number. No state but
the clients, which are made with the first call.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError, PreconditionError
from urllib3.response import BaseHTTPResponse

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.options import OptionValue, get_secret_names
from alluxio_like.ufs.references import Secrets
from alluxio_like.ufs.rest import (
    CONNECT_TIMEOUT_S,
    USER_AGENT,
    Answer,
    Body,
    HttpSettings,
    Request,
    RestClient,
    get_headers,
    read_body,
    read_ca_file,
    read_piece,
)
from alluxio_like.ufs.threads import BlockingPool, Lent

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import AzureStore, GCSStore

T = TypeVar("T")

PARTS = ".alluxio-like-parts"
"""The directory below the mount's root where uploads are recorded (and Google keeps their parts); never listed at the root."""

_SMALL_BYTES = 1 << 20
"""Up to here a body is taken in one piece: one hop fewer between Rust and Python."""
_MAX_CHUNK_BYTES = 8 << 20
_CHUNK_S = 0.05
"""A chunk is what arrives in about this time, as in s3.py, which has the measurement."""
_SLOWEST_BYTES_PER_S = 1 << 20
"""Bounds an upload together with the I/O timeout; a guess."""
SLOWEST_COPY_BYTES_PER_S = 16 << 20
"""The same of bytes that the service moves by itself; a guess."""
_RENEW_BEFORE = timedelta(minutes=5)


class TokenSource:
    """A bearer token, fetched when there is none or it runs out soon. `get` blocks, in any thread; one fetches at a time."""

    def __init__(self, fetch: Callable[[], tuple[str, datetime | None]], pool: BlockingPool, timeout_s: float) -> None:
        """`fetch` gives a token and its expiry (with time zone), or raises an error of our tree."""
        self._fetch = fetch
        self._pool = pool
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._token = ""
        self._expiry: datetime | None = None

    def get(self) -> tuple[str, datetime | None]:
        """Token and expiry. Raises StoreUnavailable when it takes too long."""
        if not self._lock.acquire(timeout=self._timeout_s):
            raise errors.StoreUnavailable(f"no credentials within {self._timeout_s:g} s")
        try:
            token, expiry = self._token, self._expiry
            if not token or (expiry is not None and expiry - datetime.now(UTC) < _RENEW_BEFORE):
                token, expiry = self._token, self._expiry = self._fetch()
            return token, expiry
        finally:
            self._lock.release()

    def forget(self) -> None:
        """After a refusal: the next `get` fetches anew. Never waits (who is fetching brings a new one anyway)."""
        self._token = ""

    async def __call__(self) -> Any:
        """What obstore takes for credentials."""
        token, expiry = await self._pool.run(self.get, timeout_s=self._timeout_s)
        return {"token": token, "expires_at": expiry}


@dataclass(frozen=True, slots=True, repr=False)
class Clients:
    """How a store is talked to: plain HTTP with the signature that each request gets in its thread, and obstore."""

    rest: RestClient
    sign: Callable[[Request], Request]
    store: "GCSStore | AzureStore"
    tokens: TokenSource | None = None


class CloudUfs(ABC):
    """`Ufs` but for asking; see the module."""

    def __init__(
        self, http: HttpSettings, prefix: str, *, on_request: Callable[[str], None], io_timeout_s: float, may_change: bool = False
    ) -> None:
        """`may_change`: its secrets are named (references.py), and may be others after a refusal."""
        self._http = http
        self._may_change = may_change
        self._connected_s = 0.0
        self._prefix = prefix
        self._on_request = on_request
        self._timeout_s = io_timeout_s
        self._pool = BlockingPool(self.bucket, http.max_connections)
        self._clients: Clients | None = None
        self._connecting: asyncio.Task[Clients] | None = None
        self._bytes_per_s = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.bucket}/{self._prefix})"

    # -- what differs ---------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def bucket(self) -> str: ...

    @abstractmethod
    def _open_clients(self) -> Clients:
        """In a thread. Raises ConfigError, StoreDenied."""

    @abstractmethod
    def _make_condition(self, fingerprint: Fingerprint) -> "GetOptions":
        """What makes obstore read that content and no other."""

    @abstractmethod
    def _get_identity(self, meta: "ObjectMeta") -> str:
        """The token of the content in obstore's answer."""

    @abstractmethod
    def _make_read(self, full_key: str, fingerprint: Fingerprint, offset: int, length: int) -> Request:
        """The same over plain HTTP."""

    @abstractmethod
    def _get_read_identity(self, headers: dict[str, str]) -> str:
        """The token of the content in its answer."""

    @abstractmethod
    def _make_error(self, answer: Answer, subject: str) -> errors.AlluxioLikeError:
        """What an answer that says no means."""

    @abstractmethod
    async def stat(self, key: str) -> StoreEntry: ...

    @abstractmethod
    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage: ...

    # -- reading --------------------------------------------------------------------------------------------------------------

    @property
    def checks_first(self) -> bool:
        return True

    async def check(self) -> bool:
        page = await self.list_page("", max_entries=1)
        return bool(page.entries or page.token)

    async def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        if offset < 0 or length < 0 or offset + length > fingerprint.size:
            raise errors.InvalidArgument("the range lies outside of the content", subject=key)
        if length == 0:
            return
        clients = self._clients or await self._connect()
        full_key = self._prefix + key
        result = None
        if is_plain(full_key):
            result = await self._start_read(clients, full_key, key, fingerprint, offset, length)
        if result is None:
            async with aclosing(self._read_plainly(clients, full_key, key, fingerprint, offset, length)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        if length <= _SMALL_BYTES:
            yield await self._take_whole(result, key, length)
            return
        async with aclosing(self._take_chunks(result, key, length)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._connecting
        if self._clients is not None:
            self._clients.rest.close()
        self._pool.close()

    async def _start_read(
        self, clients: Clients, full_key: str, key: str, fingerprint: Fingerprint, offset: int, length: int
    ) -> "GetResult | None":
        """The answer's head, compared with what was asked; None where plain HTTP must say what went wrong."""
        self._on_request("GET")
        start_s = asyncio.get_running_loop().time()
        options: GetOptions = {**self._make_condition(fingerprint), "range": (offset, offset + length)}
        try:
            async with asyncio.timeout(self._http.stall_s + 1):
                result = await obstore.get_async(clients.store, full_key, options=options)
        except PreconditionError:
            raise errors.Stale("the store holds another content by now", subject=key) from None
        except TimeoutError:
            raise self._make_stalled(key) from None
        except (BaseError, FileNotFoundError):
            # It has no status and no code. What took as long as a stall was one: repeating it would only take as long again.
            if asyncio.get_running_loop().time() - start_s >= self._http.stall_s * 0.9:
                raise self._make_stalled(key) from None
            return None
        meta = result.meta
        if (
            result.range != (offset, offset + length)
            or meta["size"] != fingerprint.size
            or self._get_identity(meta) != fingerprint.token
        ):
            await self._explain(key, fingerprint, "the answer's range, size or identity is not what was asked for")
        return result

    async def _take_whole(self, result: "GetResult", key: str, length: int) -> memoryview:
        try:
            async with asyncio.timeout(self._timeout_s):
                data = memoryview(await result.bytes_async())
        except TimeoutError:
            raise self._make_stalled(key) from None
        except BaseError:
            raise self._make_broken(key) from None
        if len(data) != length:
            raise errors.StoreProtocol(f"the answer has {len(data)} bytes instead of {length}", subject=key)
        return data

    async def _take_chunks(self, result: "GetResult", key: str, length: int) -> AsyncGenerator[memoryview, None]:
        loop = asyncio.get_running_loop()
        # By the speed of the request before: of one connection, as it was shared with others.
        size = max(_SMALL_BYTES, min(int(self._bytes_per_s * _CHUNK_S), _MAX_CHUNK_BYTES, length))
        stream = result.stream(min_chunk_size=size)
        got = 0
        waited_s = 0.0
        while True:
            start_s = loop.time()
            try:
                async with asyncio.timeout(self._timeout_s):
                    chunk = memoryview(await anext(stream))
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise self._make_stalled(key) from None
            except BaseError:
                raise self._make_broken(key) from None
            waited_s += loop.time() - start_s
            got += len(chunk)
            if got > length:
                break
            yield chunk
        if got != length:
            raise errors.StoreProtocol(f"the answer has {got} bytes instead of {length}", subject=key)
        self._bytes_per_s = length / max(waited_s, 1e-6)

    async def _read_plainly(
        self, clients: Clients, full_key: str, key: str, fingerprint: Fingerprint, offset: int, length: int
    ) -> AsyncGenerator[memoryview, None]:
        self._on_request("GET")
        opened: Lent[BaseHTTPResponse] = Lent(lambda response: response.close())
        request = self._make_read(full_key, fingerprint, offset, length)

        def ask() -> Answer:
            with opened.use(lambda: clients.rest.open(clients.sign(request), key)) as response:
                headers = get_headers(response)
                return Answer(response.status, headers, b"" if response.status == 206 else read_body(response, key))

        def read_on() -> bytes:
            with opened.use() as response:
                return read_piece(response, _SMALL_BYTES, key)

        try:
            answer = await self._run(ask)
            headers = answer.headers
            if answer.status == 416:
                await self._explain(key, fingerprint, "the store does not have the range")
            if answer.status >= 300:
                self._note_refusal(clients, answer)
                error = self._make_error(answer, key)
                raise (
                    errors.Stale("the object is no longer in the store", subject=key) if type(error) is errors.NotFound else error
                )
            if (
                answer.status != 206
                or headers.get("content-range") != f"bytes {offset}-{offset + length - 1}/{fingerprint.size}"
                or headers.get("content-length") != str(length)
                or self._get_read_identity(dict(headers)) != fingerprint.token
            ):
                await self._explain(key, fingerprint, "the answer's status, range, length or identity is not what was asked for")
            got = 0
            while chunk := await self._run(read_on):
                got += len(chunk)
                yield memoryview(chunk)
            if got != length:
                raise errors.StoreProtocol(f"the answer has {got} bytes instead of {length}", subject=key)
        finally:
            opened.abandon()

    async def _explain(self, key: str, fingerprint: Fingerprint, problem: str) -> None:
        """Raises Stale where the store has another content by now, else StoreProtocol."""
        try:
            found = (await self.stat(key)).fingerprint
        except errors.NotFound:
            raise errors.Stale("the object is no longer in the store", subject=key) from None
        if found != fingerprint:
            raise errors.Stale("the store holds another content by now", subject=key)
        raise errors.StoreProtocol(problem, subject=key)

    # -- how every request goes -----------------------------------------------------------------------------------------------

    async def _ask(self, op: str, request: Request, subject: str, *, accept: tuple[int, ...] = ()) -> Answer:
        """One counted request over plain HTTP. Raises what the answer means, unless it is a success or in `accept`. It may take
        as long as its body does, and the request's patience, beyond the I/O timeout."""
        timeout_s = self._timeout_s + request.patience_s
        if request.body is not None:
            timeout_s += len(request.body) / _SLOWEST_BYTES_PER_S
        try:
            clients = self._clients or await self._connect()
            self._on_request(op)
            answer = await self._run(lambda: clients.rest.send(clients.sign(request), subject), timeout_s)
        finally:
            if isinstance(request.body, Body):
                request.body.abandon()
        if answer.status < 300 or answer.status in accept:
            return answer
        self._note_refusal(clients, answer)
        raise self._make_error(answer, subject)

    def _note_refusal(self, clients: Clients, answer: Answer) -> None:
        """After 401 and 403 credentials are looked for again: a token at once, secrets in files with the next call, but not with
        each of many refused ones."""
        if answer.status not in {401, 403}:
            return
        if answer.status == 401 and clients.tokens is not None:
            clients.tokens.forget()
        age_s = asyncio.get_running_loop().time() - self._connected_s
        if self._may_change and self._clients is clients and age_s >= self._http.stall_s:
            self._clients = None

    async def _connect(self) -> Clients:
        """The clients, made by the first call; callers share the attempt, and a failed one is made again by the next."""
        if self._clients is not None:
            return self._clients
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._run(self._open_clients))
            self._connecting.add_done_callback(self._finish_connecting)
        return await asyncio.shield(self._connecting)

    def _finish_connecting(self, task: "asyncio.Task[Clients]") -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._clients = task.result()
            self._connected_s = task.get_loop().time()

    async def _run(self, call: Callable[[], T], timeout_s: float | None = None) -> T:
        """A blocking call in a thread."""
        try:
            return await self._pool.run(call, timeout_s=timeout_s or self._timeout_s)
        except UnicodeEncodeError:
            raise errors.Unsupported("the store has no keys that are not UTF-8", subject=self.bucket) from None

    def _make_stalled(self, key: str) -> errors.StoreUnavailable:
        return errors.StoreUnavailable("the store stopped answering", subject=key)

    def _make_broken(self, key: str) -> errors.StoreUnavailable:
        return errors.StoreUnavailable("the connection to the store broke, or stalled, within the answer", subject=key)


def make_reader(scheme: str, values: Mapping[str, OptionValue]) -> tuple[Callable[[], Mapping[str, OptionValue]], bool]:
    """What gives the options with their secrets as they are now, and whether these may change."""
    named = Secrets({name: str(values[name]) for name in get_secret_names(scheme) & values.keys()})
    return lambda: {**values, **{name: named.get(name) for name in values if name in named}}, named.may_change


def make_client_options(http: HttpSettings, io_timeout_s: float, headers: dict[str, str] | None = None) -> Any:
    """obstore's options of a connection, as plain HTTP has them."""
    options: dict[str, Any] = {
        "allow_http": http.endpoint.startswith("http://"),
        "allow_invalid_certificates": not http.verify,
        "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, http.stall_s)),
        "read_timeout": timedelta(seconds=http.stall_s),
        # Of a whole body, with room for a reader that takes its time; each step of ours has a tighter bound.
        "timeout": timedelta(seconds=io_timeout_s * 20),
        # One connection for each request under way: a shared HTTP/2 connection has one flow of control for all.
        "http1_only": True,
        "user_agent": USER_AGENT,
    }
    if headers:
        options["default_headers"] = headers
    root_certificate = read_ca_file(http.ca_file)
    if root_certificate is not None:
        options["root_certificate"] = root_certificate
    return options


def make_store(kind: Callable[..., T], **arguments: Any) -> T:
    """A store of obstore's, which looks into the environment by itself. Raises ConfigError."""
    try:
        return kind(**arguments)
    except (BaseError, ValueError, OSError):
        raise errors.ConfigError(
            "obstore cannot use these settings: look at the mount's options, and at GOOGLE_… and AZURE_… of the environment"
        ) from None


def is_plain(key: str) -> bool:
    """Whether obstore can express the key as it is: no empty component, no "." or "..", no control character (and what is not
    UTF-8 it cannot have at all). For others it asks for another key or refuses, tried with 0.12.1."""
    return all(part not in {"", ".", ".."} for part in key.split("/")) and all(
        char >= " " and char != "\x7f" and not "\ud800" <= char <= "\udfff" for char in key
    )


def check_prefix(prefix: str) -> None:
    """Raises InvalidArgument unless this can be a directory's prefix."""
    if prefix and not prefix.endswith("/"):
        raise errors.InvalidArgument("a directory's prefix ends in a slash", subject=prefix)
