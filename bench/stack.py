"""What a benchmark runs on: a real S3 server with data, the file system in front of it, peers beside it.

Owns processes, mounts and directories for as long as a context lasts. Everything lies below one directory on one disk, so that
ours and the references write to the same place.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.fixtures import S3Server
from tests.servers.stack import PROGRAMS

SAMPLE_BYTES = 110_000
READY_S = 60.0


def make_bytes(seed: int, size: int) -> bytes:
    """Bytes that do not compress and differ from file to file."""
    return random.Random(seed).randbytes(size)


def fill_bucket(server: S3Server, bucket: str, prefix: str, count: int, size: int) -> list[str]:
    """`count` objects of `size` bytes; their keys. Large ones go up in parts."""
    keys = [f"{prefix}{number:06d}.bin" for number in range(count)]

    def put(numbers: range) -> None:
        for number in numbers:
            if size > 64 << 20:
                put_large(server, bucket, keys[number], number, size)
            else:
                server.client.put_object(Bucket=bucket, Key=keys[number], Body=make_bytes(number, size))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, [range(first, count, 8) for first in range(min(8, count))]))
    return keys


def put_large(server: S3Server, bucket: str, key: str, seed: int, size: int) -> None:
    """One object by multipart upload, 32 MiB a part."""
    part_bytes = 32 << 20
    upload = server.client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts: list[Any] = []
    for number, start in enumerate(range(0, size, part_bytes), 1):
        body = make_bytes(seed * 1000 + number, min(part_bytes, size - start))
        answer = server.client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"ETag": answer["ETag"], "PartNumber": number})
    server.client.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


@contextmanager
def mount_rclone(directory: Path, server: S3Server, bucket: str, *, writable: bool = False) -> Iterator[Path]:
    """`rclone mount --vfs-cache-mode full` of a bucket; its cache outlives the mount, below `directory`."""
    mountpoint = directory / "rclone-mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_S_ACCESS_KEY_ID": server.access_key,
        "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": server.secret_key,
    }
    options = ["--vfs-cache-mode", "full", "--cache-dir", str(directory / "rclone-cache"), "--allow-other"]
    options += [] if writable else ["--read-only"]
    options += ["--dir-cache-time", "1h", "--attr-timeout", "1h", "--no-modtime", "--vfs-read-ahead", "64M"]
    command = [get_rclone(), "mount", f"s:{bucket}", str(mountpoint), *options]
    with open(directory / "rclone.log", "a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait_mounted(mountpoint, process, directory / "rclone.log")
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=False, capture_output=True)
        process.terminate()
        process.wait(30)


@contextmanager
def mount_s3fs(directory: Path, server: S3Server, bucket: str, *, writable: bool = False) -> Iterator[Path]:
    """s3fs of the distribution, with its cache on disk, below `directory`."""
    mountpoint, cache, secret = directory / "s3fs-mnt", directory / "s3fs-cache", directory / "s3fs-secret"
    for path in (mountpoint, cache):
        path.mkdir(parents=True, exist_ok=True)
    secret.write_text(f"{server.access_key}:{server.secret_key}\n")
    secret.chmod(0o600)
    options = ["rw" if writable else "ro", f"url={server.endpoint}", "use_path_request_style", f"passwd_file={secret}"]
    options += [f"use_cache={cache}", "max_stat_cache_size=1000000", "stat_cache_expire=86400", "kernel_cache"]
    command = ["s3fs", bucket, str(mountpoint), "-f", "-o", ",".join(options)]
    with open(directory / "s3fs.log", "a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_mounted(mountpoint, process, directory / "s3fs.log")
        yield mountpoint
    finally:
        subprocess.run(["umount", "-l", str(mountpoint)], check=False, capture_output=True)
        process.terminate()
        process.wait(30)


def _wait_mounted(mountpoint: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not mountpoint.is_mount():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nothing was mounted on {mountpoint}; see {log}")
        time.sleep(0.05)


def get_rclone() -> str:
    """The rclone program: that of the benchmarks' own packages, else the system's."""
    beside = PROGRAMS / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if not found:
        raise RuntimeError("rclone is not installed: make setup brings it")
    return found


def run_baseline(*arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """What `python -m bench.baselines` measured."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.baselines", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def forget_pages(paths: Sequence[Path]) -> None:
    """Drop what the kernel has cached of these files under this path (not of the files behind them)."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
