"""Drafts of the mount: what holds their descriptors."""

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

from alluxio_like.errors import Stale
from alluxio_like.fuse import drafts as drafts_module
from alluxio_like.fuse.drafts import Draft, Drafts, take_newest
from alluxio_like.rpc.messages_writing import DraftSealed
from alluxio_like.types import Entry, InodeId, VersionId, WorkerId


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


class _Files:
    """A worker whose answer to a seal is late."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.ended = False

    async def seal(self, *_: object) -> DraftSealed:
        await self.answer.wait()
        return DraftSealed(None, 0)

    async def end(self, *_: object) -> None:
        self.ended = True


async def test_a_draft_says_how_large_the_file_is_until_its_seal_is_told(tmp_path: Path) -> None:
    """The writer was killed: nobody waits for its close, and its descriptor is gone before the seal is done."""
    (tmp_path / "draft").write_bytes(b"content")
    files = _Files()
    drafts = Drafts(cast(Any, files), lambda _: (), lambda *_: None)
    draft = Draft(InodeId(5), WorkerId("w1"), os.open(tmp_path / "draft", os.O_RDWR), VersionId(2), (1, 2), writers=1, users=1)
    drafts._drafts[draft.inode] = draft
    flush = asyncio.create_task(drafts.seal(draft, "op"))
    await asyncio.sleep(0)
    flush.cancel()
    release = asyncio.create_task(drafts.begin_release(draft))
    for _ in range(20):
        await asyncio.sleep(0)
    assert drafts.lookup(draft.inode) is draft
    assert not files.ended
    files.answer.set()
    await release
    assert drafts.lookup(draft.inode) is None
    assert files.ended
    assert draft.fd == -1


@pytest.mark.parametrize("gone", [0, 1, 5])
async def test_what_was_looked_up_and_is_gone_is_looked_up_again(gone: int) -> None:
    entries = [cast(Entry, object()) for _ in range(gone + 1)]
    draft = cast(Draft, object())
    left = iter(entries)

    async def lookup() -> Entry:
        return next(left)

    async def take(entry: Entry) -> Draft:
        if entry is not entries[-1]:
            raise Stale("written anew")
        return draft

    assert await take_newest(lookup, take) == (entries[-1], draft)


async def test_what_is_gone_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "_AGAIN_LONGEST_S", 0.01)
    tries = 0

    async def lookup() -> Entry:
        return cast(Entry, object())

    async def take(_entry: Entry) -> Draft:
        nonlocal tries
        tries += 1
        raise Stale("written anew")

    with pytest.raises(Stale):
        await take_newest(lookup, take)
    assert tries == 3
