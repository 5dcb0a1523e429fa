"""What a machine needs to run this well, looked at one thing at a time: kernel, FUSE, privileges, limits, memory, cache
directories, files.

Owns the judgements; each check says what was found and, where it is not as it should be, what cures it. Changes nothing.
Functions block for a short time; what may hang (a mount, a process) is asked with a bound.
"""

import contextlib
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alluxio_like.cache.layout import INDEX_MAP_FRACTION
from alluxio_like.cache.probe import FIRST_KERNEL, get_kernel_version, probe_file_system
from alluxio_like.certificates import read_validity
from alluxio_like.cli.render import show_size

OLDEST_KERNEL_SESSION = (5, 10)
_CAP_SYS_ADMIN = 21
DESCRIPTORS_WANTED = 65536
"""A guess: a worker has one for each caller at its door and each file in use, a daemon one for each open file."""
_TRIAL_S = 20.0
_LEAST_FREE = 0.02
_LEAST_INODES = 100_000
_LEAST_MEMORY_BYTES = 1 << 30
_EXPIRES_SOON_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Check:
    """`state` is ok, warn (works, but worse than it could), fail (does not work) or skip (could not be looked at)."""

    name: str
    state: str
    message: str
    cure: str = ""


def check_kernel(release: str) -> Check:
    """What the kernel's version allows."""
    version = get_kernel_version(release)
    if version >= FIRST_KERNEL:
        return Check("kernel", "ok", f"Linux {release}: may have FUSE passthrough")
    if version >= OLDEST_KERNEL_SESSION:
        return Check(
            "kernel",
            "warn",
            f"Linux {release} has no FUSE passthrough: each read of a mount asks the daemon",
            "Linux 6.9 or later",
        )
    return Check(
        "kernel", "warn", f"Linux {release} is served by pyfuse3 only, without passthrough", "Linux 6.9 or later (5.10 at least)"
    )


def check_kernel_config(release: str, root: Path = Path("/")) -> Check:
    """Whether passthrough was built into the kernel, where its configuration can be read."""
    text = _read_kernel_config(release, root)
    if text is None:
        return Check("kernel option", "skip", "the kernel's configuration cannot be read here")
    if "CONFIG_FUSE_PASSTHROUGH=y" in text.splitlines():
        return Check("kernel option", "ok", "CONFIG_FUSE_PASSTHROUGH=y")
    if get_kernel_version(release) < FIRST_KERNEL:
        return Check("kernel option", "skip", "this kernel has no CONFIG_FUSE_PASSTHROUGH yet")
    return Check("kernel option", "warn", "the kernel was built without CONFIG_FUSE_PASSTHROUGH", "a kernel that has it")


def _read_kernel_config(release: str, root: Path) -> str | None:
    with contextlib.suppress(OSError, EOFError):
        return gzip.decompress((root / "proc/config.gz").read_bytes()).decode(errors="replace")
    with contextlib.suppress(OSError):
        return (root / f"boot/config-{release}").read_text(errors="replace")
    return None


