"""What the kernel asks: one frozen tuple for each kind of request, and how its bytes become one.

`parse` takes a whole request as it was read from the device. Anything that is not exactly what the protocol says (cut short, too
long, a name without an end, sizes that contradict each other) raises InvalidArgument, and nothing else is ever raised. Data of
WRITE, SETXATTR, IOCTL and NOTIFY_REPLY are memoryviews into the buffer given: who keeps them longer than the buffer, copies them.
Pure functions; safe from any thread. A session's fast path may instead unpack the layouts itself.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from alluxio_like.errors import InvalidArgument
from alluxio_like.fuse.wire import layouts as w

HEADER_BYTES = w.IN_HEADER.size


class InHeader(NamedTuple):
    """What stands before every request. `len` counts it too."""

    len: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int

    @property
    def is_resent(self) -> bool:
        """Whether it may have been executed before, by a daemon that did not live to answer."""
        return bool(self.unique & w.UNIQUE_RESEND)


class Unknown(NamedTuple):
    """A request of a kind that is not known here; the answer is ENOSYS."""

    data: memoryview


class Empty(NamedTuple):
    """READLINK, STATFS, DESTROY: nothing behind the header."""


class Name(NamedTuple):
    """LOOKUP, UNLINK, RMDIR, REMOVEXATTR."""

    name: bytes


class Forget(NamedTuple):
    nlookup: int


class BatchForget(NamedTuple):
    """`items`: (nodeid, nlookup) each."""

    items: tuple[tuple[int, int], ...]


class Getattr(NamedTuple):
    flags: int
    fh: int


class Statx(NamedTuple):
    flags: int
    fh: int
    sx_flags: int
    sx_mask: int


class Setattr(NamedTuple):
    valid: int
    fh: int
    size: int
    lock_owner: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    uid: int
    gid: int


class Symlink(NamedTuple):
    name: bytes
    target: bytes


class Mknod(NamedTuple):
    mode: int
    rdev: int
    umask: int
    name: bytes


class Mkdir(NamedTuple):
    mode: int
    umask: int
    name: bytes


class Rename(NamedTuple):
    """RENAME (`flags` 0) and RENAME2."""

    new_parent: int
    flags: int
    name: bytes
    new_name: bytes


class Link(NamedTuple):
    old_nodeid: int
    name: bytes


class Open(NamedTuple):
    """OPEN and OPENDIR."""

    flags: int
    open_flags: int


class Create(NamedTuple):
    """CREATE and TMPFILE (whose name the kernel makes up)."""

    flags: int
    mode: int
    umask: int
    open_flags: int
    name: bytes


class Read(NamedTuple):
    """READ, READDIR, READDIRPLUS."""

    fh: int
    offset: int
    size: int
    read_flags: int
    lock_owner: int
    flags: int


class Write(NamedTuple):
    fh: int
    offset: int
    write_flags: int
    lock_owner: int
    flags: int
    data: memoryview


class Release(NamedTuple):
    """RELEASE and RELEASEDIR."""

    fh: int
    flags: int
    release_flags: int
    lock_owner: int


class Flush(NamedTuple):
    fh: int
    lock_owner: int


class Fsync(NamedTuple):
    """FSYNC and FSYNCDIR."""

    fh: int
    flags: int


class Setxattr(NamedTuple):
    """`setxattr_flags` is 0 unless SETXATTR_EXT was agreed on."""

    flags: int
    setxattr_flags: int
    name: bytes
    value: memoryview


class Getxattr(NamedTuple):
    """`size` 0 asks how large the value is."""

    size: int
    name: bytes


class Listxattr(NamedTuple):
    size: int


class Lock(NamedTuple):
    """GETLK, SETLK, SETLKW; `type` is F_RDLCK, F_WRLCK or F_UNLCK."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    lk_flags: int


class Access(NamedTuple):
    mask: int


class Interrupt(NamedTuple):
    """`unique`: of the request that nobody waits for any more."""

    unique: int


class Bmap(NamedTuple):
    block: int
    blocksize: int


class Ioctl(NamedTuple):
    fh: int
    flags: int
    cmd: int
    arg: int
    out_size: int
    data: memoryview


class Poll(NamedTuple):
    fh: int
    kh: int
    flags: int
    events: int


class Fallocate(NamedTuple):
    fh: int
    offset: int
    length: int
    mode: int


class Lseek(NamedTuple):
    fh: int
    offset: int
    whence: int


class CopyFileRange(NamedTuple):
    """COPY_FILE_RANGE and COPY_FILE_RANGE_64, whose answers differ."""

    fh_in: int
    offset_in: int
    nodeid_out: int
    fh_out: int
    offset_out: int
    length: int
    flags: int


class Retrieved(NamedTuple):
    """NOTIFY_REPLY: what NOTIFY_RETRIEVE asked for."""

    offset: int
    data: memoryview


class Init(NamedTuple):
    """`flags`: both words in one."""

    major: int
    minor: int
    max_readahead: int
    flags: int


