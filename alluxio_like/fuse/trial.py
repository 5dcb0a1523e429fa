"""Tries whether the kernel passes reads through to files of given directories: python -m alluxio_like.fuse.trial DIRECTORY…

Prints one JSON object: `kernel` is empty where passthrough can be had at all, else says why not; `directories` maps each
directory to an
empty string or the reason. A process of its own, because it makes itself a mount namespace and a FUSE mount in it, both of which
go with it; nobody else ever sees them. Needs CAP_SYS_ADMIN. Blocks for some milliseconds; whoever starts it bounds its time.
"""

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.fuse import libc
from alluxio_like.fuse.device import Device

_CLONE_NEWNS = 0x00020000
_MS_REC = 1 << 14
_MS_PRIVATE = 1 << 18


def try_passthrough(directories: Sequence[str]) -> dict[str, Any]:
    """What the module prints. This process has a mount namespace of its own afterwards."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        return {"kernel": f"a mount namespace cannot be made: {os.strerror(ctypes.get_errno())}", "directories": {}}
    device = None
    place = Path(tempfile.mkdtemp(prefix="alluxio-like-trial-"))
    try:
        libc.mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
        device = Device.mount(place, allow_other=False)
        handshake = device.shake_hands(timeout_s=5.0)
        if not handshake.passthrough:
            return {
                "kernel": f"Linux {os.uname().release} offers no FUSE passthrough (6.9 is the first that may)",
                "directories": {},
            }
        return {"kernel": "", "directories": {directory: _try_directory(device, directory) for directory in directories}}
    except (OSError, AlluxioLikeError) as error:
        return {"kernel": f"a mount cannot be tried: {error}", "directories": {}}
    finally:
        if device is not None:
            libc.unmount(place)
            device.close()
        place.rmdir()


def _try_directory(device: Device, directory: str) -> str:
    try:
        fd = _open_some_file(directory)
    except OSError as error:
        return f"no file can be made there ({error.strerror})"
    try:
        device.close_backing(device.open_backing(fd))
    except AlluxioLikeError as error:
        return str(error)
    finally:
        os.close(fd)
    return ""


def _open_some_file(directory: str) -> int:
    """A file of the directory, open for reading: its format file if it is a cache directory, else one without a name."""
    try:
        return os.open(f"{directory}/format", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        made, path = tempfile.mkstemp(prefix=".alluxio-like-trial-", dir=directory)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(made)
            Path(path).unlink()


if __name__ == "__main__":
    json.dump(try_passthrough(sys.argv[1:]), sys.stdout)
