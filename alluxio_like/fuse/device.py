"""The kernel's end of a mount: a descriptor of /dev/fuse, and what can be done with it.

Owns mounting and unmounting by mount(2), the first exchange with the kernel (INIT), clones of the descriptor, backing files,
and the writing of notifications. Not the serving of requests: sessions read and write `fd` themselves. The holder uses it too,
so it imports the standard library, the wire and the errors only. Its methods block for a short time, `notify` possibly for long
(see there); they may be called from any thread.
"""

import contextlib
import errno
import fcntl
import os
import select
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from alluxio_like.errors import AccessDenied, AlluxioLikeError, ConfigError, Conflict, TimedOut, Unsupported
from alluxio_like.fuse import libc, wire
from alluxio_like.fuse.ledger import Append, Ledger, SentAway

if TYPE_CHECKING:
    from pathlib import Path

PATH = "/dev/fuse"
MAX_REQUEST_BYTES = 1 << 20
"""Of data in one READ or WRITE: 256 pages. More gained nothing (DESIGN, measured on 6.18)."""
BUFFER_BYTES = MAX_REQUEST_BYTES + wire.MIN_READ_BUFFER
"""What a buffer for one request must hold; the kernel refuses to be read into less."""
OLDEST_MINOR = 31
"""Linux 5.4; what is older is not tried."""

_MAX_BACKGROUND = 512
"""As mountpoint.MAX_BACKGROUND."""
_WANTED = (
    wire.ASYNC_READ
    | wire.BIG_WRITES
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES
    | wire.DO_READDIRPLUS
    | wire.READDIRPLUS_AUTO
    | wire.ASYNC_DIO
    | wire.CACHE_SYMLINKS
    | wire.ABORT_ERROR
    | wire.INIT_EXT
    | wire.POSIX_ACL
    | wire.EXPORT_SUPPORT
)

LOCKS = wire.POSIX_LOCKS | wire.FLOCK_LOCKS
"""What is asked for beside that for a mount whose locks all mounts are to see."""
WRITING = wire.ATOMIC_O_TRUNC | wire.HANDLE_KILLPRIV_V2 | wire.DONT_MASK | wire.SETXATTR_EXT
"""What is asked for beside that for a mount that can be written: O_TRUNC comes with the OPEN, and set-id bits are ours to take
away (else the kernel asks for security.capability before each write). The umask is ours to apply: not where a directory has a
default access control list."""


def get_extra_flags(*, read_only: bool, locks: bool) -> int:
    """What is asked for of the kernel, by what a mount is to do."""
    return (0 if read_only else WRITING) | (LOCKS if locks and not read_only else 0)


class Handshake(NamedTuple):
    """What was agreed on with the kernel when the mount was made. `flags`: of those we asked for, what the kernel has.

    `offered`: all that the kernel has said it can do. `identity`: a number that no other mount has (0: an older release made it);
    with it a request's number names that request for ever.
    """

    minor: int
    flags: int
    offered: int
    max_write: int
    identity: int = 0

    @property
    def passthrough(self) -> bool:
        return bool(self.flags & wire.PASSTHROUGH)

    @property
    def resend(self) -> bool:
        return bool(self.flags & wire.HAS_RESEND)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Handshake":
        """From what `_asdict` gave, perhaps by another release. Raises ConfigError."""
        try:
            return cls(*(int(facts.get(name, 0) if name == "identity" else facts[name]) for name in cls._fields))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the mount was made by another release ({error!r})") from None


