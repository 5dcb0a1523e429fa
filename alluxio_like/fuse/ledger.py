"""Which backing ids a daemon has open, whom it sent to look a name up again, what is written, and what was appended where, in
memory that outlives it.

The kernel keeps a registered backing file until its id is closed or the mount ends, so the ids of a daemon that was killed must
be closed by somebody else, or the worker could never evict those files. The daemon writes each id into a piece of shared memory
that the
holder keeps; the holder reads what is left in it. Standard library only. A Ledger is one thread's; `list_left` is for when its
writer is dead.

The kernel looks a name up again once for an open that was answered ESTALE (opening.py). If the daemon that said so is killed
before the thread is back, the next one must know, or it would send it away again, which fails the open. So the holder hands on
what the one before has written of that.

A file that is being written is written on while no daemon lives, by the kernel. The next one must show how large it is, so it
must know which those are.

An append goes where the file ends, and is sent again to the next daemon if this one is killed before it has answered. That one
must know where it went, or it would be there twice. The kernel has one append of a file under way, so one of each is enough.

    word 0    MAGIC                            word 2    1 while an id is being registered
    word 1    the layout's number              word 3    the last id that was written down
    from 4    the last _SENT threads that were sent away, up to _WRITTEN inodes that are being written (0: a free place), and the
              last append of up to _APPENDS files
    behind    ids, 0 for a free place
"""

import mmap
import os
import struct
from typing import NamedTuple

_MAGIC = 0x42414B47
_LAYOUT = 4
_WORD = 4
_SENT = 64
"""More threads than this are hardly between an open and its second try when a daemon dies. A guess."""
_SENT_AWAY = struct.Struct("<IIQQd")
_SENT_START = 4 * _WORD
_SENT_BYTES = _SENT * _SENT_AWAY.size
_INODE = struct.Struct("<Q")
_WRITTEN = 256
"""More files than this that are written at once are known again with the first request for each. A guess."""
_WRITTEN_START = _SENT_START + _SENT_BYTES
_WRITTEN_BYTES = _WRITTEN * _INODE.size
_APPENDS = 64
"""More files than this are hardly appended to in the moment in which a daemon dies. A guess."""
_APPEND = struct.Struct("<QQQq")
_APPENDS_START = _WRITTEN_START + _WRITTEN_BYTES
_APPENDS_BYTES = _APPENDS * _APPEND.size
_HEAD = (_APPENDS_START + _APPENDS_BYTES) // _WORD
_FIRST_BYTES = 8192


class SentAway(NamedTuple):
    """A thread that is to come back to an inode until then (by the machine's monotonic clock); with another request than this."""

    thread: int
    inode: int
    unique: int
    until_s: float


class Append(NamedTuple):
    """Where the append of a request went, and how many bytes of it; -1: nobody has said yet."""

    inode: int
    unique: int
    offset: int
    written: int


def make_memory() -> int:
    """A descriptor of fresh shared memory for a Ledger."""
    fd = os.memfd_create("backing-ids", os.MFD_CLOEXEC)
    os.ftruncate(fd, _FIRST_BYTES)
    return fd


