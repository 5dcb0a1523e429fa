"""The interface of an ordered transactional key-value store.

Synchronous. Keys and values are bytes; keys are non-empty, at most 511 bytes (else ValueError), and ordered bytewise. Reads see
one snapshot; one write transaction at a time, serialised by the store. What a committed write did survives kill -9, and a power
loss where the engine says so. Rule of concurrency: transactions are used by the thread that began them and are short; a scan that
may be long is cut and goes on from its last key in a new transaction.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from alluxio_like.kv.columns import Columns, Numbers

MAX_KEY_BYTES = 511


class ReadTransaction(Protocol):
    """One snapshot."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or None."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of many keys, in their order."""
        ...

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order (`reverse`: from the end), at most `limit`.

        In a write transaction the scan sees the transaction's own writes up to when it was begun; what is written while it runs
        may or may not be seen, and never breaks it.
        """
        ...

    def scan_columns(self, start: bytes, stop: bytes, *, limit: int | None = None) -> Columns:
        """The pairs of `scan`, by columns: of a hundred or more in less time, of thousands in a small part of it."""
        ...

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        """The pairs whose keys begin with a letter and one of these numbers (8 bytes, big-endian), in the order of their keys,
        and the number of each: of many numbers in a small part of the time of a scan for each.

        The numbers ascend, and all keys that begin with the letter have such a number.
        """
        ...


class WriteTransaction(ReadTransaction, Protocol):
    """A snapshot that can be changed; nobody sees the change before it commits."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """Put all of them, in their order; in a small part of the time that single calls take."""
        ...

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        ...


class Begun(NamedTuple):
    """What is being read ahead: `missing` pages, or what the engine reads by, were not in memory. `wait` returns when they are,
    in any thread; None: all were. `again`: keys of which it can be told only then what holds them."""

    missing: int = 0
    wait: Callable[[], None] | None = None
    again: Sequence[bytes] = ()


class KeyValueStore(Protocol):
    """A store; `open_store` makes one from a URL."""

    def read(self) -> AbstractContextManager[ReadTransaction]: ...

    def write(self) -> AbstractContextManager[WriteTransaction]:
        """Commits when its block ends, aborts when the block raises."""
        ...

    def read_ahead(self, keys: Sequence[bytes]) -> Begun:
        """Have what holds these keys read from the disk, all at once, without waiting: for who will `get` them soon."""
        ...

    def read_through(self, may_go_on: Callable[[], bool]) -> None:
        """Read all of it from the disk, from its beginning to its end, so that it is in memory for as long as that is not needed
        for anything else; in a thread that may wait. It may be ended after each MiB."""
        ...

    def flush(self) -> None:
        """Return when all that was committed survives a power loss."""
        ...

    def keep(self) -> None:
        """Look whether this process is still the one that may write: Conflict when another took its place (only where one can),
        Unavailable when that cannot be told now."""
        ...

    def get_size_bytes(self) -> int:
        """Bytes on disk (memory for the memory engine)."""
        ...

    def close(self) -> None: ...


def get_prefix_stop(prefix: bytes) -> bytes:
    """The first key after all keys that begin with `prefix`; with it `scan(prefix, stop)` is a scan by prefix."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        raise ValueError("a prefix of 0xff bytes alone has no end")
    return trimmed[:-1] + bytes([trimmed[-1] + 1])