Body: TypeAlias = (
    Unknown
    | Empty
    | Name
    | Forget
    | BatchForget
    | Getattr
    | Statx
    | Setattr
    | Symlink
    | Mknod
    | Mkdir
    | Rename
    | Link
    | Open
    | Create
    | Read
    | Write
    | Release
    | Flush
    | Fsync
    | Setxattr
    | Getxattr
    | Listxattr
    | Lock
    | Access
    | Interrupt
    | Bmap
    | Ioctl
    | Poll
    | Fallocate
    | Lseek
    | CopyFileRange
    | Retrieved
    | Init
)


class Request(NamedTuple):
    header: InHeader
    body: Body


def parse(data: memoryview) -> Request:
    """A whole request as read from the device. Raises InvalidArgument."""
    header = parse_header(data)
    if header.len != len(data):
        raise InvalidArgument(f"a request of {header.len} bytes is {len(data)} long", subject=f"opcode {header.opcode}")
    return Request(header, parse_body(header, data[HEADER_BYTES:]))


def parse_header(data: memoryview) -> InHeader:
    """The header of a request; `len` is not compared with anything. Raises InvalidArgument."""
    if len(data) < HEADER_BYTES:
        raise InvalidArgument(f"a request of {len(data)} bytes is too short")
    return InHeader._make(w.IN_HEADER.unpack_from(data))


def parse_body(header: InHeader, data: memoryview) -> Body:
    """What stands behind the header, without the extensions at its end (security contexts, groups). Raises InvalidArgument."""
    parser = _PARSERS.get(header.opcode)
    if parser is None:
        return Unknown(data)
    if extensions := header.total_extlen * 8:
        if extensions > len(data):
            raise InvalidArgument("extensions longer than their request", subject=f"opcode {header.opcode}")
        data = data[:-extensions]
    try:
        return parser(data)
    except (struct.error, ValueError) as error:
        raise InvalidArgument(f"a request that is not well formed ({error})", subject=f"opcode {header.opcode}") from None


# The parsers below may raise struct.error and ValueError.


def _split_names(data: memoryview, count: int) -> list[bytes]:
    """`count` names, each ended by a NUL, and nothing behind."""
    names = bytes(data).split(b"\0")
    if len(names) != count + 1 or names.pop() or not all(names):
        raise ValueError(f"no {count} names")
    return names


def _split_name(data: memoryview) -> bytes:
    name = bytes(data)
    if len(name) < 2 or name.find(0) != len(name) - 1:
        raise ValueError("no name")
    return name[:-1]


def _check_size(data: memoryview, size: int) -> memoryview:
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes where {size} are announced")
    return data


def _parse_empty(data: memoryview) -> Empty:
    _check_size(data, 0)
    return Empty()


def _parse_name(data: memoryview) -> Name:
    return Name(_split_name(data))


def _parse_batch_forget(data: memoryview) -> BatchForget:
    (count,) = w.BATCH_FORGET_IN.unpack_from(data)
    rest = _check_size(data[w.BATCH_FORGET_IN.size :], count * w.FORGET_ONE.size)
    return BatchForget(tuple(w.FORGET_ONE.iter_unpack(rest)))


def _parse_symlink(data: memoryview) -> Symlink:
    name, target = _split_names(data, 2)
    return Symlink(name, target)


def _parse_mknod(data: memoryview) -> Mknod:
    return Mknod._make((*w.MKNOD_IN.unpack_from(data), _split_name(data[w.MKNOD_IN.size :])))


def _parse_mkdir(data: memoryview) -> Mkdir:
    return Mkdir._make((*w.MKDIR_IN.unpack_from(data), _split_name(data[w.MKDIR_IN.size :])))


def _parse_rename(data: memoryview) -> Rename:
    (new_parent,) = w.RENAME_IN.unpack_from(data)
    name, new_name = _split_names(data[w.RENAME_IN.size :], 2)
    return Rename(new_parent, 0, name, new_name)


def _parse_rename2(data: memoryview) -> Rename:
    new_parent, flags = w.RENAME2_IN.unpack_from(data)
    name, new_name = _split_names(data[w.RENAME2_IN.size :], 2)
    return Rename(new_parent, flags, name, new_name)


def _parse_link(data: memoryview) -> Link:
    return Link._make((*w.LINK_IN.unpack_from(data), _split_name(data[w.LINK_IN.size :])))


def _parse_create(data: memoryview) -> Create:
    return Create._make((*w.CREATE_IN.unpack_from(data), _split_name(data[w.CREATE_IN.size :])))


def _parse_write(data: memoryview) -> Write:
    fh, offset, size, write_flags, lock_owner, flags = w.WRITE_IN.unpack_from(data)
    return Write(fh, offset, write_flags, lock_owner, flags, _check_size(data[w.WRITE_IN.size :], size))


def _parse_setxattr(data: memoryview) -> Setxattr:
    """With or without SETXATTR_EXT: where it was agreed on, NULs stand where the name would be without it."""
    size, flags = w.SETXATTR_IN_SHORT.unpack_from(data)
    for start, more in ((w.SETXATTR_IN_SHORT.size, False), (w.SETXATTR_IN.size, True)):
        end = len(data) - size
        if end > start + 1 and data[end - 1] == 0 and 0 not in data[start : end - 1]:
            name = bytes(data[start : end - 1])
            return Setxattr(flags, w.SETXATTR_IN.unpack_from(data)[2] if more else 0, name, data[end:])
    raise ValueError("no name and value")


