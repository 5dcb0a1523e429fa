"""A store in memory, for tests: flat keys as in S3, changed by hand, with faults that can be ordered.

Owns its objects. Passes the same conformance suites as the real stores; memory_writing.py is the side of it that is written to.
Used from one event loop; the methods that change it (`put`, `delete`, `fail`, `heal`) are called on that loop too.
"""

import asyncio
import hashlib
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes, to_str
from alluxio_like.ufs.api import ListPage, StoreEntry


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    fingerprint: Fingerprint
    mtime_ns: int
    metadata: Mapping[str, str]


@dataclass(slots=True)
class PendingUpload:
    """Parts that have arrived of a content that is not whole yet."""

    key: str
    begun_ns: int
    metadata: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class Fault:
    """What goes wrong with one request.

    `error` is raised: before anything is delivered, or, for a read with `after_bytes`, once at least so many bytes were, or, for
    a write with `is_late`, once it was done: its answer is lost. Without an error the request waits for `until` (or `delay_s`)
    at that point and then goes on.
    """

    error: errors.AlluxioLikeError | None = None
    after_bytes: int = 0
    is_late: bool = False
    until: asyncio.Event | None = None
    delay_s: float = 0.0

    async def strike(self) -> None:
        if self.until is not None:
            await self.until.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was made: `op` is "GET", "LIST", "HEAD", or one of memory_writing.py's."""

    op: str
    key: str
    offset: int = 0
    length: int = 0


