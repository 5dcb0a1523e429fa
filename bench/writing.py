"""Writing through the mount beside the local disk and beside other S3 file systems: checkpoints, small files, what programs do.

Owns what is written and in which order. Each row is a median of rounds in which ours and the reference take turns on one disk;
every file is new, every write is followed by fsync unless the row says otherwise. `back` is the policy that is compared with the
local disk (a close returns when this machine has it durably), `through` the one that is compared with file systems that upload.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.fio import run_fio_write
from bench.measure import MB, Result, back_memory, get_cpu_seconds
from bench.stack import mount_rclone, mount_s3fs, run_baseline
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack, start_stack

ROUNDS = 3
SMALL_BYTES = 16_000
CHECKPOINT_FILE_BYTES = 100_000_000

_WRITER = """
import os, sys, time
root, count, size, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
block = os.urandom(1 << 20) if size >= 1 << 20 else os.urandom(size)
start = time.perf_counter()
for number in range(count):
    path = f"{root}/{number:06d}"
    aside = path + ".tmp" if mode == "rename" else path
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    left = size
    while left:
        left -= os.write(fd, block[:left])
    if mode != "plain":
        os.fsync(fd)
    os.close(fd)
    if mode == "rename":
        os.rename(aside, path)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to write; `pids` serve it."""

    name: str
    root: Path
    pids: Sequence[int] = ()


def measure_writing(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """All rows."""
    native = Place("local disk", directory / "native")
    native.root.mkdir()
    results: list[Result] = []
    with _mount_ours(server, directory, "back") as (stack, ours):
        results += _compare_large(ours, native, quick=quick)
        results.append(_compare_random(ours, native, quick=quick))
        results += _compare_trees(ours, native, directory, quick=quick)
        results.append(_measure_upload(stack, ours, server, directory, quick=quick))
    results += _compare_small(server, native, directory, quick=quick)
    return results


@contextmanager
def _mount_ours(server: S3Server, directory: Path, policy: str) -> Iterator[tuple[Stack, Place]]:
    """Our mount of a new bucket; gone with its home afterwards."""
    home = f"home-{policy}"
    with start_stack(directory, {}, server.environment, "--workers", "1", home=home) as stack:
        stack.run_command("alluxio-like", "mount", "/data", f"s3://{server.make_bucket()}", "-o", f"write={policy}")
        yield stack, Place(f"ours ({policy})", stack.mountpoint / "data", stack.pids)
    shutil.rmtree(directory / home, ignore_errors=True)


def _write(place: Place, label: str, count: int, size: int, mode: str = "fsync", writers: int = 1) -> float:
    """Seconds that so many writers took, each with files of its own, until the last has closed its last; they stay."""
    roots = [place.root / f"{label}-{number}" for number in range(writers)]
    for root in roots:
        root.mkdir()
    start = time.perf_counter()
    command = [sys.executable, "-c", _WRITER]
    running = [
        subprocess.Popen([*command, str(root), str(count), str(size), mode], stdout=subprocess.PIPE, text=True) for root in roots
    ]
    took = [float(process.communicate()[0]) for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"a writer on {place.name} failed")
    return took[0] if writers == 1 else time.perf_counter() - start


def _compare_large(ours: Place, native: Place, *, quick: bool) -> list[Result]:
    size, files = ((512 << 20), 5) if quick else ((4 << 30), 40)
    rows = [
        ("sequential write of one large file, fsync", 0.9, 1, size, "fsync", 1),
        ("4 writers, fsync", 0.9, 1, size // 4, "fsync", 4),
        ("checkpoint of files of 100 MB, renamed into place", 0.85, files, CHECKPOINT_FILE_BYTES, "rename", 1),
    ]
    results = []
    for name, aim, count, file_bytes, mode, writers in rows:
        mine, theirs, cpu = [], [], []
        total = count * file_bytes * writers
        for number in range(ROUNDS):
            back_memory()
            theirs.append(total / MB / _timed_write(native, f"large-{number}", count, file_bytes, mode, writers))
            before = get_cpu_seconds(ours.pids)
            mine.append(total / MB / _timed_write(ours, f"large-{number}", count, file_bytes, mode, writers))
            cpu.append((get_cpu_seconds(ours.pids) - before) / (total / 1e9))
        detail = {"ours": mine, "native": theirs, "services_cpu_s_per_gb": cpu}
        results.append(
            Result(f"write, {name}: of native", statistics.median(mine), statistics.median(theirs), "MB/s", aim, detail=detail)
        )
    return results


def _timed_write(place: Place, label: str, count: int, size: int, mode: str, writers: int) -> float:
    """As `_write`; what was written is removed again."""
    try:
        return _write(place, label, count, size, mode, writers)
    finally:
        for number in range(writers):
            shutil.rmtree(place.root / f"{label}-{number}", ignore_errors=True)


def _compare_random(ours: Place, native: Place, *, quick: bool) -> Result:
    """Random 4 KiB writes into a file that is there, fsync each 64."""
    size = (64 << 20) if quick else (1 << 30)
    mine, theirs = [], []
    for place in (native, ours):
        _write(place, "random", 1, size)
    for _ in range(ROUNDS):
        theirs.append(run_fio_write(native.root / "random-0" / "000000", 4096, fsync=64).iops)
        mine.append(run_fio_write(ours.root / "random-0" / "000000", 4096, fsync=64).iops)
    detail = {"ours": mine, "native": theirs}
    name = "write, random 4 KiB, fsync each 64: of native"
    return Result(name, statistics.median(mine), statistics.median(theirs), "IOPS", 0.8, detail=detail)


def _compare_trees(ours: Place, native: Place, directory: Path, *, quick: bool) -> list[Result]:
    """A tree of source files unpacked, and a directory of many files removed."""
    archive = directory / "tree.tar"
    _make_archive(archive, 1_000 if quick else 20_000)
    many = 2_000 if quick else 100_000
    results = []
    timings: dict[str, list[float]] = {"untar": [], "remove": []}
    for place in (native, ours):
        (place.root / "tree").mkdir()
        start = time.perf_counter()
        subprocess.run(["tar", "-xf", str(archive), "-C", str(place.root / "tree")], check=True)
        timings["untar"].append(time.perf_counter() - start)
        _write(place, "many", many, 100, "plain")
        start = time.perf_counter()
        subprocess.run(["rm", "-r", str(place.root / "many-0")], check=True)
        timings["remove"].append(time.perf_counter() - start)
    files = 1_000 if quick else 20_000
    for name, count in (("untar", files), ("remove", many)):
        theirs, mine = (count / seconds for seconds in timings[name])
        text = "untar of a source tree" if name == "untar" else f"rm -r of {many:,} files"
        results.append(Result(f"write, {text}: of native", mine, theirs, "files/s"))
    return results


def _make_archive(path: Path, count: int) -> None:
    """Files of the sizes that a kernel's sources have (median 4 KB, some 100 KB), fifty to a directory."""
    source = path.parent / "tree-source"
    for number in range(count):
        directory = source / f"d{number // 50:05d}"
        directory.mkdir(parents=True, exist_ok=True)
        size = 100_000 if number % 40 == 0 else 500 + number * 7919 % 12_000
        (directory / f"f{number:06d}.c").write_bytes(b"/* */\n" * (size // 6))
    with tarfile.open(path, "w") as tar:
        tar.add(source, ".")
    shutil.rmtree(source)


def _measure_upload(stack: Stack, ours: Place, server: S3Server, directory: Path, *, quick: bool) -> Result:
    """How fast the store gets in the background what was written, beside a loop that does nothing else."""
    size = (256 << 20) if quick else (2 << 30)
    stack.run_command("alluxio-like", "fs", "wait", "/data")
    mine, theirs = [], []
    for number in range(ROUNDS):
        start = time.perf_counter()
        _write(ours, f"upload-{number}", 1, size, "plain")
        stack.run_command("alluxio-like", "fs", "wait", "/data")
        mine.append(size / MB / (time.perf_counter() - start))
        local = directory / "bare.bin"
        shutil.copyfile(ours.root / f"upload-{number}-0" / "000000", local)
        bucket = server.make_bucket()
        done = run_baseline("upload", str(local), bucket, environment=server.environment)
        theirs.append(size / MB / done["seconds"])
        local.unlink()
    detail = {"ours": mine, "bare": theirs}
    name = "write, close to stored (back), beside a bare multipart loop"
    return Result(name, statistics.median(mine), statistics.median(theirs), "MB/s", 0.8, detail=detail)


def _compare_small(server: S3Server, native: Place, directory: Path, *, quick: bool) -> list[Result]:
    """New small files, one after the other, none synced: ours by both policies, the local disk, rclone (uploads later), s3fs
    (uploads at close)."""
    count = 500 if quick else 10_000
    speeds: dict[str, float] = {}
    speeds["native"] = count / _timed_write(native, "small", count, SMALL_BYTES, "plain", 1)
    for policy in ("back", "through"):
        with _mount_ours(server, directory, policy) as (_, ours):
            speeds[policy] = count / _write(ours, "small", count, SMALL_BYTES, "plain")
    mounts: dict[str, Callable[..., object]] = {"rclone": mount_rclone, "s3fs": mount_s3fs}
    for name, mount in mounts.items():
        with mount(directory, server, server.make_bucket(), writable=True) as root:  # type: ignore[attr-defined]
            few = min(count, 1_000)
            speeds[name] = few / _write(Place(name, root), "small", few, SMALL_BYTES, "plain")
    detail = {"files_s": speeds, "bytes": SMALL_BYTES}
    return [
        Result("write, new files of 16 KB (back): of native", speeds["back"], speeds["native"], "files/s", 0.1, detail=detail),
        Result("write, new files of 16 KB (back): of rclone", speeds["back"], speeds["rclone"], "files/s", 5.0, detail=detail),
        Result("write, new files of 16 KB (through): of s3fs", speeds["through"], speeds["s3fs"], "files/s", 5.0, detail=detail),
    ]


def main() -> None:
    """For a look at a single writer: python -m bench.writing ROOT COUNT BYTES MODE."""
    root, count, size, mode = sys.argv[1:5]
    print(json.dumps({"seconds": _write(Place(root, Path(root)), "one", int(count), int(size), mode)}))


if __name__ == "__main__":
    main()
