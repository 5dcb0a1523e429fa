"""fio checks every block it reads, through each way in which a mount is served, cold, warm, and while what is cached is freed
under it."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.stack import Stack, start_stack

pytestmark = pytest.mark.mount

SIZES = {"small": 4 << 20, "large": 24 << 20}
SESSIONS = {
    "kernel with passthrough": {},
    "kernel": {"ALLUXIO_LIKE_PASSTHROUGH": "off"},
    "pyfuse3": {"ALLUXIO_LIKE_SESSION": "pyfuse3"},
}
WAYS = {
    "sequential": ["--rw=read", "--bs=64k", "--ioengine=psync"],
    "random, O_DIRECT": ["--rw=randread", "--bs=4k", "--ioengine=libaio", "--iodepth=16", "--direct=1"],
    "mapped": ["--rw=randread", "--bs=4k", "--ioengine=mmap"],
}
CHECK = ["--name=check", "--verify=crc32c", "--verify_interval=4k", "--verify_fatal=1", "--randseed=42", "--output-format=terse"]


def run_fio(path: Path, size: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["fio", *CHECK, f"--filename={path}", f"--size={size}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=path.parent.parent)


@pytest.fixture(params=list(SESSIONS))
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A mount of a directory with what fio has written."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or shutil.which("fio") is None:
        pytest.skip("needs /dev/fuse, root and fio")
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        data = Path(made) / "data"
        data.mkdir()
        for name, size in SIZES.items():
            run_fio(data / name, size, "--rw=write", "--bs=4k", "--do_verify=0").check_returncode()
            os.utime(data / name, (time.time() - 100,) * 2)
        time.sleep(2.1)  # a fingerprint younger than this is not trusted for caching (ctime)
        with start_stack(Path(made), {"/": f"file://{data}"}, SESSIONS[request.param], "--workers", "1") as running:
            session = os.getxattr(running.mountpoint, "user.alluxio_like.session").decode()
            if session != request.param:
                pytest.skip(f"this kernel has {session} only")
            yield running


def test_every_block_is_right(stack: Stack) -> None:
    def check() -> None:
        for name, size in SIZES.items():
            for way, options in WAYS.items():
                done = run_fio(stack.mountpoint / name, size, *options)
                assert done.returncode == 0, (name, way, done.stdout, done.stderr)

    check()
    check()
    ended = threading.Event()

    def free() -> None:
        while not ended.wait(0.3):
            stack.free()

    freeing = threading.Thread(target=free)
    freeing.start()
    try:
        check()
    finally:
        ended.set()
        freeing.join(60)
