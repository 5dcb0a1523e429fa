"""What is answered and notified: functions that pack the bodies of answers, whole answers, and whole notifications.

An answer is `pack_reply(unique, body)` or `pack_error(unique, errno)`; a body is bytes of the functions here. What a session's
fast
path packs in one go, header included, are the structs `OPEN_REPLY`, `ATTR_REPLY` and `ENTRY_REPLY`. Times are nanoseconds since
the epoch, validities seconds. Pure functions, and `Directory`, which belongs to its caller.
"""

import errno
import struct
from collections.abc import Iterable

from alluxio_like.errors import InvalidArgument
from alluxio_like.fuse.wire import layouts as w

_NS = 1_000_000_000
_MASK64 = (1 << 64) - 1
_LONGEST_VALID_S = 1 << 31
"""The kernel reads seconds as a signed number; this is for ever."""
NAME_MAX_BYTES = 1024
"""The longest name that every kernel takes in a listing."""
GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ECONNABORTED})
"""What writing an answer fails with when nobody waits for it any more."""

OPEN_REPLY = struct.Struct(w.OUT_HEADER.format + w.OPEN_OUT.format[1:])
"""len, error, unique, fh, open_flags, backing_id."""
ATTR_REPLY = struct.Struct(w.OUT_HEADER.format + w.ATTR_OUT.format[1:])
"""len, error, unique, attr_valid, attr_valid_nsec, attr (88 bytes)."""
ENTRY_REPLY = struct.Struct(w.OUT_HEADER.format + w.ENTRY_OUT.format[1:])
"""len, error, unique, nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attr (88 bytes)."""


def pack_reply(unique: int, body: bytes | bytearray | memoryview = b"") -> bytes:
    """A whole answer. A long body is better written beside `pack_header` (writev) than copied here."""
    return w.OUT_HEADER.pack(w.OUT_HEADER.size + len(body), 0, unique) + body


def pack_header(unique: int, body_bytes: int) -> bytes:
    """The header of an answer whose body of so many bytes is written behind it in the same call."""
    return w.OUT_HEADER.pack(w.OUT_HEADER.size + body_bytes, 0, unique)


def pack_error(unique: int, number: int) -> bytes:
    """A whole answer that is an errno, given as a positive number below 512 (the kernel takes no other)."""
    return w.OUT_HEADER.pack(w.OUT_HEADER.size, -number, unique)


def pack_init(
    *,
    minor: int,
    flags: int,
    max_readahead: int,
    max_write: int,
    max_background: int,
    congestion_threshold: int,
    max_pages: int,
    max_stack_depth: int = 0,
    time_gran: int = 1,
) -> bytes:
    """`flags`: both words in one; `minor`: at most what the kernel said."""
    return w.INIT_OUT.pack(
        w.KERNEL_VERSION,
        minor,
        max_readahead,
        flags & 0xFFFFFFFF,
        max_background,
        congestion_threshold,
        max_write,
        time_gran,
        max_pages,
        0,
        flags >> 32,
        max_stack_depth,
        0,
    )


def split_valid(valid_s: float) -> tuple[int, int]:
    """A validity as seconds and nanoseconds; infinity is a long time, less than nothing is nothing."""
    if not 0 < valid_s < _LONGEST_VALID_S:
        return (_LONGEST_VALID_S, 0) if valid_s > 0 else (0, 0)
    return divmod(int(valid_s * _NS), _NS)


def pack_attr(
    *,
    inode: int,
    size: int,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    ctime_ns: int,
    atime_ns: int,
    nlink: int,
    block_bytes: int,
    blocks: int,
    rdev: int = 0,
) -> bytes:
    """A file's attributes, 88 bytes that ENTRY_OUT and ATTR_OUT hold. `mode` with the type; `blocks` of 512 bytes."""
    atime, atime_rest = divmod(atime_ns, _NS)
    mtime, mtime_rest = divmod(mtime_ns, _NS)
    ctime, ctime_rest = divmod(ctime_ns, _NS)
    return w.ATTR.pack(
        inode,
        size,
        blocks,
        atime & _MASK64,
        mtime & _MASK64,
        ctime & _MASK64,
        atime_rest,
        mtime_rest,
        ctime_rest,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        block_bytes,
        0,
    )