def _parse_getxattr(data: memoryview) -> Getxattr:
    return Getxattr._make((*w.GETXATTR_IN.unpack_from(data), _split_name(data[w.GETXATTR_IN.size :])))


def _parse_lock(data: memoryview) -> Lock:
    fh, owner, lock, lk_flags = w.LK_IN.unpack(data)
    return Lock._make((fh, owner, *w.FILE_LOCK.unpack(lock), lk_flags))


def _parse_ioctl(data: memoryview) -> Ioctl:
    fh, flags, cmd, arg, in_size, out_size = w.IOCTL_IN.unpack_from(data)
    return Ioctl(fh, flags, cmd, arg, out_size, _check_size(data[w.IOCTL_IN.size :], in_size))


def _parse_syncfs(data: memoryview) -> Empty:
    w.SYNCFS_IN.unpack(data)
    return Empty()


def _parse_retrieved(data: memoryview) -> Retrieved:
    offset, size = w.RETRIEVE_IN.unpack_from(data)
    return Retrieved(offset, _check_size(data[w.RETRIEVE_IN.size :], size))


def _parse_init(data: memoryview) -> Init:
    """Short before protocol 7.36. A kernel of a later major version may send more than is known here."""
    if len(data) >= w.INIT_IN.size:
        major, minor, max_readahead, flags, flags2 = w.INIT_IN.unpack_from(data)
        return Init(major, minor, max_readahead, flags | (flags2 << 32 if flags & w.INIT_EXT else 0))
    return Init(*w.INIT_IN_SHORT.unpack(data))


def _parse_fixed(make: Callable[..., Body], layout: struct.Struct) -> Callable[[memoryview], Body]:
    """A parser of requests that are just that struct; its fields are the tuple's."""

    def parse_fixed(data: memoryview) -> Body:
        return make(*layout.unpack(data))

    return parse_fixed


_read = _parse_fixed(Read, w.READ_IN)
_open = _parse_fixed(Open, w.OPEN_IN)
_release = _parse_fixed(Release, w.RELEASE_IN)
_fsync = _parse_fixed(Fsync, w.FSYNC_IN)
_copy = _parse_fixed(CopyFileRange, w.COPY_FILE_RANGE_IN)

_PARSERS: dict[int, Callable[[memoryview], Body]] = {
    w.LOOKUP: _parse_name,
    w.FORGET: _parse_fixed(Forget, w.FORGET_IN),
    w.GETATTR: _parse_fixed(Getattr, w.GETATTR_IN),
    w.SETATTR: _parse_fixed(Setattr, w.SETATTR_IN),
    w.READLINK: _parse_empty,
    w.SYMLINK: _parse_symlink,
    w.MKNOD: _parse_mknod,
    w.MKDIR: _parse_mkdir,
    w.UNLINK: _parse_name,
    w.RMDIR: _parse_name,
    w.RENAME: _parse_rename,
    w.LINK: _parse_link,
    w.OPEN: _open,
    w.READ: _read,
    w.WRITE: _parse_write,
    w.STATFS: _parse_empty,
    w.RELEASE: _release,
    w.FSYNC: _fsync,
    w.SETXATTR: _parse_setxattr,
    w.GETXATTR: _parse_getxattr,
    w.LISTXATTR: _parse_fixed(Listxattr, w.GETXATTR_IN),
    w.REMOVEXATTR: _parse_name,
    w.FLUSH: _parse_fixed(Flush, w.FLUSH_IN),
    w.INIT: _parse_init,
    w.OPENDIR: _open,
    w.READDIR: _read,
    w.RELEASEDIR: _release,
    w.FSYNCDIR: _fsync,
    w.GETLK: _parse_lock,
    w.SETLK: _parse_lock,
    w.SETLKW: _parse_lock,
    w.ACCESS: _parse_fixed(Access, w.ACCESS_IN),
    w.CREATE: _parse_create,
    w.INTERRUPT: _parse_fixed(Interrupt, w.INTERRUPT_IN),
    w.BMAP: _parse_fixed(Bmap, w.BMAP_IN),
    w.DESTROY: _parse_empty,
    w.IOCTL: _parse_ioctl,
    w.POLL: _parse_fixed(Poll, w.POLL_IN),
    w.NOTIFY_REPLY: _parse_retrieved,
    w.BATCH_FORGET: _parse_batch_forget,
    w.FALLOCATE: _parse_fixed(Fallocate, w.FALLOCATE_IN),
    w.READDIRPLUS: _read,
    w.RENAME2: _parse_rename2,
    w.LSEEK: _parse_fixed(Lseek, w.LSEEK_IN),
    w.COPY_FILE_RANGE: _copy,
    w.SYNCFS: _parse_syncfs,
    w.TMPFILE: _parse_create,
    w.STATX: _parse_fixed(Statx, w.STATX_IN),
    w.COPY_FILE_RANGE_64: _copy,
}