def has_sys_admin() -> bool:
    """Whether this process may mount."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def check_fuse(*, privileged: bool) -> Iterator[Check]:
    """What a mount takes: the privilege or its substitute, the device."""
    if privileged:
        yield Check("privileges", "ok", "CAP_SYS_ADMIN: the kernel session can be used")
    else:
        yield Check(
            "privileges", "warn", "without CAP_SYS_ADMIN mounts are served by pyfuse3, without passthrough",
            "run the mount as root, or with CAP_SYS_ADMIN (in Kubernetes: privileged: true)",
        )  # fmt: skip
    yield _check_device()
    if privileged:
        return
    found = shutil.which("fusermount3")
    if found:
        yield Check("fusermount3", "ok", found)
    else:
        yield Check("fusermount3", "fail", "not installed, and without privileges nothing can be mounted", "install fuse3")
    if find_spec("pyfuse3") is None:
        yield Check(
            "pyfuse3", "fail", "not installed, and the kernel session needs CAP_SYS_ADMIN", "pip install 'alluxio-like[fuse]'"
        )
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in Path("/etc/fuse.conf").read_text(errors="replace").splitlines()]
    if "user_allow_other" in lines:
        yield Check("user_allow_other", "ok", "other users may be let into a mount")
    else:
        yield Check("user_allow_other", "warn", "only the user who mounts gets in", "write user_allow_other into /etc/fuse.conf")


def _check_device() -> Check:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Check("/dev/fuse", "fail", "is not there", "modprobe fuse; in a container pass the device in (--device /dev/fuse)")
    except OSError as error:
        return Check(
            "/dev/fuse", "fail", f"cannot be opened: {error.strerror}", "its mode (0666), or the container's device rules"
        )
    return Check("/dev/fuse", "ok", "can be opened")


def check_max_pages(root: Path = Path("/")) -> Check:
    """How large one request of a mount may be."""
    try:
        pages = int((root / "proc/sys/fs/fuse/max_pages_limit").read_text())
    except (OSError, ValueError):
        return Check("max_pages_limit", "ok", "requests of up to 1 MiB (this kernel has no other limit)")
    if pages < 256:
        return Check(
            "max_pages_limit",
            "warn",
            f"requests of a mount are {pages * 4} KiB at most",
            "echo 256 > /proc/sys/fs/fuse/max_pages_limit",
        )
    return Check("max_pages_limit", "ok", f"requests of up to {pages * 4} KiB")


def check_descriptors(soft: int, hard: int, who: str = "this shell", used: int = 0) -> Check:
    """Whether a process may open enough files."""
    name = f"open files of {who}"
    if used and used > 0.7 * soft:
        return Check(name, "warn", f"{used:,} of {soft:,} are in use", f"LimitNOFILE={DESCRIPTORS_WANTED} for the service")
    if soft < DESCRIPTORS_WANTED:
        cure = (
            f"ulimit -n {min(hard, DESCRIPTORS_WANTED)}"
            if hard > soft
            else f"LimitNOFILE={DESCRIPTORS_WANTED}, or /etc/security/limits.conf"
        )
        return Check(name, "warn", f"{soft:,} at most; {DESCRIPTORS_WANTED:,} are plenty", cure)
    return Check(name, "ok", f"{soft:,} at most" + (f", {used:,} in use" if used else ""))


def check_own_descriptors() -> Check:
    """Of whatever is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return check_descriptors(soft, hard)