def pack_entry(nodeid: int, attr: bytes, entry_valid_s: float, attr_valid_s: float, generation: int = 0) -> bytes:
    """The answer to LOOKUP, MKNOD, MKDIR, SYMLINK, LINK; `attr` of `pack_attr`."""
    entry, entry_ns = split_valid(entry_valid_s)
    valid, valid_ns = split_valid(attr_valid_s)
    return w.ENTRY_OUT.pack(nodeid, generation, entry, valid, entry_ns, valid_ns, attr)


def pack_missing(valid_s: float) -> bytes:
    """The answer to LOOKUP that there is no such name, for the kernel to remember. (With 0 s: answer ENOENT instead.)"""
    entry, entry_ns = split_valid(valid_s)
    return w.ENTRY_OUT.pack(0, 0, entry, 0, entry_ns, 0, b"")


def pack_attr_out(attr: bytes, valid_s: float) -> bytes:
    """The answer to GETATTR and SETATTR; `attr` of `pack_attr`."""
    valid, valid_ns = split_valid(valid_s)
    return w.ATTR_OUT.pack(valid, valid_ns, attr)


def pack_statx(
    *,
    mask: int,
    inode: int,
    size: int,
    mode: int,
    uid: int,
    gid: int,
    nlink: int,
    block_bytes: int,
    blocks: int,
    atime_ns: int,
    btime_ns: int,
    ctime_ns: int,
    mtime_ns: int,
    valid_s: float,
) -> bytes:
    """The answer to STATX; `mask` says which of STATX_* are given."""
    valid, valid_ns = split_valid(valid_s)
    times = (w.SX_TIME.pack(*divmod(ns, _NS)) for ns in (atime_ns, btime_ns, ctime_ns, mtime_ns))
    stat = w.SX_STAT.pack(mask, block_bytes, 0, nlink, uid, gid, mode, inode, size, blocks, 0, *times, 0, 0, 0, 0)
    return w.STATX_OUT.pack(valid, valid_ns, 0, stat)


def pack_open(fh: int, open_flags: int, backing_id: int = 0) -> bytes:
    """The answer to OPEN and OPENDIR; `backing_id` counts with FOPEN_PASSTHROUGH only."""
    return w.OPEN_OUT.pack(fh, open_flags, backing_id)


def pack_create(entry: bytes, opened: bytes) -> bytes:
    """The answer to CREATE and TMPFILE: of `pack_entry` and `pack_open`."""
    return entry + opened


def pack_write(size: int) -> bytes:
    """The answer to WRITE and COPY_FILE_RANGE: so many bytes were written."""
    return w.WRITE_OUT.pack(size)


def pack_copied(size: int) -> bytes:
    """The answer to COPY_FILE_RANGE_64."""
    return w.COPY_FILE_RANGE_OUT.pack(size)


def pack_xattr_size(size: int) -> bytes:
    """The answer to GETXATTR and LISTXATTR with size 0; with another size it is the value itself, or ERANGE."""
    return w.GETXATTR_OUT.pack(size)


def pack_statfs(
    *, block_bytes: int, blocks: int, free_blocks: int, available_blocks: int, files: int, free_files: int, name_max: int
) -> bytes:
    """The answer to STATFS; block counts are of `block_bytes`."""
    return w.KSTATFS.pack(blocks, free_blocks, available_blocks, files, free_files, block_bytes, name_max, block_bytes)


def pack_lock(start: int, end: int, kind: int, pid: int) -> bytes:
    """The answer to GETLK; `kind` is F_RDLCK, F_WRLCK or F_UNLCK."""
    return w.FILE_LOCK.pack(start, end, kind, pid)


def pack_bmap(block: int) -> bytes:
    return w.BMAP_OUT.pack(block)


def pack_ioctl(result: int, data: bytes = b"") -> bytes:
    """The answer to IOCTL: what ioctl(2) returns and what goes back to its caller."""
    return w.IOCTL_OUT.pack(result, 0, 0, 0) + data


