"""Files that the master is yet to hear of, as a table: by inode, by name, and by directory.

Owns what stands in it, and what such a file may be called; when one comes, is named anew and goes is pending.py's. Rule of
concurrency: one event loop.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from alluxio_like.cache.new_files import NewFile
from alluxio_like.client.blanks import OpenedDraft
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.rpc.messages_writing import Delegation
from alluxio_like.types import EVERYWHERE, SNAPSHOT_FOLDER, Entry, InodeId, WorkerId

_PLAIN = re.compile(r"[A-Za-z0-9._+=@,-]+", re.ASCII)
_NOT_PLAIN = frozenset({".", "..", SNAPSHOT_FOLDER, ".snap"})
_RESERVED = re.compile(r"\..*alluxio.like")
"""Names that stores keep to themselves for what is under way."""


@dataclass(slots=True, eq=False)
class Pending:
    """A file that the master is yet to hear of. `fd` is of its draft, for its notes; `draft` is for who is about to write it."""

    file: NewFile
    entry: Entry
    worker_id: WorkerId
    fd: int
    made_s: float
    draft: OpenedDraft | None
    is_sent: bool = False
    """It is being published, or that was tried and may have been done: nothing of it is changed here any more."""
    error: AlluxioLikeError | None = None
    """Why it could not be published; it is tried again."""
    tries: int = 0

    @property
    def directories(self) -> tuple[InodeId, ...]:
        """Those of which others are not told before they are told of the file: the one that it is in, and that it has left."""
        return (self.file.parent, self.file.left) if self.file.left else (self.file.parent,)


class PendingTable:
    """In the order of their making."""

    def __init__(self) -> None:
        self._files: dict[InodeId, Pending] = {}
        self._by_name: dict[tuple[InodeId, str], InodeId] = {}
        self._below: dict[InodeId, int] = {}
        """By directory, how many files are pending that are in it, or have left it."""
        self.closed_count = 0
        """How many nobody writes any more."""

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, inode: InodeId) -> bool:
        return inode in self._files

    def __iter__(self) -> Iterator[InodeId]:
        return iter(self._files)

    def get(self, inode: InodeId) -> Pending | None:
        return self._files.get(inode)

    def list_all(self) -> list[Pending]:
        return list(self._files.values())

    def get_oldest(self) -> Pending:
        """Of at least one."""
        return next(iter(self._files.values()))

    def lookup(self, place: tuple[InodeId, str]) -> Pending | None:
        """What has a name; None: nothing that is pending."""
        inode = self._by_name.get(place)
        return None if inode is None else self._files[inode]

    def add(self, pending: Pending) -> None:
        self._files[pending.file.inode] = pending
        self._count(pending, 1)

    def rename(self, pending: Pending, file: NewFile, entry: Entry) -> None:
        """It is that from now on, under another name."""
        self._count(pending, -1)
        pending.file, pending.entry = file, entry
        self._count(pending, 1)

    def remove(self, pending: Pending) -> None:
        """The master knows of it, or never will; what was open of it is closed."""
        del self._files[pending.file.inode]
        self._count(pending, -1)
        self.closed_count -= pending.file.sealed
        os.close(pending.fd)
        if pending.draft is not None:
            os.close(pending.draft.fd)

    def list_of(self, inode: InodeId) -> list[InodeId]:
        """Files that a file or directory has to do with: itself, or what is in it or has left it."""
        if inode in self._files:
            return [inode]
        return self.list_in((inode,)) if inode in self._below else []

    def list_in(self, directories: Collection[InodeId]) -> list[InodeId]:
        """What is in any of these, or has left one."""
        if EVERYWHERE in directories:
            return list(self._files)
        wanted = set(directories)
        return [inode for inode, one in self._files.items() if not wanted.isdisjoint(one.directories)]

    def _count(self, pending: Pending, sign: int) -> None:
        file = pending.file
        if sign > 0:
            self._by_name[file.parent, file.name] = file.inode
        else:
            del self._by_name[file.parent, file.name]
        for directory in pending.directories:
            self._below[directory] = self._below.get(directory, 0) + sign
            if not self._below[directory]:
                del self._below[directory]


def may_be_called(name: str, delegation: Delegation) -> bool:
    """Whether every store takes such a name as it is, and nothing else has a say in it."""
    return (
        len(name) <= delegation.name_bytes
        and _PLAIN.fullmatch(name) is not None
        and name not in _NOT_PLAIN
        and _RESERVED.match(name) is None
    )