def check_process(pid: int, what: str) -> Check | None:
    """The descriptors of a running service; None: it cannot be looked at."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
        used = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (only counted)
    except OSError:
        return None
    for line in limits.splitlines():
        if line.startswith("Max open files"):
            soft, hard = line.split()[3:5]
            return check_descriptors(_parse_limit(soft), _parse_limit(hard), f"{what} (pid {pid})", used)
    return None


def _parse_limit(text: str) -> int:
    return 1 << 30 if text == "unlimited" else int(text)


def check_memory(root: Path = Path("/")) -> Check:
    """Whether there is memory for the page cache, and whether the machine swaps."""
    facts: dict[str, int] = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts[name] = int(value.split()[0]) * 1024
    free, swapped = facts.get("MemAvailable", 0), facts.get("SwapTotal", 0) - facts.get("SwapFree", 0)
    said = f"{show_size(free)} of {show_size(facts.get('MemTotal', 0))} available, {show_size(swapped)} swapped out"
    if free < _LEAST_MEMORY_BYTES:
        return Check("memory", "warn", said, "more memory, or fewer neighbours: cached files are read from the page cache")
    if swapped > free:
        return Check("memory", "warn", said, "swapoff -a, or more memory: a service that is swapped out answers late")
    return Check("memory", "ok", said)


# cache directories


@dataclass(frozen=True, slots=True)
class CachePlace:
    """A cache directory to look at. `quota_bytes` 0: not known."""

    path: Path
    quota_bytes: int = 0
    allow_root_disk: bool = True


def check_cache_dirs(places: Sequence[CachePlace], *, privileged: bool) -> Iterator[Check]:
    """File systems, space and indexes of cache directories; tries passthrough where that is allowed."""
    there = [place for place in places if place.path.is_dir()]
    tried = _try_passthrough([str(place.path) for place in there]) if privileged else None
    if tried is not None:
        kernel = str(tried.get("kernel", ""))
        yield Check("passthrough", "warn" if kernel else "ok", kernel or "the kernel has it (tried)", _cure_kernel(kernel))
    for place in places:
        if place not in there:
            yield Check(f"cache {place.path}", "skip", "is not there yet: it is made by the worker")
            continue
        try:
            yield from _check_cache_dir(place, (tried or {}).get("directories", {}).get(str(place.path)))
        except OSError as error:
            yield Check(f"cache {place.path}", "fail", f"cannot be looked at: {error.strerror}", "its disk, its owner and mode")


def _cure_kernel(reason: str) -> str:
    return "" if not reason else "Linux 6.9 or later, built with CONFIG_FUSE_PASSTHROUGH; CAP_SYS_ADMIN"


def _try_passthrough(directories: Sequence[str]) -> dict[str, Any] | None:
    """What fuse/trial.py found; None: it did not end well."""
    command = [sys.executable, "-m", "alluxio_like.fuse.trial", *directories]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TRIAL_S, check=True)
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _check_cache_dir(place: CachePlace, tried: str | None) -> Iterator[Check]:
    """`tried`: empty where passthrough worked, else why it did not; None: it was not tried."""
    name = f"cache {place.path}"
    fd = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system = probe_file_system(fd)
        stat = os.fstatvfs(fd)
    finally:
        os.close(fd)
    cure = "put the cache on ext4 or xfs; in a pod mount it by hostPath"
    if tried == "" or (tried is None and system.passthrough == "yes"):
        yield Check(name, "ok", f"{system.name}: the kernel can read its files by itself" + (" (tried)" if tried == "" else ""))
    elif tried is None and system.passthrough == "unknown":
        yield Check(name, "skip", f"{system.name}: {system.reason}")
    else:
        yield Check(name, "warn", f"{system.name}: no passthrough, {tried or system.reason}", cure)
    yield _check_space(name, place, stat)
    if stat.f_files and stat.f_favail < _LEAST_INODES:
        yield Check(
            f"{name}, inodes",
            "warn",
            f"{stat.f_favail:,} files more fit",
            "a file system with more inodes (mkfs.ext4 -i 16384), or xfs",
        )
    if not place.allow_root_disk and place.path.stat().st_dev == Path("/").stat().st_dev:
        yield Check(f"{name}, disk", "fail", "is on the root file system", "another disk, or the setting allow_root_disk")
    index = place.path / "index" / "data.mdb"
    with contextlib.suppress(OSError):
        used = index.stat().st_blocks * 512
        room = place.quota_bytes // INDEX_MAP_FRACTION
        if room:
            yield _judge_index(name, used, room)


def _check_space(name: str, place: CachePlace, stat: os.statvfs_result) -> Check:
    disk, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    said = f"{show_size(free)} of {show_size(disk)} free"
    if place.quota_bytes:
        said += f", quota {show_size(place.quota_bytes)}"
    if place.quota_bytes > disk:
        return Check(
            f"{name}, space", "warn", f"{said}: the quota is more than the disk", "a quota_bytes below nine tenths of the disk"
        )
    if free < _LEAST_FREE * disk:
        return Check(f"{name}, space", "warn", said, "room on the disk: others fill it, and the cache gives way to them")
    return Check(f"{name}, space", "ok", said)


def _judge_index(name: str, used: int, room: int) -> Check:
    said = f"{show_size(used)} of at most {show_size(room)}"
    if used > 0.8 * room:
        return Check(f"{name}, index", "warn", said, "a larger quota_bytes: the index may take an eighth of it")
    return Check(f"{name}, index", "ok", said)


# files with secrets, certificates


def check_secret(name: str, path: Path) -> Check:
    """A file that nobody else may read."""
    try:
        stat = path.stat()
    except OSError as error:
        return Check(name, "fail", f"{path}: {error.strerror}", "make it, or correct the setting")
    if stat.st_mode & 0o077:
        return Check(name, "warn", f"{path} may be read by others (mode {stat.st_mode & 0o777:o})", f"chmod 600 {path}")
    return Check(name, "ok", f"{path}, mode {stat.st_mode & 0o777:o}")


def check_certificate(name: str, path: Path, now_s: float | None = None) -> Check:
    """When a PEM certificate (the first of its file) runs out."""
    now_s = time.time() if now_s is None else now_s
    try:
        begins_s, expires_s = read_validity(path)
    except OSError as error:
        return Check(name, "fail", f"{path}: {error.strerror or error}", "a PEM file that the service's user can read")
    except ValueError as error:
        return Check(name, "fail", f"{path} cannot be read: {error}", "a PEM file with a certificate")
    day = time.strftime("%Y-%m-%d", time.gmtime(expires_s))
    if now_s > expires_s:
        return Check(name, "fail", f"{path} ran out on {day}", "a new certificate")
    if now_s < begins_s:
        return Check(name, "fail", f"{path} is not valid yet", "the machine's clock, or a new certificate")
    if expires_s - now_s < _EXPIRES_SOON_S:
        return Check(name, "warn", f"{path} runs out on {day}", "a new certificate, in time")
    return Check(name, "ok", f"{path}, valid until {day}")
