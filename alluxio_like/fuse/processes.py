"""What the kernel tells of processes: who a thread belongs to, and how much its process has read.

Owns the reading of /proc, nothing that is remembered. `find_process` and `is_alive` take no lock that a process could hold while
it waits for this mount, and so may be called from the loop that answers it. All else may not: /proc/PID/io waits for an exec
under way, and /proc/PID/cmdline for page faults, and both may be waiting for us. These belong into a thread. (In an exec the
kernel closes files, whose FLUSH it waits for. Newer kernels have /proc/PID/stat wait for it too, 6.18.44 among them; not
/proc/PID/status.)

/proc/PID/io: `rchar` is what read(2), pread(2), readv(2), sendfile(2) and splice(2) gave, of files, pipes and terminals alike,
from the page
cache or not, through FUSE passthrough or not. Not in it: page faults of mapped files, io_uring, Linux's asynchronous reads
(libaio). `read_bytes` is what was fetched from block devices for the process, these included.
"""

import functools
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from alluxio_like.fuse.accounts import JobInfo

_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
_CONTAINER = re.compile(r"[0-9a-f]{32,64}")
_CMDLINE_BYTES = 512
_INO = re.compile(rb"^ino:\t(\d+)$", re.MULTILINE)
_MOST_HEIRS = 64
_MOST_FDS = 1024


@dataclass(frozen=True, slots=True)
class IoCounts:
    """What a process has read since it began, its ended threads included."""

    read_chars: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Details:
    """What tells a person which process it is. `group`: its pod, else the last part of its cgroup; may be empty."""

    command: str
    group: str


def find_process(thread: int) -> JobInfo | None:
    """The process of a thread; None where it has gone, or cannot be seen from here (another PID namespace: number 0)."""
    if thread <= 0:
        return None
    try:
        fields = _read_status(thread)
        pid = int(fields[b"Tgid"])
        name = fields[b"Name"] if pid == thread else _read_status(pid)[b"Name"]
        return JobInfo(pid, _get_birth(pid), name.decode(errors="replace"), int(fields[b"PPid"]), int(fields[b"Uid"].split()[0]))
    except (OSError, ValueError, KeyError, IndexError):
        return None


def is_alive(job: JobInfo) -> bool:
    """Whether the process still runs."""
    try:
        return _get_birth(job.pid) == job.birth and _read_status(job.pid)[b"State"][:1] not in b"ZX"
    except (OSError, ValueError, KeyError, IndexError):
        return False


def read_counts(job: JobInfo) -> IoCounts | None:
    """What a process has read by now; None if it is gone, or may not be looked at. In a thread."""
    try:
        lines = _read(f"/proc/{job.pid}/io").split(b"\n")
        if _get_birth(job.pid) != job.birth:
            return None
        counts = dict(line.split(b": ", 1) for line in lines if line)
        return IoCounts(int(counts[b"rchar"]), int(counts[b"read_bytes"]))
    except (OSError, ValueError, KeyError, IndexError):
        return None


def list_heirs(job: JobInfo, files: Mapping[str, Collection[int]]) -> list[JobInfo]:
    """Processes below one that have a file open which it opened: by name (without directory) and inode numbers. In a thread.

    Such files were inherited by a fork; the first _MOST_HEIRS processes are looked at.
    """
    found = []
    seen = _list_children(job.pid)
    for pid in seen:
        if len(seen) < _MOST_HEIRS:
            seen += _list_children(pid)
        if _holds(pid, files) and (heir := find_process(pid)) is not None:
            found.append(heir)
    return found


def _list_children(pid: int) -> list[int]:
    try:
        lists = [_read(f"/proc/{pid}/task/{task}/children") for task in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208  (quicker)
    except OSError:
        return []
    return [int(child) for one in lists for child in one.split()][:_MOST_HEIRS]


def _holds(pid: int, files: Mapping[str, Collection[int]]) -> bool:
    try:
        for fd in os.listdir(f"/proc/{pid}/fd")[:_MOST_FDS]:  # noqa: PTH208
            # The name first, which is quick; then the number, as other file systems have files of that name.
            wanted = files.get(os.readlink(f"/proc/{pid}/fd/{fd}").rpartition("/")[2])  # noqa: PTH115
            if wanted and (number := _INO.search(_read(f"/proc/{pid}/fdinfo/{fd}"))) and int(number[1]) in wanted:
                return True
    except OSError:
        pass
    return False


def read_details(job: JobInfo) -> Details | None:
    """None if it is gone. In a thread."""
    try:
        command = _read(f"/proc/{job.pid}/cmdline")[:_CMDLINE_BYTES].rstrip(b"\0").replace(b"\0", b" ")
        groups = _read(f"/proc/{job.pid}/cgroup").decode(errors="replace")
    except OSError:
        return None
    return Details(command.decode(errors="replace"), find_group(groups))


def find_group(cgroups: str) -> str:
    """What of /proc/PID/cgroup tells a person which workload it is."""
    if found := _POD.search(cgroups):
        return f"pod {found[1].replace('_', '-')}"
    paths = [line.split(":", 2)[2] for line in cgroups.splitlines() if line.count(":") >= 2]
    last = max(paths, key=len, default="").rstrip("/").rpartition("/")[2]
    return last[:12] if _CONTAINER.fullmatch(last) else last


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # In one go: what /proc says of one moment.
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _read_status(pid: int) -> dict[bytes, bytes]:
    return dict(line.split(b":\t", 1) for line in _read(f"/proc/{pid}/status").split(b"\n") if b":\t" in line)


def _get_birth(pid: int) -> int:
    """A number that tells a process from a later one of the same number: of its pidfd, or where these have none of their own
    (before Linux 6.9) the time at which it began."""
    fd = os.pidfd_open(pid)
    try:
        found = os.fstat(fd)
        if found.st_ino != _get_shared_number():
            return found.st_ino
    finally:
        os.close(fd)
    return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])


@functools.cache
def _get_shared_number() -> int:
    """What the pidfds of all processes have as their inode's number, where they share one; else 0."""
    fds = [os.pidfd_open(1), os.pidfd_open(os.getpid())]
    numbers = {os.fstat(fd).st_ino for fd in fds}
    for fd in fds:
        os.close(fd)
    return numbers.pop() if len(numbers) == 1 and os.getpid() != 1 else 0
