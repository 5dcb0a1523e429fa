"""Kills a service at a named moment: Python loads this by itself in the services of a test that has it on PYTHONPATH.

Owns the moments. One is armed by a file of its name in the directory ALLUXIO_LIKE_TEST_POINTS; who comes by takes the file away,
and dies as by kill -9. Nothing of this is known to the package.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

PLACE = os.environ.get("ALLUXIO_LIKE_TEST_POINTS", "")


def reach(point: str) -> None:
    """Die here, if that was asked for."""
    try:
        (Path(PLACE) / point).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(owner: type, name: str, before: str = "", after: str = "") -> None:
    """Put moments before and after an asynchronous method."""
    inner = getattr(owner, name)

    async def wrapped(*arguments: Any, **more: Any) -> Any:
        if before:
            reach(before)
        answer = await inner(*arguments, **more)
        if after:
            reach(after)
        return answer

    setattr(owner, name, wrapped)


def prepare_worker() -> None:
    from alluxio_like.cache.drafts import Drafts
    from alluxio_like.worker.uploading import Uploader

    make = Drafts.__init__

    def make_and_watch(self: Drafts, *arguments: Any, **more: Any) -> None:
        make(self, *arguments, **more)
        self.checkpoint = reach

    Drafts.__init__ = make_and_watch  # type: ignore[method-assign]
    wrap(Uploader, "_send", before="upload: planned", after="upload: sent")
    wrap(Uploader, "_forget", before="upload: told", after="upload: forgotten")


def prepare_master() -> None:
    from alluxio_like.master.changing import ChangesService
    from alluxio_like.master.following_store import StoreFollower

    wrap(ChangesService, "create", after="create: made")
    wrap(ChangesService, "rename", after="rename: made")
    wrap(ChangesService, "seal", before="version: asked for", after="version: made")
    wrap(ChangesService, "plan_uploads", after="upload: asked for")
    wrap(ChangesService, "note_persisted", before="upload: told of", after="upload: recorded")
    wrap(StoreFollower, "carry_out", before="step: begun", after="step: done")


def prepare_daemon() -> None:
    from alluxio_like.fuse.appending import Appends

    begin, end = Appends.begin, Appends.end

    def begin_and_reach(self: Appends, *arguments: Any) -> Any:
        place = begin(self, *arguments)
        reach("append: begun")
        return place

    def reach_and_end(self: Appends, *arguments: Any) -> None:
        reach("append: written")
        end(self, *arguments)
        reach("append: noted")

    Appends.begin, Appends.end = begin_and_reach, reach_and_end  # type: ignore[method-assign]


if PLACE and "alluxio_like.fuse.daemon" in sys.orig_argv:
    prepare_daemon()
elif PLACE and "alluxio_like.cli.main" in sys.orig_argv:
    if "worker" in sys.orig_argv:
        prepare_worker()
    elif "master" in sys.orig_argv:
        prepare_master()