def negotiate(
    asked: wire.Init, *, passthrough: bool = True, resend: bool = True, extra_flags: int = 0
) -> tuple[Handshake, bytes]:
    """What is agreed on, and the body of the answer to INIT. Raises ConfigError for a kernel that is too old."""
    if asked.major != wire.KERNEL_VERSION or asked.minor < OLDEST_MINOR:
        raise ConfigError(
            f"the kernel speaks FUSE {asked.major}.{asked.minor}; 7.{OLDEST_MINOR} is needed: use --session pyfuse3"
        )
    wanted = _WANTED | extra_flags | (wire.PASSTHROUGH if passthrough else 0) | (wire.HAS_RESEND if resend else 0)
    handshake = Handshake(
        min(asked.minor, wire.KERNEL_MINOR_VERSION),
        asked.flags & wanted,
        asked.flags,
        MAX_REQUEST_BYTES,
        int.from_bytes(os.urandom(7), "little") + 1,
    )
    body = wire.pack_init(
        minor=handshake.minor,
        flags=handshake.flags,
        max_readahead=asked.max_readahead,
        max_write=MAX_REQUEST_BYTES,
        max_background=_MAX_BACKGROUND,
        congestion_threshold=_MAX_BACKGROUND * 3 // 4,
        max_pages=MAX_REQUEST_BYTES // 4096,
        # A backing file may lie on any file system that is not itself stacked on others.
        max_stack_depth=1 if handshake.passthrough else 0,
    )
    return handshake, body


