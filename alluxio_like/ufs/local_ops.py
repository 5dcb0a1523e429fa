"""The local system's calls as the operations of a POSIX store.

Owns nothing but the choice of calls: handles are descriptors, and their users close them. Every name is relative to the
descriptor of its directory. What only newer kernels have (openat2, renameat2) is called through the C library. Any thread.
"""

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Generator, Iterator

from alluxio_like.types import Space
from alluxio_like.ufs.posix_ops import Found, FoundKind, Scanned

_O_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 8 << 20
_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RENAME_NOREPLACE = 1
_NOT_COPIED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
_NO_ATTRIBUTES = {errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.E2BIG, errno.ENOSPC, errno.ERANGE}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class LocalOps:
    """`PosixOps[int, int]` below the directory `root`, whose own path may hold links."""

    def __init__(self, root: str, *, follows_links: bool = False) -> None:
        self._root = root
        self._follows_links = follows_links

    @property
    def follows_links(self) -> bool:
        return self._follows_links

    @property
    def hidden_names(self) -> frozenset[bytes]:
        return frozenset()

    # -- directories

    def open_root(self) -> int:
        return os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_directory(self, parent: int, name: bytes) -> int:
        return os.open(name, _O_DIRECTORY, dir_fd=parent)

    def close_directory(self, directory: int) -> None:
        os.close(directory)

    def scan(self, directory: int) -> Generator[Scanned, None, None]:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            entries = os.scandir(fd)
        finally:
            os.close(fd)
        with entries:
            for entry in entries:
                yield Scanned(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False))

    def stat(self, directory: int, name: bytes) -> Found:
        return make_found(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def measure(self, directory: int) -> Space:
        found = os.fstatvfs(directory)
        unit = found.f_frsize
        return Space(found.f_blocks * unit, found.f_bavail * unit, found.f_files, found.f_favail)

    def make_directory(self, directory: int, name: bytes) -> None:
        os.mkdir(name, 0o777, dir_fd=directory)

    def remove_directory(self, directory: int, name: bytes) -> None:
        os.rmdir(name, dir_fd=directory)

    def remove_file(self, directory: int, name: bytes) -> None:
        os.unlink(name, dir_fd=directory)

    def rename(self, source: int, source_name: bytes, target: int, target_name: bytes, *, replace: bool) -> None:
        if replace:
            os.rename(source_name, target_name, src_dir_fd=source, dst_dir_fd=target)
            return
        code = _rename_without_replacing(source, source_name, target, target_name)
        if not code:
            return
        if code not in {errno.EINVAL, errno.ENOSYS}:
            raise OSError(code, os.strerror(code))
        # A file system that does not know the flag (NFS): looked at just before.
        with contextlib.suppress(FileNotFoundError):
            os.stat(target_name, dir_fd=target, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(source_name, target_name, src_dir_fd=source, dst_dir_fd=target)

    def sync_directory(self, directory: int) -> None:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems have nothing to sync there
                raise
        finally:
            os.close(fd)

    # -- files

    def open_file(self, directory: int, name: bytes) -> int:
        return _reopen_file(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory))

    def follow(self, key: bytes) -> int:
        root = self.open_root()
        try:
            return _reopen_file(_open_beneath(root, key))
        finally:
            os.close(root)

    def create_file(self, directory: int, name: bytes) -> int:
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=directory)

    def open_for_writing(self, directory: int, name: bytes) -> int:
        return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)

    def close_file(self, file: int) -> None:
        os.close(file)

    def stat_file(self, file: int) -> Found:
        return make_found(os.fstat(file))

    def read(self, file: int, offset: int, length: int) -> bytes:
        return os.pread(file, length, offset)

    def read_into(self, file: int, offset: int, buffer: memoryview) -> int:
        return os.preadv(file, [buffer], offset)

    def copy_in(self, file: int, offset: int, fd: int, source_offset: int, length: int) -> None:
        if os.fstat(fd).st_size < source_offset + length:
            raise EOFError(f"the source is shorter than {source_offset + length} bytes")
        for start, stop in _list_data(fd, source_offset, source_offset + length, file, offset - source_offset):
            self._copy_data(file, offset + start - source_offset, fd, start, stop - start)
        if length and os.fstat(file).st_size < offset + length:
            # A hole at the end. Written and not truncated to: others write further parts meanwhile.
            write_all(file, b"\0", offset + length - 1)

    @staticmethod
    def _copy_data(file: int, offset: int, fd: int, source_offset: int, length: int) -> None:
        done = 0
        in_kernel = True
        while done < length:
            wanted = min(_COPY_BYTES, length - done)
            if in_kernel:
                try:
                    count = os.copy_file_range(fd, file, wanted, source_offset + done, offset + done)
                except OSError as error:
                    if error.errno not in _NOT_COPIED:
                        raise
                    count = 0
                if not count:  # (some pairs of file systems answer 0 where they cannot)
                    in_kernel = False
                    continue
            else:
                data = os.pread(fd, wanted, source_offset + done)
                if not data:
                    raise EOFError(f"the source ends after {done} of {length} bytes")
                count = write_all(file, data, offset + done)
            done += count

    def sync_file(self, file: int) -> None:
        os.fsync(file)

    def truncate(self, file: int, size: int) -> None:
        os.ftruncate(file, size)

    def adopt(self, file: int, found: Found) -> None:
        mine = os.fstat(file)
        if (mine.st_uid, mine.st_gid) != (found.uid, found.gid):
            try:
                os.fchown(file, found.uid, found.gid)
            except PermissionError:
                found_mode = found.mode & 0o777  # never set-id bits of another's
            else:
                found_mode = found.mode
        else:
            found_mode = found.mode
        os.fchmod(file, found_mode)

    def set_mtime_ns(self, file: int, mtime_ns: int) -> None:
        os.utime(file, ns=(mtime_ns, mtime_ns))

    def set_attribute(self, file: int, name: str, value: bytes) -> bool:
        try:
            os.setxattr(file, f"user.{name}", value)
        except OSError as error:
            if error.errno in _NO_ATTRIBUTES:
                return False
            raise
        return True

    def get_attributes(self, file: int) -> dict[str, bytes]:
        found = {}
        try:
            for name in os.listxattr(file):
                if name.startswith("user."):
                    found[name.removeprefix("user.")] = os.getxattr(file, name)
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTES | {errno.ENODATA}:
                raise
        return found


