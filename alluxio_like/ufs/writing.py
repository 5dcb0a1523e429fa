"""The interface of a store that can be written.

Owns the words of writing: where bytes come from, what a write expects to find, uploads in parts, and what a store can do. The
implementations stand beside those of reading; a store that is only read has none. Keys, errors and the rule of concurrency are
those of `api.py`; like reads, writes are not repeated inside, so that the caller owns the budget and counts requests through
`on_request`: "PUT", "PART" and the like, one for each request to the store.

How a lost answer is told from a lost write: every write carries a token, unique to it, that the store keeps with the content (in
the object's metadata, an extended attribute, or what else it has). After a refused condition, a broken connection or a crash
`lookup_written` says whether what is there now is ours. So a write may be repeated at will, and happens once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import StoreEntry, Ufs


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes [offset, offset + length) of an open file, which nobody changes meanwhile. Its owner keeps `fd` open until the call
    has ended; positions are given with each read, so that any number of sources share a descriptor."""

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

    `token` is unique to this write (32 hex digits). `metadata` are short texts by lower-case names, kept where the store's
    `keeps_metadata` says so and else dropped.
    """

    token: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """An uploaded part: its number, from 1, its length in bytes, and what the store gave for it (opaque)."""

    number: int
    length: int
    receipt: str


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that has begun and not ended; `upload_id` is opaque, and all that is needed to go on after a restart."""

    key: str
    upload_id: str


@dataclass(frozen=True, slots=True)
class WriteCapabilities:
    """What a store can do, so that callers need not know which one it is.

    `has_directories`: they exist by themselves (mkdir, rmdir; a file needs its directory); else a directory is what has something
    below it, or a marker. `renames`: `rename` moves a file or a whole directory in one step; else callers copy and delete.
    `copies`: `copy` moves no bytes through this machine. `is_conditional`: what a write expects is compared in the step that
    makes it visible; else just before, and a foreign write in between is lost. `ordered_parts`: parts are sent one after the
    other, in order. Sizes are in bytes; `max_parts` counts.
    """

    has_directories: bool
    renames: bool
    copies: bool
    is_conditional: bool
    keeps_metadata: bool
    ordered_parts: bool
    max_put_bytes: int
    min_part_bytes: int
    max_part_bytes: int
    max_parts: int


class WritableUfs(Ufs, Protocol):
    """A store that can be written.

    Common errors beside those of reading: StoreDenied, NoSpace (the store's quota or disk), Conflict (`expected` is not what is
    there; nothing was changed), NotFound (no such directory to write in, where the store has directories), Unsupported.
    """

    @property
    def capabilities(self) -> WriteCapabilities: ...

    async def put(self, key: str, source: Source, options: WriteOptions, *, expected: Expected | None = None) -> StoreEntry:
        """Make these bytes the content at `key`, whole or not at all, and durable; the entry as stat would now give it.

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
        Conflict it goes on, and is to be aborted or finished otherwise."""
        ...

    async def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and what it has stored. One that is no longer known is fine."""
        ...

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """Uploads of ours that have begun below `prefix` and not ended: to find what a crash has left."""
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
        """Make a directory, in a flat store its marker. Raises AlreadyExists (a file or a directory is there)."""
        ...

    async def remove_directory(self, key: str) -> None:
        """Remove an empty directory, in a flat store its marker. Raises DirectoryNotEmpty; one that is not there is fine."""
        ...
