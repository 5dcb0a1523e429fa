"""One cache directory on the disk: its lock, format, identity, space and health.

    format      the format's number, page and block size
    identity    whose it is: worker id, cluster id
    lock        locked while a worker has the directory; holds its pid
    index/      LMDB
    files/ab/   cache files, sparse, data at natural offsets
    drafts/     files that are being written
    held/       evicted but still open somewhere

Owns these files and the account of the directory's space. Space is charged before bytes are written and given back when they are
gone, under one lock that is held for arithmetic only. Safe from any thread.
"""

import contextlib
import errno
import fcntl
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb

from alluxio_like import errors
from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache.index import Effect, Index
from alluxio_like.cache.probe import UNKNOWN, probe_file_system
from alluxio_like.clock import Clock
from alluxio_like.types import BLOCK_BYTES, PAGE_BYTES

DEFAULT_QUOTA_FRACTION = 0.8
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
DISK_CHECK_INTERVAL_S = 1.0
"""How long a statvfs is believed; what we write ourselves meanwhile is subtracted."""
_NEEDED = ("index/data.mdb", "drafts", "held")
"""What a directory in use must have, looked for as often as its room: a worker whose directory is removed keeps descriptors
of what is gone, which fail at nothing but the next file, and an index that its next start does not find."""
INDEX_MAP_FRACTION = 8
"""Address space for the index: an eighth of the quota. A file of one page takes 152 bytes of it where files come in the order of
their ids and 356 in random order (measured), so that this is enough for files of 4 KiB; space is taken only as it fills."""