def has_openat2() -> bool:
    """Whether the kernel resolves paths that cannot leave a directory (Linux 5.6; a container's filter may forbid it)."""
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(_open_beneath(fd, b"."))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _open_beneath(root: int, path: bytes) -> int:
    """An O_PATH descriptor of what `path` leads to, links followed, none of them out of `root`."""
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    for _ in range(100):
        fd = _libc.syscall(_SYS_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code not in {errno.EAGAIN, errno.EINTR}:  # EAGAIN: something was renamed meanwhile
            raise OSError(code, os.strerror(code))
    raise OSError(errno.EAGAIN, "renames never end")


def _reopen_file(path_fd: int) -> int:
    """The regular file that an O_PATH descriptor stands for, open for reading; that descriptor is closed.

    So nothing else is ever opened: a device may do something at its open, a fifo wait.
    """
    try:
        mode = os.fstat(path_fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.ELOOP if stat.S_ISLNK(mode) else errno.ENXIO, "not a regular file")
        return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(path_fd)


def _rename_without_replacing(source: int, source_name: bytes, target: int, target_name: bytes) -> int:
    """0, or the errno."""
    if not hasattr(_libc, "renameat2"):  # an old C library
        return errno.ENOSYS
    done = _libc.renameat2(source, source_name, target, target_name, _RENAME_NOREPLACE)
    return ctypes.get_errno() if done else 0


def write_all(fd: int, data: bytes, offset: int) -> int:
    """Write all of `data`; its length."""
    view = memoryview(data)
    done = 0
    while done < len(data):
        done += os.pwrite(fd, view[done:], offset + done)
    return done


def make_found(found: os.stat_result) -> Found:
    """A stat's result as the words of stores."""
    if stat.S_ISREG(found.st_mode):
        kind = FoundKind.FILE
    elif stat.S_ISDIR(found.st_mode):
        kind = FoundKind.DIRECTORY
    else:
        kind = FoundKind.LINK if stat.S_ISLNK(found.st_mode) else FoundKind.SPECIAL
    token = f"{found.st_mtime_ns:x}.{found.st_ctime_ns:x}.{found.st_ino:x}"
    mode = stat.S_IMODE(found.st_mode)
    return Found(kind, token, found.st_size, found.st_mtime_ns, found.st_ctime_ns, mode, found.st_uid, found.st_gid)


def _list_data(fd: int, start: int, stop: int, file: int, shift: int) -> Iterator[tuple[int, int]]:
    """The parts of a range of `fd` that are to be copied: all but holes where the target (`shift` bytes further) has none of its
    own to be overwritten."""
    at = start
    while at < stop:
        mine = min(stop, _seek(fd, at, os.SEEK_DATA, stop))
        theirs = min(stop, _seek(file, at + shift, os.SEEK_DATA, stop + shift) - shift)
        begin = min(mine, theirs)
        if begin >= stop:
            return
        if mine == begin:
            end = _seek(fd, begin, os.SEEK_HOLE, stop)
        else:
            end = min(mine, _seek(file, begin + shift, os.SEEK_HOLE, stop + shift) - shift)
        at = min(stop, max(end, begin + 1))
        yield begin, at


def _seek(fd: int, offset: int, whence: int, otherwise: int) -> int:
    """Where data, or a hole, comes next; `otherwise` where there is none."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return otherwise
        # A file system that does not know: all is data.
        return offset if whence == os.SEEK_DATA else otherwise
