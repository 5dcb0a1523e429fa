"""The interface of a store that can be written.

Owns the words of writing: where bytes come from, what a write expects to find, uploads in parts, and what a store can do. The
implementations stand beside those of reading; a store that is only read has none. Keys, errors and the rule of concurrency are
those of `api.py`; like reads, writes are not repeated inside, so that the caller owns the budget and counts requests through
`on_request`: "PUT", "PART" and the like, one for each request to the store.

How a lost answer is told from a lost write: every write carries a token, unique to it, that the store keeps with the content (in
the object's metadata, an extended attribute, or what else it has). After a refused condition, a broken connection or a crash
`lookup_written` says whether what is there now is ours. So a write may be repeated at will, and happens once.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import StoreEntry, Ufs

_METADATA_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes [offset, offset + length) of an open file, which nobody changes meanwhile. Its owner keeps `fd` open until the call
    has ended, also by cancellation (a store that goes on in a thread has a descriptor of its own by then); positions are given
    with each read, so that any number of sources share a descriptor.

    A file that ends before its source does is refused with InvalidArgument, and nothing of it becomes visible.
    """

    fd: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What must be at a key for a write to happen: this content, or nothing (None)."""

    fingerprint: Fingerprint | None


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What goes with a content.

    `token` is unique to this write (32 hex digits). `metadata` are short texts of printable ASCII by lower-case names of letters,
    digits and dashes, kept where the store's `keeps_metadata` says so and else dropped.
    """

    token: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in self.metadata.items():
            if not _METADATA_NAME.fullmatch(name) or not text.isascii() or not text.isprintable() or text != text.strip():
                raise errors.InvalidArgument("metadata are printable ASCII without space around it", subject=name)


