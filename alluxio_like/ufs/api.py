"""The interface of a store.

Keys are relative to the mount's root, without a leading slash; a directory's prefix is "" or ends in "/". Every failure is raised
as one of errors.Store*, NotFound, Stale or InvalidArgument; nothing returns short or wrong data. Calls may be made from one event
loop, any number at once; blocking libraries are driven in threads by the implementation.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from alluxio_like.types import Fingerprint, Kind, StoredAttributes

UNREACHABLE = "the store cannot be reached: see that it is up and that the endpoint is right; it is asked again by itself"
"""What every store over the network says of a connection that cannot be made."""


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One thing directly below a prefix.

    `name` is the raw component: for a directory without its trailing slash. It may be anything the store allows ("", ".", "..",
    longer than 255 bytes); how it is shown is the namespace's affair. `fingerprint` is None for directories. `mtime_ns` is 0
    where the store does not say. `trusted` is False where the fingerprint is too young to stand for the content (POSIX: within
    2 s of mtime). `attributes` are None as stores list it: they are asked for apart, where a mount wants them.
    """

    name: str
    kind: Kind
    fingerprint: Fingerprint | None = None
    mtime_ns: int = 0
    trusted: bool = True
    archived: bool = False
    attributes: StoredAttributes | None = None

    @property
    def sort_name(self) -> str:
        """What listings are ordered by (as bytes): the name, with a slash behind a directory's."""
        return self.name + "/" if self.kind is Kind.DIRECTORY else self.name


@dataclass(frozen=True, slots=True)
class ListPage:
    """Part of a listing: entries in the order of the bytes of their sort_name, none left out between the first and last.

    `token` continues the listing; None: this page ends it. A page may be empty and still not the last. The prefix's own marker
    object is never among the entries. `left_out` counts what lies in the page's range and cannot be shown (symbolic links,
    sockets, devices).
    """

    entries: tuple[StoreEntry, ...]
    token: str | None
    left_out: int = 0


class Ufs(Protocol):
    """A mounted store."""

    @property
    def bucket(self) -> str:
        """What shares a request rate: "s3://bucket", "file://host"; a metric label, without secrets."""
        ...

    @property
    def checks_first(self) -> bool:
        """Whether the store checks the content's identity before the first byte (If-Match): then the chunks of `read` may be
        believed as they come, and otherwise only once the iteration has ended."""
        ...

    async def check(self) -> bool:
        """Ask the store cheaply whether the mount's root can be listed; whether the root is there.

        Raises StoreMissing, StoreDenied, StoreUnavailable with one line that says what is wrong and what would be right. An
        existing bucket with nothing below the prefix is fine, and False: it has no directories that could be there empty.
        """
        ...

    async def stat(self, key: str) -> StoreEntry:
        """The file (not directory) at a key. Raises NotFound."""
        ...

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        """The next page of what is directly below a prefix.

        A prefix with nothing below gives one empty page where the store has no directories of its own, NotFound where it has.
        """
        ...

    def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        """Exactly bytes [offset, offset + length) of that content, in chunks as they arrive; one request.

        The range must lie within the content. Raises Stale when the store holds another content by now or none (also after the
        last chunk, where `checks_first` is False: then nothing is to be believed before the iteration has ended),
        StoreProtocol when the answer is not what was asked. No retries inside, so that the caller owns the budget and counts
        requests; every request is counted through the `on_request` the store was opened with.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class FlatUfs(Ufs, Protocol):
    """A store that can also list all that lies below a prefix at once, however deep."""

    async def list_flat(self, prefix: str, token: str | None = None, *, after: str = "", max_entries: int = 1000) -> ListPage:
        """The next page of all keys below a prefix, in the order of their bytes.

        An entry's `name` is all that follows the prefix, slashes included. A key that ends in a slash (a directory's marker) is
        a DIRECTORY of the name before that slash, so that `sort_name` is always the key; the prefix's own marker is left out.
        `after` begins the listing behind that key (relative to the prefix); a `token` continues it.
        """
        ...
