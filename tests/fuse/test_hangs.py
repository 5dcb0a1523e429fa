"""A test that hangs is ended, whatever it waits for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_THE_KERNEL = """
import ctypes, os

def test_waits(tmp_path):
    libc = ctypes.CDLL(None)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    assert not libc.mount(b"hung", bytes(tmp_path), b"fuse", 0, f"fd={device},rootmode=40000,user_id=0,group_id=0".encode())
    os.stat(tmp_path / "any")

def test_the_next():
    pass
"""
IN_PYTHON = """
import time

def test_waits():
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass
"""


def run(tmp_path: Path, text: str) -> "subprocess.CompletedProcess[str]":
    """That test, which may take a second, and two more."""
    file = tmp_path / "test_hanging.py"
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.hangs", "-p", "no:cacheprovider", "-c", os.devnull, "--timeout=1"]
    environment = {**os.environ, "ALLUXIO_LIKE_TEST_GRACE": "2", "PYTHONPATH": str(ROOT)}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    command += [f"--basetemp={tmp_path}/base", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=60)


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse")
def test_one_that_waits_for_a_mount_without_a_daemon_fails(tmp_path: Path) -> None:
    """No signal reaches it: the connection is aborted, and what comes after it runs."""
    done = run(tmp_path, IN_THE_KERNEL)
    # The timeout may come while the test itself does so.
    subprocess.run(["umount", "-l", f"{tmp_path}/base/test_waits0"], stderr=subprocess.DEVNULL, check=False, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"F\. +\[100%\]", done.stdout), done.stdout
    assert "::test_waits HANGS" in done.stderr
    assert "fuse_lookup" in done.stderr, "where in the kernel"
    assert "in test_waits" in done.stderr, "where in Python"


def test_one_that_takes_no_timeout_ends_its_process(tmp_path: Path) -> None:
    done = run(tmp_path, IN_PYTHON)
    assert done.returncode == 70, done.stdout + done.stderr
    assert "::test_waits still hangs" in done.stderr