class Device:
    """One descriptor of a mount's connection. `fd` is for sessions, which read and write it directly; `close` gives it back.

    With a ledger it writes down which backing files are registered; they are then registered and given back by one thread only.
    """

    __slots__ = ("_ledger", "fd")

    def __init__(self, fd: int, ledger: Ledger | None = None) -> None:
        self.fd = fd
        self._ledger = ledger

    @classmethod
    def mount(
        cls,
        place: "Path | str",
        *,
        allow_other: bool,
        read_only: bool = True,
        suid: bool = False,
        source: str = "alluxio-like",
        subtype: str = "alluxio_like",
    ) -> "Device":
        """Mount on a directory; INIT waits to be answered then (`shake_hands`). `suid`: set-id bits of programs count.

        Raises AccessDenied without CAP_SYS_ADMIN, ConfigError where there is no /dev/fuse or nothing can be mounted, Conflict.
        """
        try:
            device = cls(os.open(PATH, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise _translate(error, f"cannot open {PATH}", PATH) from error
        options = f"fd={device.fd},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={MAX_REQUEST_BYTES}"
        if allow_other:
            options += ",allow_other"
        # (Never devices: what one stands for is this machine's, and who made it may have been root of another.)
        flags = libc.MS_NODEV | (libc.MS_RDONLY if read_only else 0) | (0 if suid else libc.MS_NOSUID)
        try:
            libc.mount(source, place, f"fuse.{subtype}", flags, options)
        except OSError as error:
            device.close()
            raise _translate(error, "cannot mount", str(place)) from error
        return device

    def shake_hands(
        self, *, passthrough: bool = True, resend: bool = True, extra_flags: int = 0, timeout_s: float = 10.0
    ) -> Handshake:
        """Answer INIT, the first request of a mount; what was agreed on. Raises ConfigError, TimedOut, InvalidArgument."""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while True:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimedOut(f"the kernel sent no request within {timeout_s:g} s")
            try:
                data = os.read(self.fd, BUFFER_BYTES)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                raise _translate(error, "the mount went away before it began", PATH) from error
            header, body = wire.parse(memoryview(data))
            if not isinstance(body, wire.Init):
                os.write(self.fd, wire.pack_error(header.unique, errno.EIO))
                continue
            if body.major > wire.KERNEL_VERSION:  # it asks again, the way we understand
                os.write(self.fd, wire.pack_reply(header.unique, wire.INIT_OUT.pack(wire.KERNEL_VERSION, *[0] * 12)))
                continue
            handshake, answer = negotiate(body, passthrough=passthrough, resend=resend, extra_flags=extra_flags)
            os.write(self.fd, wire.pack_reply(header.unique, answer))
            return handshake

    def clone(self) -> "Device":
        """Another descriptor of the same connection, with a queue of its own of what was read through it and is not answered.

        When the last copy of such a descriptor is closed, those requests end with ECONNABORTED. Raises Unsupported.
        """
        clone = Device(os.open(PATH, os.O_RDWR | os.O_CLOEXEC))
        try:
            fcntl.ioctl(clone.fd, wire.DEV_IOC_CLONE, self.fd.to_bytes(4, "little"))
        except OSError as error:
            clone.close()
            raise Unsupported(f"the descriptor cannot be cloned ({error.strerror})") from error
        return clone

    def open_backing(self, fd: int) -> int:
        """Register a file, open for reading, that the kernel may read by itself; the backing id, above 0.

        Raises Unsupported, caused by the OSError: ELOOP on a stacked file system (overlayfs), EOPNOTSUPP where the file cannot be
        read by the kernel, EPERM before INIT is answered or without CAP_SYS_ADMIN, ENOTTY before Linux 6.9.
        """
        ledger = self._ledger
        if ledger is not None:
            ledger.begin()
        try:
            backing_id = int(fcntl.ioctl(self.fd, wire.DEV_IOC_BACKING_OPEN, bytearray(wire.BACKING_MAP.pack(fd, 0))))
        except OSError as error:
            if ledger is not None:
                ledger.abandon()
            raise Unsupported(f"the kernel cannot read the file by itself ({error.strerror})") from error
        if ledger is not None:
            ledger.add(backing_id)
        return backing_id

    def note_sent(self, sent: SentAway) -> None:
        """Let a daemon that comes after this one know whom it has sent away."""
        if self._ledger is not None:
            self._ledger.note_sent(sent)

    def forget_sent(self, thread: int, inode: int) -> None:
        """A thread is back."""
        if self._ledger is not None:
            self._ledger.forget_sent(thread, inode)

    def list_sent(self) -> list[SentAway]:
        """Whom the daemon before this one has sent away."""
        return [] if self._ledger is None else self._ledger.list_sent()

    def note_written(self, inode: int) -> None:
        """Let a daemon that comes after this one know that a file is being written."""
        if self._ledger is not None:
            self._ledger.note_written(inode)

    def forget_written(self, inode: int) -> None:
        """It is not any more."""
        if self._ledger is not None:
            self._ledger.forget_written(inode)

    def list_written(self) -> list[int]:
        """What was being written through the daemon before this one, and is through this one."""
        return [] if self._ledger is None else self._ledger.list_written()

    def note_append(self, append: Append) -> None:
        """Let a daemon that comes after this one know where an append went."""
        if self._ledger is not None:
            self._ledger.note_append(append)

    def lookup_append(self, unique: int) -> Append | None:
        """Where the append of a request went that a daemon before this one has not answered."""
        return None if self._ledger is None else self._ledger.lookup_append(unique)

    def close_backing(self, backing_id: int) -> bool:
        """Give a backing id back; open handles keep what they have. False if there is no such id."""
        if self._ledger is not None:
            self._ledger.remove(backing_id)
        try:
            fcntl.ioctl(self.fd, wire.DEV_IOC_BACKING_CLOSE, backing_id.to_bytes(4, "little"))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise Unsupported(f"a backing file cannot be given back ({error.strerror})") from error
        return True

    def notify(self, message: bytes) -> None:
        """Write a notification (`wire.pack_inval_entry`, ...). Raises OSError; ENOENT: the kernel does not know what it is about.

        INVAL_ENTRY, DELETE and INVAL_INODE wait until requests in flight on that directory or inode are answered: never call it
        from what answers them, nor under a lock that this takes.
        """
        os.write(self.fd, message)

    def close(self) -> None:
        """Close the descriptor; the mount ends with the last copy of the last one."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)
        if self._ledger is not None:
            self._ledger.close()


class DeviceWriter:
    """Notifications that make the kernel ask again, as notify.KernelWriter."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def invalidate_entry(self, parent: int, name: bytes, *, expire_only: bool) -> None:
        # (A kernel before 6.2 does not look at the flag, and forgets.)
        self._device.notify(wire.pack_inval_entry(parent, name, wire.EXPIRE_ONLY if expire_only else 0))

    def invalidate_inode(self, node: int, *, attributes_only: bool) -> None:
        self._device.notify(wire.pack_inval_inode(node, -1 if attributes_only else 0, 0))

    def increment_epoch(self) -> None:
        self._device.notify(wire.pack_inc_epoch())


def _translate(error: OSError, what: str, subject: str) -> AlluxioLikeError:
    kinds = {errno.EPERM: AccessDenied, errno.EACCES: AccessDenied, errno.EBUSY: Conflict}
    return kinds.get(error.errno or 0, ConfigError)(f"{what} ({error.strerror})", subject=subject)