@dataclass(slots=True)
class _Faults:
    queues: dict[str, deque[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)

    def take(self, op: str) -> Fault:
        queue = self.queues.get(op)
        if queue:
            return queue.popleft()
        return self.always.get(op) or Fault()


class MemoryUfs:
    """`Ufs` on a dictionary. `requests` is the log of all requests, `in_flight` and `max_in_flight` count reads under way."""

    def __init__(
        self, *, name: str = "bucket", on_request: Callable[[str], None] | None = None, chunk_bytes: int = 256 << 10
    ) -> None:
        self._name = name
        self._on_request = on_request
        self._chunk_bytes = chunk_bytes
        self._objects: dict[bytes, _Object] = {}
        self._sorted: list[bytes] | None = []
        self._faults = _Faults()
        self._now_ns = 1_700_000_000_000_000_000
        self.uploads: dict[str, PendingUpload] = {}
        self.requests: list[Request] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.closed = False

    # -- what tests do to it ----------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> Fingerprint:
        """Create or replace an object; each put makes another fingerprint, also of the same bytes."""
        self._now_ns += 1_000_000_000
        token = hashlib.blake2b(f"{self._now_ns}".encode(), digest_size=16).hexdigest()
        fingerprint = Fingerprint(token, len(data))
        raw = to_bytes(key)
        if raw not in self._objects:
            self._sorted = None
        self._objects[raw] = _Object(data, fingerprint, self._now_ns, dict(metadata or {}))
        return fingerprint

    def delete(self, key: str) -> None:
        """Remove an object that is there."""
        del self._objects[to_bytes(key)]
        self._sorted = None

    def get(self, key: str) -> bytes:
        """The content at a key. Raises LookupError."""
        return self._objects[to_bytes(key)].data

    def get_metadata(self, key: str) -> Mapping[str, str]:
        """What was given with the content at a key. Raises LookupError."""
        return self._objects[to_bytes(key)].metadata

    def lookup_fingerprint(self, key: str) -> Fingerprint | None:
        """Of the content at a key; None: there is none."""
        found = self._objects.get(to_bytes(key))
        return found.fingerprint if found is not None else None

    def has_below(self, prefix: str) -> bool:
        """Whether a key begins with the prefix and goes on."""
        raw = to_bytes(prefix)
        return any(key.startswith(raw) and key != raw for key in self._objects)

    @property
    def now_ns(self) -> int:
        """Its clock, which ticks with each change."""
        return self._now_ns

    def fail(self, op: str, *faults: Fault | errors.AlluxioLikeError, always: bool = False) -> None:
        """Let the next requests of kind `op` meet these faults, one each; with `always` every one from then on meets the last."""
        made = [fault if isinstance(fault, Fault) else Fault(error=fault) for fault in faults]
        if always and made:
            self._faults.always[op] = made.pop()
        self._faults.queues.setdefault(op, deque()).extend(made)

    def heal(self) -> None:
        """Forget all faults that were ordered and have not struck."""
        self._faults = _Faults()

    def count_requests(self) -> Counter[str]:
        """Requests so far by kind."""
        return Counter(request.op for request in self.requests)

    # -- Ufs --------------------------------------------------------------------------------------------------------------

    @property
    def bucket(self) -> str:
        return f"memory://{self._name}"

    @property
    def checks_first(self) -> bool:
        return True

    async def check(self) -> bool:
        await self.take_request(Request("LIST", "")).strike()
        return bool(self._objects)

    async def stat(self, key: str) -> StoreEntry:
        await self.take_request(Request("HEAD", key)).strike()
        found = self._objects.get(to_bytes(key))
        if found is None:
            raise errors.NotFound("no such object", subject=key)
        return StoreEntry(key.rpartition("/")[2], Kind.FILE, found.fingerprint, found.mtime_ns)

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        await self.take_request(Request("LIST", prefix)).strike()
        raw_prefix = to_bytes(prefix)
        keys = self._get_sorted()
        entries: list[StoreEntry] = []
        position = bisect_left(keys, raw_prefix + bytes.fromhex(token) if token else raw_prefix)
        while position < len(keys) and keys[position].startswith(raw_prefix):
            key = keys[position]
            rest = key[len(raw_prefix) :]
            if len(entries) == max_entries:
                return ListPage(tuple(entries), rest.hex())
            name, slash, _ = rest.partition(b"/")
            if slash:
                entries.append(StoreEntry(to_str(name), Kind.DIRECTORY))
                # "0" is the byte after "/": the first key that is not below this directory.
                position = bisect_left(keys, raw_prefix + name + b"0")
                continue
            if rest:
                found = self._objects[key]
                entries.append(StoreEntry(to_str(name), Kind.FILE, found.fingerprint, found.mtime_ns))
            position += 1
        return ListPage(tuple(entries), None)

    async def list_flat(self, prefix: str, token: str | None = None, *, after: str = "", max_entries: int = 1000) -> ListPage:
        await self.take_request(Request("LIST", prefix)).strike()
        raw_prefix = to_bytes(prefix)
        keys = self._get_sorted()
        last = bytes.fromhex(token) if token else to_bytes(after)
        position = bisect_left(keys, raw_prefix + last + b"\0" if last else raw_prefix)
        entries: list[StoreEntry] = []
        while position < len(keys) and keys[position].startswith(raw_prefix):
            if len(entries) == max_entries:
                return ListPage(tuple(entries), to_bytes(entries[-1].sort_name).hex())
            name = to_str(keys[position][len(raw_prefix) :])
            found = self._objects[keys[position]]
            if name.endswith("/"):
                entries.append(StoreEntry(name[:-1], Kind.DIRECTORY))
            elif name:
                entries.append(StoreEntry(name, Kind.FILE, found.fingerprint, found.mtime_ns))
            position += 1
        return ListPage(tuple(entries), None)

    async def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        if offset < 0 or length < 0 or offset + length > fingerprint.size:
            raise errors.InvalidArgument("the range lies outside of the content", subject=key)
        if length == 0:
            return
        fault = self.take_request(Request("GET", key, offset, length))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            if not fault.after_bytes:
                await fault.strike()
            found = self._objects.get(to_bytes(key))
            if found is None or found.fingerprint != fingerprint:
                raise errors.Stale("the store holds another content by now", subject=key)
            view = memoryview(found.data)[offset : offset + length]
            for start in range(0, length, self._chunk_bytes):
                await asyncio.sleep(0)
                if fault.after_bytes and start <= fault.after_bytes < start + self._chunk_bytes:
                    await fault.strike()
                yield view[start : start + self._chunk_bytes]
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        self.closed = True

    def take_request(self, request: Request) -> Fault:
        """Count a request; what is to go wrong with it."""
        self.requests.append(request)
        if self._on_request is not None:
            self._on_request(request.op)
        return self._faults.take(request.op)

    def _get_sorted(self) -> list[bytes]:
        if self._sorted is None:
            self._sorted = sorted(self._objects)
        return self._sorted
