"""A directory as a store on a network file system that hangs: a FUSE file system whose daemon never answers."""

import asyncio
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.open import open_ufs

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and /dev/fuse"),
]

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[Path]:
    """A directory in which every call waits until the fixture ends, and is then refused."""
    place = tmp_path / "hung"
    place.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    try:
        if _libc.mount(b"hung", str(place).encode(), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount")
        yield place
    finally:
        _libc.umount2(str(place).encode(), _MNT_DETACH)
        os.close(device)  # the connection ends, and so does every call that waits


@pytest.mark.parametrize("below", ["", "sub/"])
async def test_a_directory_that_hangs_fails_in_time(stalled: Path, below: str) -> None:
    ufs = open_ufs(f"file://{stalled.parent}", {}, secrets={}, on_request=lambda _op: None, io_timeout_s=1)
    (stalled.parent / "beside").write_text("at hand")

    async def read(key: str) -> None:
        async for _ in ufs.read(key, Fingerprint("1.2.3", 10), 0, 10):
            pass

    started = time.monotonic()
    key = f"hung/{below}k"
    calls = [ufs.stat(key), ufs.list_page(f"hung/{below}"), read(key)]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, errors.StoreUnavailable), outcome
        assert "no answer within 1 s" in str(outcome)
    assert time.monotonic() - started < 20
    # What lies elsewhere is served meanwhile, by the threads that are left.
    assert (await ufs.stat("beside")).fingerprint is not None
    await ufs.close()