@dataclass(frozen=True, slots=True)
class CacheDirSpec:
    """A cache directory as configured. `quota_bytes` None: 80 % of the disk (shared by the directories on it)."""

    path: Path
    quota_bytes: int | None = None
    tier: str = "SSD"
    allow_root_disk: bool = False
    keep_free_fraction: float = 0.1


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose a directory is; `cluster_id` None: it has not joined one yet."""

    worker_id: str
    cluster_id: str | None


class CacheDirectory:
    """A locked directory. Build with `open_directory`, then `start`."""

    def __init__(self, spec: CacheDirSpec, number: int, fd: int, lock_fd: int, clock: Clock) -> None:
        self.spec = spec
        self.number = number
        self.fd = fd
        self.index: Index | None = None
        self.quota_bytes = 0
        self.state = "ok"
        self.reason = ""
        self._lock_fd = lock_fd
        self._clock = clock
        self._lock = threading.Lock()
        self._used = 0
        self._held = 0
        self._held_files = 0
        self._drafts: dict[int, int] = {}
        self._draft_bytes = 0
        self.file_system = UNKNOWN
        self._room = 0
        self._room_until = -1.0
        self._on_failed: Callable[[CacheDirectory], None] = lambda _: None

    @property
    def ok(self) -> bool:
        return self.state == "ok"

    @property
    def used_bytes(self) -> int:
        """Space of present pages, charged ones included."""
        return self._used

    @property
    def held_bytes(self) -> int:
        return self._held

    @property
    def held_files(self) -> int:
        return self._held_files

    @property
    def draft_bytes(self) -> int:
        """Space of files that are being written, as of the last look at each."""
        return self._draft_bytes

    def note_draft(self, generation: int, size: int) -> None:
        """A file that is being written takes so much space (0: none any more)."""
        with self._lock:
            self._draft_bytes += size - self._drafts.pop(generation, 0)
            if size:
                self._drafts[generation] = size

    def get_index(self) -> Index:
        """The index; raises DiskError when the directory has failed."""
        if self.index is None or self.state != "ok":
            raise errors.DiskError(f"cache directory failed ({self.reason})", subject=str(self.spec.path))
        return self.index

    def start(
        self,
        boot_id: str,
        default_quota: int,
        on_commit: Callable[[list[Effect]], None],
        on_failed: Callable[["CacheDirectory"], None],
    ) -> None:
        """Open the index and decide what of it is to be trusted. Disk errors mark the directory failed."""
        self._on_failed = on_failed
        self.file_system = probe_file_system(self.fd)
        try:
            for name in ("files", "held", "drafts", "index"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self.fd)
            for number in range(256):
                self.make_place(f"files/{number:02x}/")
            self.quota_bytes = default_quota if self.spec.quota_bytes is None else self.spec.quota_bytes
            index = Index(f"/proc/self/fd/{self.fd}/index", self.quota_bytes // INDEX_MAP_FRACTION, on_commit)
            same_boot = (index.get_meta(fmt.KEY_BOOT) or boot_id.encode()) == boot_id.encode()
            trusted = same_boot or index.get_meta(fmt.KEY_CLEAN) == b"1"
            if not trusted:
                index.trust += 1
            index.put_meta({fmt.KEY_BOOT: boot_id.encode(), fmt.KEY_CLEAN: b"0", fmt.KEY_TRUST: index.trust.to_bytes(4, "big")})
            self._used = index.usage.used_bytes
            self.index = index
            self.reap_held()
        except (OSError, lmdb.Error) as error:
            self.fail(str(error))

    def make_place(self, path: str) -> None:
        """The directories in which a cache file is to be made, where they are not there (any more). Raises OSError."""
        for name in ("files", path.rpartition("/")[0]):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self.fd)

    def get_room(self) -> int:
        """Bytes that may still be written: by the quota and by what must stay free on the disk."""
        if not self.ok:
            return 0
        now = self._clock.monotonic()
        if now >= self._room_until:
            try:
                stat = os.fstatvfs(self.fd)
                for name in _NEEDED:
                    os.stat(name, dir_fd=self.fd)
            except FileNotFoundError:
                self.fail(f"{name} was removed from it")
                return 0
            except OSError as error:
                self.fail(str(error))
                return 0
            keep = int(stat.f_blocks * stat.f_frsize * self.spec.keep_free_fraction)
            with self._lock:
                self._room = stat.f_bavail * stat.f_frsize - keep
                self._room_until = now + DISK_CHECK_INTERVAL_S
        return max(0, min(self._room, self.quota_bytes - self._used - self._held - self._draft_bytes))

    def get_overdraft(self) -> int:
        """Bytes that lack of what must stay free on the disk: others use it too."""
        self.get_room()
        with self._lock:
            return max(0, -self._room) if self.ok else 0

    def charge(self, size: int) -> None:
        """Take space before writing. Raises NoSpace, DiskError."""
        if not self.ok:
            self.get_index()
        room = self.get_room()
        with self._lock:
            if size > min(room, self._room, self.quota_bytes - self._used - self._held - self._draft_bytes):
                raise errors.NoSpace("cache directory is full", subject=str(self.spec.path))
            self._used += size
            self._room -= size

    def give_back(self, size: int) -> None:
        """Return space that was charged."""
        with self._lock:
            self._used -= size
            self._room += size

    def note_disk_full(self) -> None:
        """The disk itself said ENOSPC: believe it until the next look."""
        with self._lock:
            self._room = 0
            self._room_until = self._clock.monotonic() + DISK_CHECK_INTERVAL_S

    def fail(self, reason: str) -> None:
        """Take the directory out: the disk under it failed. Idempotent."""
        with self._lock:
            if self.state == "failed":
                return
            self.state = "failed"
            self.reason = reason
        self._on_failed(self)

    def sync_written(self, fd: int, subject: str) -> None:
        """Have a file that programs write be on the disk.

        An I/O error may be the file's alone: who writes it with O_DIRECT and through the page cache at once has the kernel report
        one. So the disk is tried first; if that works, who wrote the file is told (DiskError), and what the kernel remembers of
        the file is dropped, as the disk may have other bytes. Raises OSError where it is the disk, or nobody can tell.
        """
        try:
            os.fdatasync(fd)
        except OSError as error:
            if error.errno != errno.EIO or not self._is_written_well():
                raise
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            raise errors.DiskError("not all that was written to the file may be on the disk", subject=subject) from error

    def _is_written_well(self) -> bool:
        """Whether something else can be written to the disk, to its end."""
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
            try:
                os.write(fd, bytes(4096))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError:
            return False
        return True

    def translate(self, error: OSError | lmdb.Error, subject: str = "") -> errors.AlluxioLikeError:
        """What the disk said, in our own errors; a disk that fails is taken out."""
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL_DISK or isinstance(error, lmdb.MapFullError):
            self.note_disk_full()
            return errors.NoSpace("disk of the cache directory is full", subject=str(self.spec.path))
        if code in {errno.EMFILE, errno.ENFILE, errno.EWOULDBLOCK}:
            return errors.Unavailable(f"file of the cache cannot be opened now ({os.strerror(code or 0)})", subject=subject)
        if code == errno.ENOENT:
            return errors.DiskError("file of the cache is gone from the disk", subject=subject or str(self.spec.path))
        self.fail(str(error))
        return errors.DiskError(f"cache disk failed ({error})", subject=str(self.spec.path))

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """What the disk says within, in our own errors; see `translate`."""
        try:
            yield
        except (OSError, lmdb.Error) as error:
            raise self.translate(error) from error

    def hold(self, path: str, generation: int) -> None:
        """Move a removed file that somebody still has open to held/, and count it."""
        target = f"held/{generation:016x}"
        os.rename(path, target, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        size = os.stat(target, dir_fd=self.fd).st_blocks * 512
        with self._lock:
            self._held += size
            self._held_files += 1

    def reap_held(self) -> int:
        """Remove held files that nobody has open; returns the bytes freed."""
        held = freed = count = 0
        descriptor = os.open("held", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
        try:
            for name in os.listdir(descriptor):  # noqa: PTH208 (by descriptor)
                try:
                    fd = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=descriptor)
                except OSError:
                    continue
                try:
                    size = os.fstat(fd).st_blocks * 512
                    if syscalls.take_write_lease(fd):
                        os.unlink(name, dir_fd=descriptor)
                        freed += size
                    else:
                        held += size
                        count += 1
                finally:
                    os.close(fd)
        finally:
            os.close(descriptor)
        with self._lock:
            self._held = held
            self._held_files = count
        return freed

    def write_identity(self, identity: Identity) -> None:
        _write_file(self.fd, "identity", json.dumps({"worker_id": identity.worker_id, "cluster_id": identity.cluster_id}))

    def read_identity(self) -> Identity | None:
        text = read_file(self.fd, "identity")
        if text is None:
            return None
        try:
            fields = json.loads(text)
            return Identity(str(fields["worker_id"]), fields["cluster_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise errors.ConfigError("identity file of the cache directory is damaged", subject=str(self.spec.path)) from error

    def close(self, *, clean: bool) -> None:
        """Close the index, with the clean mark if everything is known to be on the disk; release the lock."""
        was_ok = self.ok
        self.state, self.reason = ("closed", "closed") if was_ok else (self.state, self.reason)
        if self.index is not None:
            try:
                if clean and was_ok:
                    self.index.commit_grouped({})
                    self.index.put_meta({fmt.KEY_CLEAN: b"1"})
                self.index.close(clean=clean)
            except (OSError, lmdb.Error):
                pass
            self.index = None
        os.close(self._lock_fd)
        os.close(self.fd)


def open_directory(spec: CacheDirSpec, number: int, clock: Clock) -> CacheDirectory:
    """Lock a directory and check its format; creates it when it is not there.

    Raises Conflict, FormatTooNew, ConfigError, and OSError for what the disk says.
    """
    path = spec.path
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not spec.allow_root_disk and path.stat().st_dev == Path("/").stat().st_dev:
        raise errors.ConfigError(
            "cache directory is on the root file system, which it could fill: use another disk, or --allow-root-disk",
            subject=str(path),
        )
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    lock_fd = -1
    try:
        _check_ours(fd, path)
        lock_fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock_fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise errors.Conflict(f"cache directory is in use by process {pid}", subject=str(path)) from None
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        _check_format(fd, path)
        return CacheDirectory(spec, number, fd, lock_fd, clock)
    except BaseException:
        if lock_fd >= 0:
            os.close(lock_fd)
        os.close(fd)
        raise


def settle_identity(directories: Sequence[CacheDirectory], cluster_id: str | None) -> Identity:
    """One identity for all directories: the one they have, else a new one. Raises ConfigError when they disagree."""
    known = [(directory, identity) for directory in directories if (identity := directory.read_identity()) is not None]
    worker_id = known[0][1].worker_id if known else uuid.uuid4().hex
    cluster = cluster_id
    for directory, identity in known:
        if identity.worker_id != worker_id:
            raise errors.ConfigError(
                f"cache directory belongs to worker {identity.worker_id}, the others to {worker_id}; empty it or give it back",
                subject=str(directory.spec.path),
            )
        if identity.cluster_id is not None and cluster is not None and identity.cluster_id != cluster:
            raise errors.ConfigError(
                f"cache directory belongs to cluster {identity.cluster_id}, not {cluster}; empty it or use another",
                subject=str(directory.spec.path),
            )
        cluster = cluster or identity.cluster_id
    settled = Identity(worker_id, cluster)
    for directory in directories:
        if directory.read_identity() != settled:
            directory.write_identity(settled)
    return settled


def get_default_quotas(specs: Sequence[CacheDirSpec], fds: Sequence[int]) -> list[int]:
    """80 % of each directory's disk, divided by the directories on it that have no quota of their own."""
    devices = [os.fstat(fd).st_dev for fd in fds]
    quotas = []
    for device, fd in zip(devices, fds, strict=True):
        sharing = sum(1 for other, spec in zip(devices, specs, strict=True) if other == device and spec.quota_bytes is None)
        stat = os.fstatvfs(fd)
        quotas.append(int(stat.f_blocks * stat.f_frsize * DEFAULT_QUOTA_FRACTION) // max(1, sharing))
    return quotas


def _check_ours(fd: int, path: Path) -> None:
    names = set(os.listdir(fd)) - {"lost+found", "lock"}
    if names and "format" not in names and not names <= {"format.new"}:
        raise errors.ConfigError("directory is not empty and not a cache directory; give an empty one", subject=str(path))


def check_format(fd: int, path: str) -> bool:
    """Whether the directory has a format, and it is ours. Raises FormatTooNew, ConfigError."""
    text = read_file(fd, "format")
    if text is None:
        return False
    try:
        fields = json.loads(text)
        number, page_bytes, block_bytes = (int(fields[name]) for name in ("format", "page_bytes", "block_bytes"))
    except (ValueError, KeyError, TypeError) as error:
        raise errors.ConfigError("format file of the cache directory is damaged", subject=path) from error
    if number > fmt.FORMAT_NUMBER:
        raise errors.FormatTooNew(
            f"cache directory has format {number}, this release reads up to {fmt.FORMAT_NUMBER}; use the newer release",
            subject=path,
        )
    if (page_bytes, block_bytes) != (PAGE_BYTES, BLOCK_BYTES):
        raise errors.ConfigError(f"cache directory has pages of {page_bytes} and blocks of {block_bytes} bytes", subject=path)
    return True


def get_format(fd: int) -> int:
    """The number of a directory's format, which `check_format` has found good."""
    return int(json.loads(read_file(fd, "format") or "{}")["format"])


def _check_format(fd: int, path: Path) -> None:
    if not check_format(fd, str(path)) or get_format(fd) < fmt.FORMAT_NUMBER:
        # A format before this one is read as it is: tables and flags were added. From now on older programs refuse.
        fields = {"format": fmt.FORMAT_NUMBER, "page_bytes": PAGE_BYTES, "block_bytes": BLOCK_BYTES}
        _write_file(fd, "format", json.dumps(fields))


def read_file(fd: int, name: str) -> str | None:
    """What a small file of the directory says; None: it is not there."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, 65536).decode(errors="replace")
    finally:
        os.close(file)


def _write_file(fd: int, name: str, text: str) -> None:
    """Replace a small file so that a crash leaves the old one or the new one."""
    file = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        os.write(file, text.encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    os.rename(f"{name}.new", name, src_dir_fd=fd, dst_dir_fd=fd)
    os.fsync(fd)
