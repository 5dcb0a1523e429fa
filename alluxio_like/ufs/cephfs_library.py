"""libcephfs as the operations of a POSIX store.

Owns one mount of a CephFS in this process, through the C library that the distribution's packages bring (libcephfs2, at any
Python). The calls are those that go by inode (ceph_ll_*): each names one component below a directory that is held, so no
symbolic link is ever followed. They release the GIL, and may block for ever when the cluster is gone: so all of this runs in a
helper process (`cephfs_helper.py`). Any thread, but one handle from one thread at a time.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Generator
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any

from alluxio_like import errors
from alluxio_like.types import Space
from alluxio_like.ufs.posix_ops import Found, FoundKind, Scanned

LIBRARY = "libcephfs.so.2"
DEFAULT_CONF = "/etc/ceph/ceph.conf"
_COPY_BYTES = 4 << 20
_STATX_WANT = 0x1 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x1000  # mode, uid, gid, mtime, ctime, ino, size, version
_STATX_NLINK = 0x2
_STATX_VERSION = 0x1000
_SETATTR_MODE = 0x1
_SETATTR_UID = 0x2
_SETATTR_GID = 0x4
_SETATTR_MTIME = 0x8
_SETATTR_SIZE = 0x20
_LOST = {errno.ENOTCONN, errno.ESHUTDOWN, errno.ESTALE, errno.EBADF}
"""The cluster has thrown this client out (108 is also "blocklisted"), or what it holds means nothing any more."""


@dataclass(frozen=True, slots=True)
class CephSettings:
    """What a mount is made with; empty: the library's default. `monitors` as in ceph.conf's mon_host. Seconds are whole ones."""

    conf: str = ""
    monitors: str = ""
    user: str = "admin"
    keyring: str = ""
    key: str = field(default="", repr=False)
    file_system: str = ""
    root: str = "/"
    mount_timeout_s: int = 10


class _Time(ctypes.Structure):
    _fields_ = [("seconds", c_int64), ("nanoseconds", c_long)]

    @property
    def ns(self) -> int:
        return int(self.seconds) * 1_000_000_000 + int(self.nanoseconds)


class _Statx(ctypes.Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("mask", "blksize", "nlink", "uid", "gid")),
        ("mode", c_uint16),
        *((name, c_uint64) for name in ("ino", "size", "blocks", "dev", "rdev")),
        *((name, _Time) for name in ("atime", "ctime", "mtime", "btime")),
        ("version", c_uint64),
    ]


class _Statvfs(ctypes.Structure):
    """struct statvfs of 64-bit Linux."""

    _fields_ = [
        ("block_bytes", c_uint64),
        ("fragment_bytes", c_uint64),
        ("blocks", c_uint64),
        ("free_blocks", c_uint64),
        ("available_blocks", c_uint64),
        ("rest", c_uint64 * 9),
    ]


class _Dirent(ctypes.Structure):
    _fields_ = [
        ("ino", c_uint64),
        ("offset", c_int64),
        ("length", c_uint16),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    ]


_ARGUMENTS: dict[str, list[Any]] = {
    "ceph_create": [POINTER(c_void_p), c_char_p],
    "ceph_conf_read_file": [c_void_p, c_char_p],
    "ceph_conf_set": [c_void_p, c_char_p, c_char_p],
    "ceph_conf_get": [c_void_p, c_char_p, c_char_p, c_size_t],
    "ceph_select_filesystem": [c_void_p, c_char_p],
    "ceph_mount": [c_void_p, c_char_p],
    "ceph_unmount": [c_void_p],
    "ceph_ll_lookup_root": [c_void_p, POINTER(c_void_p)],
    "ceph_ll_lookup": [c_void_p, c_void_p, c_char_p, POINTER(c_void_p), POINTER(_Statx), c_uint, c_uint, c_void_p],
    "ceph_ll_put": [c_void_p, c_void_p],
    "ceph_ll_statfs": [c_void_p, c_void_p, POINTER(_Statvfs)],
    "ceph_ll_getattr": [c_void_p, c_void_p, POINTER(_Statx), c_uint, c_uint, c_void_p],
    "ceph_ll_setattr": [c_void_p, c_void_p, POINTER(_Statx), c_int, c_void_p],
    "ceph_ll_open": [c_void_p, c_void_p, c_int, POINTER(c_void_p), c_void_p],
    "ceph_ll_create": [
        *(c_void_p, c_void_p, c_char_p, c_uint, c_int, POINTER(c_void_p), POINTER(c_void_p), POINTER(_Statx)),
        *(c_uint, c_uint, c_void_p),
    ],
    "ceph_ll_close": [c_void_p, c_void_p],
    "ceph_ll_read": [c_void_p, c_void_p, c_int64, c_uint64, c_void_p],
    "ceph_ll_write": [c_void_p, c_void_p, c_int64, c_uint64, c_char_p],
    "ceph_ll_fsync": [c_void_p, c_void_p, c_int],
    "ceph_ll_sync_inode": [c_void_p, c_void_p, c_int],
    "ceph_ll_opendir": [c_void_p, c_void_p, POINTER(c_void_p), c_void_p],
    "ceph_ll_releasedir": [c_void_p, c_void_p],
    "ceph_readdirplus_r": [c_void_p, c_void_p, POINTER(_Dirent), POINTER(_Statx), c_uint, c_uint, c_void_p],
    "ceph_ll_mkdir": [c_void_p, c_void_p, c_char_p, c_uint, POINTER(c_void_p), POINTER(_Statx), c_uint, c_uint, c_void_p],
    "ceph_ll_rmdir": [c_void_p, c_void_p, c_char_p, c_void_p],
    "ceph_ll_unlink": [c_void_p, c_void_p, c_char_p, c_void_p],
    "ceph_ll_rename": [c_void_p, c_void_p, c_char_p, c_void_p, c_char_p, c_void_p],
    "ceph_ll_getxattr": [c_void_p, c_void_p, c_char_p, c_void_p, c_size_t, c_void_p],
    "ceph_ll_setxattr": [c_void_p, c_void_p, c_char_p, c_char_p, c_size_t, c_int, c_void_p],
    "ceph_ll_listxattr": [c_void_p, c_void_p, c_char_p, c_size_t, POINTER(c_size_t), c_void_p],
}


def load_library() -> ctypes.CDLL:
    """libcephfs with the types of its calls. Raises OSError where it is not installed."""
    library = ctypes.CDLL(LIBRARY)
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int
    library.ceph_mount_perms.argtypes = [c_void_p]
    library.ceph_mount_perms.restype = c_void_p
    return library


class CephFile:
    """An open file: libcephfs' handle of it, and its inode."""

    __slots__ = ("handle", "inode")

    def __init__(self, handle: c_void_p, inode: c_void_p) -> None:
        self.handle = handle
        self.inode = inode


