"""Files that clients have made in drafts that their worker gave them, before the master knows of them: what is noted with drafts.

Owns the shape of such a file and its note, an extended attribute of the draft's file. A client writes it before it says that the
file is there, so that its worker can have the master know of the file when the client dies. Whoever reads it sees to it that the
draft is still one that nobody has published: the note stays with its file. Errors of the disk come as OSError. Safe from any
thread.
"""

import errno
import json
import operator
import os
from dataclasses import dataclass, fields
from typing import Any

from alluxio_like.types import InodeId

_NOTE = "user.alluxio_like.new"
_ABSENT = (errno.ENODATA, errno.ENOENT, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that was made without asking the master. `mode` holds permission bits; `changed_ns` is its change time. `mtime_ns`
    and `size` are the content's where it is `sealed`, for others to see; else it is empty, and its mtime as it was made."""

    operation_id: str
    inode: InodeId
    parent: InodeId
    name: str
    mode: int
    uid: int
    gid: int
    changed_ns: int
    mtime_ns: int
    atime_ns: int | None = None
    sealed: bool = False
    size: int = 0
    made_ns: int = 0
    """When its directory was changed by it."""
    renamed_id: str = ""
    """The operation id by which it was given its name, if that is another one than it was made with: a repeat of that call is
    answered then. (One is enough: the next call for a file comes when that before it was answered.)"""
    left: InodeId = InodeId(0)
    """The directory that it was moved from; 0: none."""
    left_ns: int = 0
    """When that was changed by it."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is noted with a draft: the file, and the name of the client that has made it."""

    owner: str
    file: NewFile


def write_note(fd: int, note: Note) -> None:
    """Note it with the draft's file, in place of what was noted before; every process may die then. Raises OSError."""
    os.setxattr(fd, _NOTE, pack_note(note))


def read_note(directory_fd: int, path: str) -> Note | None:
    """What is noted with the file at a path below a directory. Raises OSError."""
    try:
        return unpack_note(os.getxattr(f"/proc/self/fd/{directory_fd}/{path}", _NOTE))
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def pack_note(note: Note) -> bytes:
    # Names that are no UTF-8 are lone surrogates here, which JSON's own escapes carry.
    return json.dumps([note.owner, to_fields(note.file)], separators=(",", ":")).encode()


def unpack_note(raw: bytes) -> Note:
    owner, of_file = json.loads(raw)
    return Note(owner, from_fields(of_file))


_get_fields = operator.attrgetter(*(field.name for field in fields(NewFile)))


def to_fields(file: NewFile) -> list[Any]:
    """A file as JSON can have it."""
    return list(_get_fields(file))


def from_fields(of_file: list[Any]) -> NewFile:
    return NewFile(*of_file)