def pack_poll(revents: int) -> bytes:
    return w.POLL_OUT.pack(revents)


def pack_lseek(offset: int) -> bytes:
    return w.LSEEK_OUT.pack(offset)


class Directory:
    """The body of an answer to READDIR or READDIRPLUS, filled name by name up to the size that was asked for."""

    __slots__ = ("_limit", "data")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.data = bytearray()

    def add(self, inode: int, following: int, mode: int, name: bytes) -> bool:
        """A name of READDIR; `following` is the offset at which the listing goes on behind it. False: no more room, not added.

        Raises InvalidArgument for a name that the kernel would not take (it would fail the whole listing).
        """
        return self._append(b"", inode, following, mode, name)

    def add_plus(self, entry: bytes, inode: int, following: int, mode: int, name: bytes) -> bool:
        """A name of READDIRPLUS with what LOOKUP would answer (`pack_entry`; nodeid 0: not looked up). Else as `add`."""
        return self._append(entry, inode, following, mode, name)

    def _append(self, entry: bytes, inode: int, following: int, mode: int, name: bytes) -> bool:
        if not 0 < len(name) <= NAME_MAX_BYTES or b"/" in name or b"\0" in name:
            raise InvalidArgument("a name that cannot be listed", subject=repr(name[:64]))
        used = len(entry) + w.DIRENT.size + len(name)
        padding = -used % 8
        if len(self.data) + used + padding > self._limit:
            return False
        self.data += entry + w.DIRENT.pack(inode, following, len(name), mode >> 12) + name + bytes(padding)
        return True


# Whole notifications


def _pack_notification(code: int, body: bytes = b"") -> bytes:
    return w.OUT_HEADER.pack(w.OUT_HEADER.size + len(body), code, 0) + body


def pack_inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """Forget attributes and these pages; `length` 0: to the end, `offset` below 0: attributes only."""
    return _pack_notification(w.NOTIFY_INVAL_INODE, w.INVAL_INODE_OUT.pack(nodeid, offset, length))


def pack_inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """Forget a name; with EXPIRE_ONLY it is only asked for again before it is used."""
    return _pack_notification(w.NOTIFY_INVAL_ENTRY, w.INVAL_ENTRY_OUT.pack(parent, len(name), flags) + name + b"\0")


def pack_delete(parent: int, child: int, name: bytes) -> bytes:
    """A name is gone, and the inode with it as far as its users are concerned."""
    return _pack_notification(w.NOTIFY_DELETE, w.DELETE_OUT.pack(parent, child, len(name)) + name + b"\0")


def pack_store(nodeid: int, offset: int, data: bytes) -> bytes:
    """Put data into the kernel's page cache."""
    return _pack_notification(w.NOTIFY_STORE, w.STORE_OUT.pack(nodeid, offset, len(data)) + data)


def pack_retrieve(notify_unique: int, nodeid: int, offset: int, size: int) -> bytes:
    """Ask for data of the kernel's page cache, which comes as NOTIFY_REPLY."""
    return _pack_notification(w.NOTIFY_RETRIEVE, w.RETRIEVE_OUT.pack(notify_unique, nodeid, offset, size))


def pack_poll_wakeup(kh: int) -> bytes:
    return _pack_notification(w.NOTIFY_POLL, w.POLL_WAKEUP_OUT.pack(kh))


def pack_resend() -> bytes:
    """Ask for everything again that was read and is not answered."""
    return _pack_notification(w.NOTIFY_RESEND)


def pack_inc_epoch() -> bytes:
    """Have every name asked for again before it is used."""
    return _pack_notification(w.NOTIFY_INC_EPOCH)


def pack_prune(nodeids: Iterable[int]) -> bytes:
    """Ask the kernel to forget these inodes where nothing uses them."""
    packed = b"".join(nodeid.to_bytes(8, "little") for nodeid in nodeids)
    return _pack_notification(w.NOTIFY_PRUNE, w.PRUNE_OUT.pack(len(packed) // 8) + packed)
