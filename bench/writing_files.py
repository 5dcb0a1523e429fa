"""Many small files: made, unpacked, removed, through the mount and beside it.

Owns these rows of writing.py. What takes long runs for a bounded time, and what was done by then is counted.
"""

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import Result
from bench.places import Cpu, Place, mount_ours, run_for, write, write_and_remove
from bench.stack import mount_rclone, mount_s3fs
from tests.servers.fixtures import S3Server

SMALL_BYTES = 4_000
UNTAR_S = 60.0
REMOVE_S = 60.0
LISTED_S = 60.0
_ATTEMPT_FILES = 1_000


def compare_small(server: S3Server, native: Place, directory: Path, *, quick: bool) -> list[Result]:
    """New small files, one after the other, none synced: ours by all policies, the local disk, rclone (uploads later), s3fs
    (uploads at close)."""
    count = 500 if quick else 10_000
    speeds: dict[str, float] = {"native": count / write_and_remove(native, "small", count, SMALL_BYTES, "plain")}
    cpu_ms: dict[str, float] = {}
    for policy in ("cache", "back", "through"):
        # (`through` waits for an upload at each close: a tenth tells as much.)
        files = count if policy != "through" else min(count, _ATTEMPT_FILES)
        with mount_ours(server, directory, policy) as (_, ours):
            cpu = Cpu(ours.pids)
            speeds[policy] = files / write(ours, "small", files, SMALL_BYTES, "plain")
            cpu_ms[policy] = 1000 * cpu.per(files)
    mounts: dict[str, Callable[..., object]] = {"rclone": mount_rclone, "s3fs": mount_s3fs}
    for name, mount in mounts.items():
        with mount(directory, server, server.make_bucket(), writable=True) as root:  # type: ignore[attr-defined]
            few = min(count, _ATTEMPT_FILES)
            speeds[name] = few / write(Place(name, root), "small", few, SMALL_BYTES, "plain")
    detail = {"files_s": speeds, "services_cpu_ms_per_file": cpu_ms, "bytes": SMALL_BYTES}
    rows = [("cache", "native", 0.1), ("back", "native", 0.1), ("back", "rclone", 5.0), ("through", "s3fs", 5.0)]
    return [
        Result(f"write, new files of 4 KB ({mine}): of {other}", speeds[mine], speeds[other], "files/s", aim, detail=detail)
        for mine, other, aim in rows
    ]


def compare_untar(ours: Place, native: Place, directory: Path, *, quick: bool) -> Result:
    """A tree of source files, as many as a kernel has, unpacked; through the mount for UNTAR_S at most."""
    archive = directory / "tree.tar"
    _make_archive(archive, 1_000 if quick else 80_000)
    speeds, cpu_ms, counts = [], 0.0, []
    for place in (native, ours):
        tree = place.root / "tree"
        tree.mkdir()
        cpu = Cpu(place.pids)
        seconds = run_for(["tar", "-xf", str(archive), "-C", str(tree)], UNTAR_S)
        made = _count_files(tree)
        cpu_ms = 1000 * cpu.per(made)
        speeds.append(made / seconds)
        counts.append(made)
    shutil.rmtree(native.root / "tree")
    archive.unlink()
    detail = {"files": counts, "services_cpu_ms_per_file": cpu_ms}
    return Result("write, untar of a tree like a kernel's: of native", speeds[1], speeds[0], "files/s", detail=detail)


def _count_files(tree: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(tree))


def _make_archive(path: Path, count: int) -> None:
    """Files of the sizes that a kernel's sources have (median some KB, one in forty of 100 KB), fifty to a directory."""
    content = b"/* */\n" * 20_000
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            if number % 50 == 0:
                directory = tarfile.TarInfo(f"d{number // 50:05d}")
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(directory)
            member = tarfile.TarInfo(f"d{number // 50:05d}/f{number:06d}.c")
            member.size = 100_000 if number % 40 == 0 else 500 + number * 7919 % 12_000
            tar.addfile(member, io.BytesIO(content[: member.size]))


def compare_removal(native: Place, directory: Path, *, quick: bool) -> Result:
    """A directory of many files that the store has removed by `rm -r`; through the mount for REMOVE_S at most."""
    count = 2_000 if quick else 100_000
    store = directory / "many-store"
    store.mkdir()
    speeds, cpu_ms, removed = [], 0.0, count
    write(native, "many", count, 100, "plain")
    write(Place("store", store), "many", count, 100, "plain")
    speeds.append(count / run_for(["rm", "-r", str(native.root / "many-0")], REMOVE_S))
    with mount_ours(None, directory, "cache", store=store.as_uri(), home="home-removal") as (_, ours):
        many = ours.root / "many-0"
        deadline = time.monotonic() + LISTED_S
        while len(os.listdir(many)) < count:  # noqa: PTH208  (a Path for each of them would be most of it)
            if time.monotonic() > deadline:
                raise RuntimeError("the mount does not show what is in the store")
            time.sleep(0.1)
        cpu = Cpu(ours.pids)
        seconds = run_for(["rm", "-r", str(many)], REMOVE_S)
        removed -= len(os.listdir(many)) if many.exists() else 0  # noqa: PTH208
        cpu_ms = 1000 * cpu.per(removed)
        speeds.append(removed / seconds)
    shutil.rmtree(store)
    detail = {"removed": removed, "services_cpu_ms_per_file": cpu_ms}
    return Result(f"write, rm -r of {count:,} files: of native", speeds[1], speeds[0], "files/s", detail=detail)