@dataclass(frozen=True, slots=True)
class Part:
    """An uploaded part: its number, from 1, its length in bytes, and what the store gave for it (opaque)."""

    number: int
    length: int
    receipt: str


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that has begun and not ended; `upload_id` is opaque, and with the key all that is needed to go on after a
    restart. `begun_ns` is there where the store says it, else 0."""

    key: str
    upload_id: str
    begun_ns: int = 0


@dataclass(frozen=True, slots=True)
class WriteCapabilities:
    """What a store can do, so that callers need not know which one it is.

    `has_directories`: they exist by themselves (mkdir, rmdir; a file needs its directory); else a directory is what has something
    below it, or a marker. `renames`: `rename` moves a file or a whole directory in one step; else callers copy and delete.
    `copies`: `copy` moves no bytes through this machine. `puts_conditionally`, `finishes_conditionally`: what `put` (or
    `finish_upload`) expects is compared in the step that makes it visible; else just before, and a foreign write in between is
    lost; so it is with `copy` and `delete` everywhere, unless the store says more. `ordered_parts`: parts are sent one after
    the other, in order. Sizes are in bytes; `max_parts` counts.
    """

    has_directories: bool
    renames: bool
    copies: bool
    puts_conditionally: bool
    finishes_conditionally: bool
    keeps_metadata: bool
    ordered_parts: bool
    max_put_bytes: int
    min_part_bytes: int
    max_part_bytes: int
    max_parts: int


def get_writable(ufs: Ufs) -> "WritableUfs":
    """An open store as one that can be written. Raises Unsupported where it cannot."""
    if not isinstance(ufs, WritableUfs):
        raise errors.Unsupported("this store can only be read", subject=ufs.bucket)
    return ufs


@runtime_checkable
class WritableUfs(Ufs, Protocol):
    """A store that can be written.

    Common errors beside those of reading: StoreDenied, NoSpace (the store's quota or disk), Conflict (`expected` is not what is
    there; nothing was changed), NotFound (no such directory to write in, where the store has directories), NameTooLong and
    Unsupported (a key that the store cannot have). A call that was cancelled, or failed without an answer, may have happened,
    and may still happen for as long as it would have been given.
    """

    async def get_capabilities(self) -> WriteCapabilities:
        """What this store can do. The first call may ask it, and write and remove something of no meaning to find out."""
        ...

    def refuse_name(self, name: str, *, at_root: bool) -> str:
        """Why the store can have nothing of this name, in words for its user; empty: it can. Asks nobody. A name is a component
        of a key, of at most 255 bytes; `at_root`: right at the mount's root."""
        ...

    async def put(self, key: str, source: Source, options: WriteOptions, *, expected: Expected | None = None) -> StoreEntry:
        """Make these bytes the content at `key`, whole or not at all, and durable; its entry, with the fingerprint that stat and
        listings will give it (`mtime_ns` is 0 where the store does not say).

        At most `max_put_bytes`. Replaces a file; raises IsADirectory where the store has a directory there.
        """
        ...

    async def begin_upload(self, key: str, options: WriteOptions) -> Upload:
        """Begin a content that comes in parts. Nothing of it can be seen before `finish_upload`."""
        ...

    async def upload_part(self, upload: Upload, number: int, source: Source, offset: int) -> Part:
        """Send part `number` (from 1), which begins at `offset` of the content. A part that was sent before is replaced.

        Every part but the last is at least `min_part_bytes`, and all but the last of one length. Raises NotFound when the upload
        is no longer known to the store.
        """
        ...

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        """The parts that have arrived, by number; to go on after a restart. Raises NotFound like `upload_part`."""
        ...

    async def finish_upload(
        self, upload: Upload, parts: Sequence[Part], options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        """Put all parts together, in order: like `put`. `options` are those it was begun with. The upload ends with it; after
        Conflict it goes on, and is to be aborted or finished otherwise. Raises NotFound when the upload is no longer known: it
        was aborted, or finished by a call whose answer was lost, which `lookup_written` tells."""
        ...

    async def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and what it has stored. One that is no longer known is fine."""
        ...

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """Uploads that have begun at keys that start with `prefix` and not ended: to find what a crash has left. Others' are
        among them where the store cannot tell: abort only what is known to be ours, by its key and time."""
        ...

    async def lookup_written(self, key: str, token: str) -> StoreEntry | None:
        """What is at `key`, if a write with this token made it; else None."""
        ...

    async def read_metadata(self, key: str) -> Mapping[str, str]:
        """The metadata kept with the content at `key`, ours and others'. Raises NotFound."""
        ...

    async def delete(self, key: str, *, expected: Expected | None = None) -> None:
        """Remove a file. One that is not there is fine."""
        ...

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        """Remove many files in as few requests as the store allows; those that failed, with why. Absent ones are fine."""
        ...

    async def copy(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        """Make that content of `source` the content of `target` too, without moving its bytes through here, at any size.

        Raises Stale when `source` holds another content, Unsupported where `copies` is False.
        """
        ...

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        """Move a file or a directory in one step; a file that is there is replaced, unless not `replace` (AlreadyExists).

        Raises NotFound, IsADirectory, NotADirectory, DirectoryNotEmpty as rename(2) does; Unsupported where `renames` is False.
        """
        ...

    async def make_directory(self, key: str) -> None:
        """Make a directory, in a flat store its marker. The key has no slash at its end. Raises AlreadyExists (a file or a
        directory is there), NotFound (no directory to make it in, where the store has directories)."""
        ...

    async def remove_directory(self, key: str) -> None:
        """Remove an empty directory, in a flat store its marker. The key has no slash at its end. Raises DirectoryNotEmpty; one
        that is not there is fine."""
        ...


def is_utf8(name: str) -> bool:
    """Whether a name, as text with surrogates for what is no UTF-8, is UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


async def make_directories(ufs: WritableUfs, key: str) -> None:
    """Make those of the directories above a key that are not there. Raises what `make_directory` does, but for AlreadyExists."""
    above = key.rstrip("/").split("/")[:-1]
    for count in range(len(above)):
        with contextlib.suppress(errors.AlreadyExists):
            await ufs.make_directory("/".join(above[: count + 1]))
