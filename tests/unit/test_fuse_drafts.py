"""Drafts of the mount: what holds their descriptors."""

import asyncio
import os
from pathlib import Path
from typing import Any, cast

from alluxio_like.fuse.drafts import Draft, Drafts
from alluxio_like.types import InodeId, VersionId, WorkerId


async def test_an_operation_has_its_descriptor_from_the_moment_it_is_asked_for(tmp_path: Path) -> None:
    """The last writer goes just then: as a program closes a file and gives it other times."""
    (tmp_path / "draft").write_bytes(b"content")
    fd = os.open(tmp_path / "draft", os.O_RDWR)
    drafts = Drafts(cast(Any, None), lambda _: (), lambda *_: None)
    draft = Draft(InodeId(5), WorkerId("w1"), fd, VersionId(2), (1, 2), over=True)
    call = asyncio.create_task(drafts.set_times(draft, None, 10**18))
    await asyncio.sleep(0)  # it has begun, and no thread has done anything yet
    drafts._close_unused(draft)
    await call
    assert (tmp_path / "draft").stat().st_mtime_ns == 10**18
    assert draft.fd == -1, "closed by the last who needed it"