class Ledger:
    """The writing side. `close` lets go of the memory, which keeps what was written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._words = memoryview(self._map).cast("I")
        self._words[0], self._words[1], self._words[2] = _MAGIC, _LAYOUT, 0
        self._used = _HEAD
        self._sent = 0
        self._appends: dict[int, int] | None = None

    def note_sent(self, sent: SentAway) -> None:
        """Write down a thread that is being sent away."""
        _SENT_AWAY.pack_into(
            self._map, _SENT_START + self._sent * _SENT_AWAY.size, sent.thread, 0, sent.inode, sent.unique, sent.until_s
        )
        self._sent = (self._sent + 1) % _SENT

    def forget_sent(self, thread: int, inode: int) -> None:
        """A thread is back."""
        for start in range(_SENT_START, _SENT_START + _SENT_BYTES, _SENT_AWAY.size):
            known, _, of_inode, _, until_s = _SENT_AWAY.unpack_from(self._map, start)
            if until_s and known == thread and of_inode == inode:
                _SENT_AWAY.pack_into(self._map, start, 0, 0, 0, 0, 0.0)

    def list_sent(self) -> list[SentAway]:
        """Those whom the daemon before has written down."""
        records = _SENT_AWAY.iter_unpack(self._map[_SENT_START : _SENT_START + _SENT_BYTES])
        return [SentAway(thread, inode, unique, until_s) for thread, _, inode, unique, until_s in records if until_s]

    def note_written(self, inode: int) -> None:
        """Write down a file that is being written; once, however often it is said."""
        if not self._replace_written(inode, inode):
            self._replace_written(0, inode)

    def forget_written(self, inode: int) -> None:
        """It is not any more."""
        self._replace_written(inode, 0)

    def _replace_written(self, old: int, new: int) -> bool:
        wanted, stop = _INODE.pack(old), _WRITTEN_START + _WRITTEN_BYTES
        at = self._map.find(wanted, _WRITTEN_START, stop)
        while at >= 0 and (at - _WRITTEN_START) % _INODE.size:
            at = self._map.find(wanted, at + 1, stop)  # the end of one inode and the beginning of the next
        if at < 0:
            return False
        _INODE.pack_into(self._map, at, new)
        return True

    def list_written(self) -> list[int]:
        """What the daemon before has written down, and this one."""
        return [inode for (inode,) in _INODE.iter_unpack(self._map[_WRITTEN_START : _WRITTEN_START + _WRITTEN_BYTES]) if inode]

    def note_append(self, append: Append) -> None:
        """Write down where an append goes, and again what became of it; it takes the place of the one before of its file."""
        if self._appends is None:
            # Those of the daemon before, too: what it left unanswered comes first now.
            known = enumerate(self._list_appends())
            self._appends = {one.inode: number for number, one in known if one.inode}
        number = self._appends.pop(append.inode, None)
        if number is None:
            full = len(self._appends) == _APPENDS
            number = self._appends.pop(next(iter(self._appends))) if full else self._find_free(self._appends)
        self._appends[append.inode] = number
        _APPEND.pack_into(self._map, _APPENDS_START + number * _APPEND.size, *append)

    def lookup_append(self, unique: int) -> Append | None:
        """What is known of a request's append, by this daemon or the one before."""
        return next((one for one in self._list_appends() if one.inode and one.unique == unique), None)

    def _list_appends(self) -> list[Append]:
        return [Append(*one) for one in _APPEND.iter_unpack(self._map[_APPENDS_START : _APPENDS_START + _APPENDS_BYTES])]

    @staticmethod
    def _find_free(appends: dict[int, int]) -> int:
        taken = set(appends.values())
        return next(number for number in range(_APPENDS) if number not in taken)

    def begin(self) -> None:
        """An id is about to be registered: from here to `add` or `abandon` only the kernel may know it."""
        self._words[2] = 1

    def abandon(self) -> None:
        """Nothing was registered."""
        self._words[2] = 0

    def add(self, backing_id: int) -> None:
        """An id was registered."""
        if self._free:
            place = self._free.pop()
        else:
            place = self._used
            if place == len(self._words):
                self._grow()
            self._used += 1
        words = self._words
        words[place] = backing_id
        words[3] = backing_id
        words[2] = 0
        self._places[backing_id] = place

    def remove(self, backing_id: int) -> None:
        """An id was closed."""
        place = self._places.pop(backing_id, 0)
        if place:
            self._words[place] = 0
            self._free.append(place)

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Let go of the memory; the descriptor is closed too."""
        if self._fd >= 0:
            self._words.release()
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def _grow(self) -> None:
        size = 2 * len(self._map)
        os.ftruncate(self._fd, size)
        self._words.release()
        self._map.close()
        self._map = mmap.mmap(self._fd, size)
        self._words = memoryview(self._map).cast("I")


def copy_sent(source: int, target: int) -> None:
    """Hand on what one writer has written of threads, files and appends to the memory of the next, before that reads it."""
    if os.pread(source, 2 * _WORD, 0) == struct.pack("=II", _MAGIC, _LAYOUT):
        os.pwrite(target, os.pread(source, _SENT_BYTES + _WRITTEN_BYTES + _APPENDS_BYTES, _SENT_START), _SENT_START)


def list_left(fd: int) -> tuple[list[int], int | None]:
    """The ids that a dead writer has left open, and, if it died while it registered one, the last id before that (else None)."""
    size = os.fstat(fd).st_size // _WORD * _WORD
    words = memoryview(os.pread(fd, size, 0)).cast("I")
    if len(words) <= _HEAD or words[0] != _MAGIC or words[1] != _LAYOUT:
        return [], None
    return [word for word in words[_HEAD:] if word], words[3] if words[2] else None
