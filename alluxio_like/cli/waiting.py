"""Waiting for a file system that is coming up: a pod may start before its node's mount, or before the master.

Owns the option `--wait` and how a mount is known to be there and alive. That the master answers is waited for where a client is
opened (common.py). One command a process.
"""

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from alluxio_like.config import parse_duration
from alluxio_like.errors import TimedOut
from alluxio_like.fuse import mountinfo, mountpoint

WaitOption = Annotated[
    str,
    typer.Option(
        "--wait", metavar="TIME", help="Wait so long for what is not there yet: 10m. Without it, 10 s, and for the master alone."
    ),
]
MountedOption = Annotated[
    str,
    typer.Option("--mounted", metavar="DIR", help="First see that DIR is on a mount of ours that answers; --wait waits for it."),
]

_LOOK_S = 0.5
_ANSWER_S = 5.0
"""What a live mount takes at most to say how full it is. A guess."""


def get_deadline(wait: str) -> float | None:
    """When waiting ends, on the monotonic clock; None: nothing was said. Raises InvalidArgument."""
    return time.monotonic() + parse_duration(wait) if wait else None


async def wait_mounted(place: str, deadline: float | None) -> None:
    """Wait until a directory is on a mount of ours that answers. Raises TimedOut with what is in the way."""
    while why_not := _find_fault(place):
        if deadline is None or time.monotonic() >= deadline:
            raise TimedOut(f"{why_not}: is the daemon of this machine running, and its mount passed on to here?", subject=place)
        await asyncio.sleep(_LOOK_S)


def _find_fault(place: str) -> str:
    """Why a directory is not on a live mount of ours; "" when it is."""
    path = Path(os.path.abspath(place))  # noqa: PTH100 (a dead mount must not be asked)
    line = next((top for above in (path, *path.parents) if (top := mountinfo.find_top_line(str(above))) is not None), None)
    if line is None or line.fstype != mountpoint.FSTYPE:
        return "no mount of ours is there"
    outcome: list[str] = []

    def ask() -> None:
        try:
            os.statvfs(path)
            outcome.append("")
        except OSError as error:
            outcome.append(f"the mount is there but does not work ({error.strerror})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return outcome[0] if outcome else "the mount is there but does not answer"