class CephOps:
    """`PosixOps[c_void_p, CephFile]` on a mounted CephFS; a directory's handle is a reference of its inode.

    `is_lost` becomes True when nothing that this mount says is to be believed any more, and it must be made anew.
    """

    def __init__(self, settings: CephSettings) -> None:
        """Mounts; takes up to `mount_timeout_s`. Raises ConfigError, StoreDenied, StoreMissing or StoreUnavailable."""
        try:
            self._library = load_library()
        except OSError:
            raise errors.ConfigError(
                f"cephfs:// needs the library {LIBRARY}: apt-get install python3-cephfs (or libcephfs2)", subject=LIBRARY
            ) from None
        self.is_lost = False
        self._mount = c_void_p()
        self._call("ceph_create", byref(self._mount), settings.user.encode())
        _configure(self._library, self._mount, settings)
        result = self._library.ceph_mount(self._mount, settings.root.encode())
        if result:
            raise self._explain_mount(-result, settings)
        self._permissions = c_void_p(self._library.ceph_mount_perms(self._mount))
        self._hidden = frozenset({self._get_option("client_snapdir").encode()})

    def unmount(self) -> None:
        """Give back what the cluster lent this client. Blocks for ever if it is gone."""
        self._library.ceph_unmount(self._mount)

    @property
    def follows_links(self) -> bool:
        return False

    @property
    def hidden_names(self) -> frozenset[bytes]:
        return self._hidden

    # -- directories

    def open_root(self) -> c_void_p:
        root = c_void_p()
        self._call("ceph_ll_lookup_root", self._mount, byref(root))
        found = _Statx()
        try:
            self._call("ceph_ll_getattr", self._mount, root, byref(found), _STATX_NLINK, 0, self._permissions)
        except BaseException:
            self._put(root)
            raise
        if not found.nlink:
            # It was removed; what is at its path by now is found by a new mount only.
            self._put(root)
            self.is_lost = True
            raise FileNotFoundError(errno.ENOENT, "the root was removed")
        return root

    def open_directory(self, parent: c_void_p, name: bytes) -> c_void_p:
        inode, found = self._lookup(parent, name)
        if not stat.S_ISDIR(found.mode):
            self._put(inode)
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return inode

    def close_directory(self, directory: c_void_p) -> None:
        self._put(directory)

    def scan(self, directory: c_void_p) -> Generator[Scanned, None, None]:
        handle = c_void_p()
        self._call("ceph_ll_opendir", self._mount, directory, byref(handle), self._permissions)
        try:
            entry, found = _Dirent(), _Statx()
            while self._call("ceph_readdirplus_r", self._mount, handle, byref(entry), byref(found), _STATX_WANT, 0, None):
                name = bytes(entry.name)
                if name not in {b".", b".."}:
                    yield Scanned(name, stat.S_ISDIR(found.mode), self._make_found(found))
        finally:
            self._library.ceph_ll_releasedir(self._mount, handle)

    def stat(self, directory: c_void_p, name: bytes) -> Found:
        inode, found = self._lookup(directory, name)
        self._put(inode)
        return self._make_found(found)

    def measure(self, directory: c_void_p) -> Space:
        found = _Statvfs()
        self._call("ceph_ll_statfs", self._mount, directory, byref(found))
        unit = found.fragment_bytes
        # (It counts its files, and has no limit to them.)
        return Space(found.blocks * unit, found.available_blocks * unit)

    def make_directory(self, directory: c_void_p, name: bytes) -> None:
        inode, found = c_void_p(), _Statx()
        self._call("ceph_ll_mkdir", self._mount, directory, name, 0o755, byref(inode), byref(found), 0, 0, self._permissions)
        self._put(inode)

    def remove_directory(self, directory: c_void_p, name: bytes) -> None:
        self._call("ceph_ll_rmdir", self._mount, directory, name, self._permissions)

    def remove_file(self, directory: c_void_p, name: bytes) -> None:
        self._call("ceph_ll_unlink", self._mount, directory, name, self._permissions)

    def rename(self, source: c_void_p, source_name: bytes, target: c_void_p, target_name: bytes, *, replace: bool) -> None:
        if not replace:
            # libcephfs has no rename that refuses to replace: looked at just before.
            try:
                inode, _ = self._lookup(target, target_name)
            except FileNotFoundError:
                pass
            else:
                self._put(inode)
                raise FileExistsError(errno.EEXIST, "there is something")
        self._call("ceph_ll_rename", self._mount, source, source_name, target, target_name, self._permissions)

    def sync_directory(self, directory: c_void_p) -> None:
        self._call("ceph_ll_sync_inode", self._mount, directory, 0)

    # -- files

    def open_file(self, directory: c_void_p, name: bytes) -> CephFile:
        return self._open(directory, name, os.O_RDONLY)

    def open_for_writing(self, directory: c_void_p, name: bytes) -> CephFile:
        return self._open(directory, name, os.O_RDWR)

    def follow(self, key: bytes) -> CephFile:
        raise OSError(errno.ELOOP, f"links are not followed: {key!r}")

    def create_file(self, directory: c_void_p, name: bytes) -> CephFile:
        inode, handle, found = c_void_p(), c_void_p(), _Statx()
        self._call(
            *("ceph_ll_create", self._mount, directory, name, 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL),
            *(byref(inode), byref(handle), byref(found), 0, 0, self._permissions),
        )
        return CephFile(handle, inode)

    def close_file(self, file: CephFile) -> None:
        self._library.ceph_ll_close(self._mount, file.handle)
        self._put(file.inode)

    def stat_file(self, file: CephFile) -> Found:
        found = _Statx()
        self._call("ceph_ll_getattr", self._mount, file.inode, byref(found), _STATX_WANT, 0, self._permissions)
        return self._make_found(found)

    def read(self, file: CephFile, offset: int, length: int) -> bytes:
        data = bytearray(length)
        return bytes(data[: self.read_into(file, offset, memoryview(data))])

    def read_into(self, file: CephFile, offset: int, buffer: memoryview) -> int:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        return self._call("ceph_ll_read", self._mount, file.handle, offset, len(buffer), address)

    def copy_in(self, file: CephFile, offset: int, fd: int, source_offset: int, length: int) -> None:
        done = 0
        while done < length:
            data = os.pread(fd, min(_COPY_BYTES, length - done), source_offset + done)
            if not data:
                raise EOFError(f"the source ends after {done} of {length} bytes")
            written = 0
            while written < len(data):
                piece = data[written:] if written else data
                written += self._call("ceph_ll_write", self._mount, file.handle, offset + done + written, len(piece), piece)
            done += written

    def sync_file(self, file: CephFile) -> None:
        self._call("ceph_ll_fsync", self._mount, file.handle, 0)

    def truncate(self, file: CephFile, size: int) -> None:
        self._set(file, _SETATTR_SIZE, size=size)

    def adopt(self, file: CephFile, found: Found) -> None:
        mode = found.mode
        try:
            self._set(file, _SETATTR_UID | _SETATTR_GID, uid=found.uid, gid=found.gid)
        except PermissionError:
            mode &= 0o777  # never set-id bits of another's
        self._set(file, _SETATTR_MODE, mode=mode)

    def set_mtime_ns(self, file: CephFile, mtime_ns: int) -> None:
        self._set(file, _SETATTR_MTIME, mtime=_Time(*divmod(mtime_ns, 1_000_000_000)))

    def set_attribute(self, file: CephFile, name: str, value: bytes) -> bool:
        full_name = f"user.{name}".encode()
        self._call("ceph_ll_setxattr", self._mount, file.inode, full_name, value, len(value), 0, self._permissions)
        return True

    def get_attributes(self, file: CephFile) -> dict[str, bytes]:
        buffer, size = ctypes.create_string_buffer(64 << 10), c_size_t()
        self._call("ceph_ll_listxattr", self._mount, file.inode, buffer, len(buffer), byref(size), self._permissions)
        names = [name for name in buffer.raw[: size.value].split(b"\0") if name.startswith(b"user.")]
        return {name.decode("utf-8", "surrogateescape").removeprefix("user."): self._get_attribute(file, name) for name in names}

    # -- calls

    def _explain_mount(self, code: int, settings: CephSettings) -> errors.AlluxioLikeError:
        """Why the mount failed, in one line."""
        if code != errno.ENOENT:
            return _explain_mount(code, settings, self._get_option("mon_host"))
        # The library says the same of three things.
        user = f"client.{settings.user}"
        paths = self._get_option("keyring").replace(";", ",").split(",")
        if not settings.key and not any(os.access(path.strip(), os.R_OK) for path in paths):
            return errors.StoreDenied(f"no key of {user} was found: give -o keyring=FILE or -o key=KEY", subject=user)
        if settings.root != "/" and self._library.ceph_mount(self._mount, b"/") == 0:
            return errors.StoreMissing("there is no such directory in the file system", subject=settings.root)
        name = f"named {settings.file_system}" if settings.file_system else "by default"
        return errors.StoreMissing(f"there is no file system {name}, or no directory {settings.root}", subject="cephfs")

    def _call(self, name: str, *arguments: Any) -> int:
        """The call's result, if it is none of its errors."""
        result = int(getattr(self._library, name)(*arguments))
        if result >= 0:
            return result
        if -result in _LOST:
            self.is_lost = True
        raise OSError(-result, os.strerror(-result))

    def _put(self, inode: c_void_p) -> None:
        self._library.ceph_ll_put(self._mount, inode)

    def _lookup(self, directory: c_void_p, name: bytes) -> tuple[c_void_p, _Statx]:
        inode, found = c_void_p(), _Statx()
        self._call("ceph_ll_lookup", self._mount, directory, name, byref(inode), byref(found), _STATX_WANT, 0, self._permissions)
        return inode, found

    def _open(self, directory: c_void_p, name: bytes, flags: int) -> CephFile:
        inode, found = self._lookup(directory, name)
        try:
            if not stat.S_ISREG(found.mode):
                raise OSError(errno.ENXIO, "not a regular file")
            handle = c_void_p()
            self._call("ceph_ll_open", self._mount, inode, flags, byref(handle), self._permissions)
        except BaseException:
            self._put(inode)
            raise
        return CephFile(handle, inode)

    def _set(self, file: CephFile, mask: int, **values: Any) -> None:
        wanted = _Statx(**values)
        self._call("ceph_ll_setattr", self._mount, file.inode, byref(wanted), mask, self._permissions)

    def _get_attribute(self, file: CephFile, name: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(64 << 10)
        size = self._call("ceph_ll_getxattr", self._mount, file.inode, name, buffer, len(buffer), self._permissions)
        return buffer.raw[:size]

    def _get_option(self, name: str) -> str:
        buffer = ctypes.create_string_buffer(4096)
        self._call("ceph_conf_get", self._mount, name.encode(), buffer, len(buffer))
        return buffer.value.decode()

    def _make_found(self, found: _Statx) -> Found:
        if not found.mask & _STATX_VERSION and stat.S_ISREG(found.mode):
            raise OSError(errno.EIO, "the cluster did not tell the version of a file")
        kind = _KINDS.get(stat.S_IFMT(found.mode), FoundKind.SPECIAL)
        # The version counts every change, whatever the clocks of those who make them say.
        token = f"{found.mtime.ns:x}.{found.ctime.ns:x}.{found.ino:x}.{found.version:x}"
        return Found(kind, token, found.size, found.mtime.ns, found.ctime.ns, stat.S_IMODE(found.mode), found.uid, found.gid)


_KINDS = {stat.S_IFREG: FoundKind.FILE, stat.S_IFDIR: FoundKind.DIRECTORY, stat.S_IFLNK: FoundKind.LINK}


def _configure(library: ctypes.CDLL, mount: c_void_p, settings: CephSettings) -> None:
    """Raises ConfigError."""

    def set_option(name: str, value: str, given: str) -> None:
        if library.ceph_conf_set(mount, name.encode(), value.encode()):
            raise errors.ConfigError(f"Ceph does not take this value of {name}", subject=given)

    conf = settings.conf or (DEFAULT_CONF if os.path.exists(DEFAULT_CONF) else "")  # noqa: PTH110
    if conf and library.ceph_conf_read_file(mount, conf.encode()):
        raise errors.ConfigError("the Ceph configuration cannot be read; give one with -o conf=FILE", subject=conf)
    options = {"mon_host": settings.monitors, "keyring": settings.keyring, "key": settings.key}
    for name, value in options.items():
        if value:
            set_option(name, value, "the key" if name == "key" else value)
    if settings.keyring and not os.access(settings.keyring, os.R_OK):
        raise errors.ConfigError("the keyring cannot be read", subject=settings.keyring)
    # What is cached is cached in files of ours: no second copy in memory (measured in docs/decisions/0028).
    set_option("client_oc", "false", "client_oc")
    set_option("client_mount_timeout", str(settings.mount_timeout_s), "timeout_s")
    for name in ("log_file", "admin_socket"):
        library.ceph_conf_set(mount, name.encode(), b"")
    for name in ("log_to_stderr", "err_to_stderr", "log_to_syslog"):
        library.ceph_conf_set(mount, name.encode(), b"false")
    if settings.file_system and library.ceph_select_filesystem(mount, settings.file_system.encode()):
        raise errors.ConfigError("not a name of a Ceph file system", subject=settings.file_system)


def _explain_mount(code: int, settings: CephSettings, monitors: str) -> errors.AlluxioLikeError:
    """Why a mount failed, in one line."""
    where = monitors or "no monitors"
    if not monitors:
        return errors.ConfigError("no monitors are known: give -o conf=FILE or -o monitors=HOST[:PORT],...", subject="cephfs://")
    if code in {errno.EPERM, errno.EACCES}:
        return errors.StoreDenied(
            f"the Ceph cluster refuses client.{settings.user}: is its key right, and may it mount {settings.root}?", subject=where
        )
    if code == errno.ENOTDIR:
        return errors.StoreMissing("not a directory", subject=settings.root)
    text = os.strerror(code)
    if code in {errno.ETIMEDOUT, errno.EHOSTDOWN}:
        text = "no answer in time" if code == errno.ETIMEDOUT else "no metadata server is up"
    return errors.StoreUnavailable(f"the Ceph cluster cannot be mounted: {text}", subject=where)
