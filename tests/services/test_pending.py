"""Files that a client makes in directories delegated to it, and when the master hears of them."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alluxio_like.cache.new_files import NewFile, read_note
from alluxio_like.client import pending as pending_module
from alluxio_like.client.blanks import Blank, OpenedDraft
from alluxio_like.client.changes import Changes
from alluxio_like.client.metadata import MetadataCache
from alluxio_like.client.news import News
from alluxio_like.client.pending import PendingFiles
from alluxio_like.errors import NoSpace, NotFound, Unavailable
from alluxio_like.rpc.messages import DirPage, LookupResult
from alluxio_like.rpc.messages_writing import (
    Changed,
    Delegation,
    NewAttributes,
    NewName,
    Published,
    PublishedFile,
    Renaming,
    WritePolicy,
)
from alluxio_like.types import (
    EVERYWHERE,
    Attr,
    Entry,
    FileRef,
    Fingerprint,
    InodeId,
    Kind,
    MountId,
    Recall,
    VersionId,
    WorkerId,
)
from tests.unit.master_parts import wait_until

ABOVE, DIRECTORY, OTHER = InodeId(2), InodeId(10), InodeId(11)
WORKER = WorkerId("w")
HANGS_S = 60.0


def make_directory(inode: InodeId, **fields: Any) -> Entry:
    return Entry(f"d{inode}", replace(Attr(inode, Kind.DIRECTORY, 0o755, 0, 0, 0, 5, 5, 2, VersionId(0)), **fields))


class Worker:
    """A worker that publishes what it is asked to, once it may; in place of the pool of blank drafts as well."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.published: list[list[NewFile]] = []
        self.may = asyncio.Event()
        self.may.set()
        self.failure: Exception | None = None
        self.errors: dict[str, Exception] = {}
        self.blanks: deque[Blank] = deque()
        self.left: list[str] = []
        for number in range(700):
            fd = os.open(home / str(number), os.O_RDWR | os.O_CREAT)
            self.blanks.append(Blank(InodeId(1000 + number), OpenedDraft(WORKER, fd)))

    def take(self) -> Blank | None:
        return self.blanks.popleft() if self.blanks else None

    async def wait(self) -> None:
        pass

    def warm(self) -> None:
        pass

    async def close(self) -> None:
        while self.blanks:
            os.close(self.blanks.popleft().draft.fd)

    async def choose(self, _: InodeId) -> Any:
        return SimpleNamespace(worker_id=WORKER)

    async def ask(self, _: WorkerId, call: Callable[[Any], Awaitable[Any]], *, wait_s: float) -> Any:
        return await call(self)

    async def watch(self, _: Any, call: Awaitable[Any]) -> Any:
        return await call

    async def publish(self, lease: str, files: list[NewFile], *, timeout_s: float) -> Published:
        assert lease == "lease"
        self.published.append(list(files))
        await self.may.wait()
        if self.failure is not None:
            raise self.failure
        return Published(tuple(self._publish(file) for file in files))

    def _publish(self, file: NewFile) -> PublishedFile:
        if (error := self.errors.get(file.name)) is not None:
            return PublishedFile(None, error=error)  # type: ignore[arg-type]
        ref = FileRef(file.inode, VersionId(1 + file.sealed), MountId(1), file.name, Fingerprint("own-2", 0))
        return PublishedFile(ref, WritePolicy())

    async def publish_left(self, owner: str, *, timeout_s: float) -> int:
        self.left.append(owner)
        if self.failure is not None:
            raise self.failure
        return 1

    def list_names(self) -> list[list[str]]:
        return [[file.name for file in batch] for batch in self.published]


class Made:
    """A client's part, with one directory that was just made and is delegated."""

    def __init__(self, home: Path) -> None:
        self.live = True
        self.worker = Worker(home)
        self.names = MetadataCache(time.monotonic, lambda: self.live)
        keeper: Any = SimpleNamespace(session="lease", forget_here=self.names.recall)
        self.news = News(self.names, keeper, lambda _: None)
        worker: Any = self.worker
        self.pending = PendingFiles(self.names, lambda: self.live, self.news, worker, worker, io_timeout_s=2.0)
        self.told: list[tuple[InodeId, FileRef]] = []
        self.pending.contents = self

    def stat_pending(self, inode: InodeId) -> os.stat_result | None:
        return None

    def note_published(self, inode: InodeId, ref: FileRef, before: os.stat_result | None) -> None:
        self.told.append((inode, ref))

    async def start(self) -> "Made":
        await self.pending.start("me", succeeds=False)
        self.know(make_directory(DIRECTORY))
        with self.pending.making_directory() as note:
            note(DIRECTORY, Delegation(255, MountId(1), "dir/"))
        return self

    def know(self, directory: Entry) -> None:
        """What the answer to mkdir has told."""
        inode, begun = directory.attr.inode, self.names.begin()
        self.names.keep_page(inode, b"", DirPage((), b"", 1000.0, leased=True), begun)
        self.names.keep(ABOVE, directory.name, LookupResult(directory, 1000.0, True, ABOVE), begun)

    async def create(self, name: str, parent: InodeId = DIRECTORY, kind: Kind = Kind.FILE) -> Changed | None:
        return await self.pending.create(NewName(parent, name, kind, 0o640, 3, 4), f"op-{name}")

    async def make(self, name: str) -> InodeId:
        made = await self.create(name)
        assert made is not None
        assert made.entry is not None
        return made.entry.attr.inode


@pytest.fixture
async def made(tmp_path: Path) -> Any:
    client = await Made(tmp_path).start()
    yield client
    client.worker.failure = None
    client.worker.errors.clear()
    client.worker.may.set()
    await client.pending.close()


@pytest.fixture(autouse=True)
def open_files() -> Iterator[None]:
    before = set(Path("/proc/self/fd").iterdir())
    yield
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1, "descriptors are given back"


async def test_a_file_is_there_as_if_the_master_had_told_of_it(made: Made) -> None:
    before_ns = time.time_ns()
    inode = await made.make("a.txt")
    found = made.names.lookup(DIRECTORY, "a.txt")
    assert found is not None
    assert found.entry is not None
    attr, ref = found.entry.attr, found.entry.ref
    assert (attr.inode, attr.kind, attr.mode, attr.uid, attr.gid, attr.size, attr.nlink) == (inode, Kind.FILE, 0o640, 3, 4, 0, 1)
    assert before_ns <= attr.mtime_ns == attr.ctime_ns <= time.time_ns()
    assert ref is not None
    assert (ref.mount_id, ref.key) == (1, "dir/a.txt")
    above = made.names.get(DIRECTORY)
    assert above is not None
    assert above.entry is not None
    assert above.entry.attr.mtime_ns == above.entry.attr.ctime_ns == attr.ctime_ns, "its directory was changed"
    draft = made.pending.take_draft(inode)
    assert draft is not None
    assert made.pending.take_draft(inode) is None, "it is one writer's"
    os.close(draft.fd)
    assert not made.worker.published


async def test_it_is_noted_with_its_draft_before_that_is_said(made: Made, tmp_path: Path) -> None:
    await made.make("a")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        note = read_note(directory, "0")
        assert note is not None
        assert (note.owner, note.file.name, note.file.parent, note.file.operation_id) == ("me", "a", DIRECTORY, "op-a")
        assert (note.file.mode, note.file.uid, note.file.gid, note.file.sealed) == (0o640, 3, 4, False)
        changed = made.pending.set_attributes(note.file.inode, NewAttributes(mode=0o600, mtime_ns=77))
        assert changed is not None
        assert changed.entry is not None
        assert (changed.entry.attr.mode, changed.entry.attr.mtime_ns) == (0o600, 77)
        note = read_note(directory, "0")
        assert note is not None
        assert (note.file.mode, note.file.mtime_ns, note.file.changed_ns) == (0o600, 77, changed.entry.attr.ctime_ns)
    finally:
        os.close(directory)


async def test_when_the_master_has_to_be_asked(made: Made) -> None:
    assert await made.create("a", parent=OTHER) is None, "not delegated"
    assert await made.create("a", kind=Kind.SYMLINK) is None
    for name in ("a b", "ü", "..", ".snapshots", "a:b", "a*", "x" * 256):
        assert await made.create(name) is None, name
    await made.make("a")
    assert await made.create("a") is None, "it is there"
    for fields in ({"mode": 0o2755}, {"has_xattrs": True}):
        made.know(make_directory(DIRECTORY, **fields))
        assert await made.create("b") is None, fields
    made.know(make_directory(DIRECTORY))
    made.live = False
    assert await made.create("b") is None, "the lease has run out"
    made.live = True
    blanks, made.worker.blanks = made.worker.blanks, deque()
    assert await made.create("b") is None, "there is no draft"
    made.worker.blanks = blanks
    assert await made.create("b") is not None


async def test_a_file_is_renamed_before_the_master_hears_of_it(made: Made, tmp_path: Path) -> None:
    inode = await made.make("tmp")
    await made.pending.note_closed(inode)
    before_ns = time.time_ns()
    changed = made.pending.rename(Renaming(DIRECTORY, "tmp", DIRECTORY, "final"), "op-rename")
    assert changed is not None
    assert {(recall.directory, *recall.names) for recall in changed.recalls} == {(DIRECTORY, b"tmp"), (DIRECTORY, b"final")}
    absent, found = made.names.lookup(DIRECTORY, "tmp"), made.names.lookup(DIRECTORY, "final")
    assert absent is not None
    assert absent.entry is None
    assert found is not None
    assert found.entry is not None
    assert found.entry.ref is not None
    assert (found.entry.attr.inode, found.entry.name, found.entry.ref.key) == (inode, "final", "dir/final")
    assert found.entry.attr.mtime_ns < before_ns <= found.entry.attr.ctime_ns, "its name was changed, and not its content"
    directory = os.open(tmp_path, os.O_RDONLY)
    note = read_note(directory, "0")
    os.close(directory)
    assert note is not None
    assert (note.file.name, note.file.renamed_id, note.file.left, note.file.sealed) == ("final", "op-rename", 0, True)
    # Its old name is free, and leads to nothing that would have to be known.
    assert await made.create("tmp") is not None
    await made.pending.settle_names((DIRECTORY, "final"))
    assert made.worker.list_names() == [["final"]]
    assert (inode, 2) == (made.told[-1][0], made.told[-1][1].version)
    found = made.names.lookup(DIRECTORY, "tmp")
    assert found is not None
    assert found.entry is not None, "what has its old name is another file"


async def test_a_file_is_moved_between_directories_that_are_delegated(made: Made) -> None:
    made.know(make_directory(OTHER))
    with made.pending.making_directory() as note:
        note(OTHER, Delegation(255, MountId(1), "other/"))
    inodes = [await made.make(name) for name in "ab"]
    for name in "ab":
        assert made.pending.rename(Renaming(DIRECTORY, name, OTHER, name), f"op2-{name}") is not None
    for directory in (DIRECTORY, OTHER):
        above = made.names.get(directory)
        assert above is not None
        assert above.entry is not None
        assert above.entry.attr.mtime_ns > 5, "both were changed"
    given = made.pending.give_up([Recall(DIRECTORY, all_names=True)])
    assert given is not None, "whoever is told of what they have left sees when that was"
    await given
    assert not any(map(made.pending.is_pending, inodes))
    (files,) = made.worker.published
    assert [(file.parent, file.left, file.name) for file in files] == [(OTHER, DIRECTORY, "a"), (OTHER, DIRECTORY, "b")]
    assert all(file.left_ns == file.made_ns > 5 for file in files)


async def test_when_the_master_has_to_be_asked_for_a_rename(made: Made) -> None:
    third = InodeId(12)
    for directory, mount in ((OTHER, MountId(1)), (third, MountId(2))):
        made.know(make_directory(directory))
        with made.pending.making_directory() as note:
            note(directory, Delegation(255, mount, "other/"))
    inode = await made.make("a")
    await made.make("b")

    def rename(new_name: str, new_parent: InodeId = DIRECTORY, name: str = "a", **flags: bool) -> Changed | None:
        return made.pending.rename(Renaming(DIRECTORY, name, new_parent, new_name, **flags), "op-r")

    assert rename("c", name="nothing") is None
    assert rename("b") is None, "something has that name"
    assert rename("c", exchange=True) is None
    assert rename("c d") is None, "not every store takes that name as it is"
    assert rename("c", InodeId(99)) is None, "not delegated"
    assert rename("c", third) is None, "another mount"
    made.live = False
    assert rename("c") is None, "the lease has run out"
    made.live = True
    made.worker.may.clear()
    asking = asyncio.create_task(made.pending.settle([inode]))
    await wait_until(lambda: made.worker.published, "it is being published")
    assert rename("c") is None, "it may be there by its name"
    made.worker.may.set()
    await asking
    assert rename("c", name="b", no_replace=True) is not None
    assert made.pending.rename(Renaming(DIRECTORY, "c", OTHER, "c"), "op-2") is not None
    assert made.pending.rename(Renaming(OTHER, "c", OTHER, "d"), "op-3") is not None
    assert made.pending.rename(Renaming(OTHER, "d", DIRECTORY, "d"), "op-4") is not None, "back again"
    await made.pending.settle_all()
    file = made.worker.published[-1][0]
    assert (file.parent, file.left, file.name, file.renamed_id) == (DIRECTORY, OTHER, "d", "op-4")


async def test_many_are_published_at_once_and_few_before_long(made: Made) -> None:
    for number in range(64):
        assert await made.pending.note_closed(await made.make(f"n{number}"))
    begun = time.monotonic()
    await wait_until(lambda: not len(made.pending), "they are published")
    assert time.monotonic() - begun < pending_module._SOON_S, "nobody waits for more"
    inode = await made.make("few")
    assert await made.pending.note_closed(inode)
    await wait_until(lambda: not len(made.pending), "it is published")
    assert [len(batch) for batch in made.worker.published] == [64, 1]
    assert all(file.sealed for batch in made.worker.published for file in batch)
    assert (inode, 2) == (made.told[-1][0], made.told[-1][1].version)


async def test_one_that_stays_open_is_published_without_a_content(made: Made) -> None:
    inode = await made.make("open")
    await wait_until(lambda: not len(made.pending), "its name is published")
    assert [file.sealed for file in made.worker.published[0]] == [False]
    assert not await made.pending.note_closed(inode), "its close seals it as any other"


async def test_who_asks_about_a_file_waits_until_it_is_known(made: Made) -> None:
    inodes = [await made.make(name) for name in "abc"]
    made.worker.may.clear()
    await made.pending.note_closed(inodes[1])
    asking = asyncio.create_task(made.pending.settle([inodes[0]]))
    await wait_until(lambda: made.worker.published, "it is asked for")
    assert made.worker.list_names() == [["a", "b"]], "those that are closed go with it"
    assert not asking.done()
    assert made.pending.set_attributes(inodes[0], NewAttributes(mode=0o600)) is None, "it may be there as it was"
    made.worker.may.set()
    async with asyncio.timeout(HANGS_S):
        await asking
    assert [made.pending.is_pending(inode) for inode in inodes] == [False, False, True]
    await made.pending.settle([DIRECTORY])
    assert not len(made.pending), "what a directory has in it is known when that is asked about"


async def test_names_are_known_before_they_are_changed(made: Made) -> None:
    await made.make("a")
    await made.make("b")
    await made.pending.settle_names((DIRECTORY, "c"), (ABOVE, "else"))
    assert len(made.pending) == 0, "what else is called nobody knows: it may be the directory"
    await made.make("c")
    await made.make("d")
    await made.pending.settle_names((DIRECTORY, "x"))
    assert len(made.pending) == 2, "nothing is there"
    await made.pending.settle_names((DIRECTORY, "c"))
    assert len(made.pending) == 1
    await made.pending.settle_names((ABOVE, f"d{DIRECTORY}"))
    assert len(made.pending) == 0


async def test_a_directory_is_given_back_once_all_in_it_is_known(made: Made) -> None:
    inode = await made.make("a")
    await made.pending.note_closed(inode)
    made.worker.failure = Unavailable("away")
    assert made.pending.give_up([Recall(OTHER, all_names=True), Recall(DIRECTORY, (b"z",))]) is None
    given = made.pending.give_up([Recall(DIRECTORY, all_names=True)])
    assert given is not None
    assert await made.create("b") is None, "at once"
    giving = asyncio.ensure_future(given)
    await wait_until(lambda: len(made.worker.published) > 1, "it is tried again")
    assert not giving.done()
    made.worker.failure = None
    async with asyncio.timeout(HANGS_S):
        await giving
    assert not made.pending.is_pending(inode)
    assert made.pending.give_up([Recall(EVERYWHERE, all_names=True)]) is None


@pytest.mark.parametrize("taken", [OTHER, EVERYWHERE])
async def test_a_directory_that_was_taken_back_before_its_making_was_answered_is_nobodys(made: Made, taken: InodeId) -> None:
    made.know(make_directory(OTHER))
    with made.pending.making_directory() as note:
        assert made.pending.give_up([Recall(taken, all_names=True)]) is None
        note(OTHER, Delegation(255, MountId(1), "other/"))
    assert await made.create("a", parent=OTHER) is None
    with made.pending.making_directory() as note:
        note(OTHER, Delegation(255, MountId(1), "other/"))
    assert await made.create("a", parent=OTHER) is not None


async def test_when_everything_is_taken_back_so_is_what_was_delegated(made: Made) -> None:
    await made.make("a")
    given = made.pending.give_up([Recall(EVERYWHERE, all_names=True)])
    assert given is not None
    await given
    assert await made.create("b") is None


async def test_what_is_wrong_with_one_is_no_harm_to_others(made: Made) -> None:
    made.worker.errors = {"bad": NoSpace("full"), "gone": NotFound("no directory")}
    bad, gone, good = [await made.make(name) for name in ("bad", "gone", "good")]
    await made.pending.settle([gone, good])
    with pytest.raises(NoSpace):
        await made.pending.settle([bad])
    assert [made.pending.is_pending(inode) for inode in (bad, gone, good)] == [True, False, False]
    assert not made.told, "nothing was written"
    assert made.names.lookup(DIRECTORY, "gone") is None, "it is asked for"
    made.worker.errors = {}
    await wait_until(lambda: not len(made.pending), "it is tried again")


async def test_a_close_waits_where_too_many_are_to_be_published(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_module, "_SOON_S", 100.0)
    monkeypatch.setattr(pending_module, "_MANY", 10_000)
    made.worker.may.clear()
    inodes = [await made.make(f"n{number}") for number in range(pending_module._MOST + 1)]
    closing = [asyncio.create_task(made.pending.note_closed(inode)) for inode in inodes]
    await wait_until(lambda: sum(task.done() for task in closing) == pending_module._MOST, "the others are closed")
    made.worker.may.set()
    async with asyncio.timeout(HANGS_S):
        await asyncio.gather(*closing)


async def test_when_the_client_goes_all_is_known(made: Made) -> None:
    inode = await made.make("a")
    await made.pending.note_closed(inode)
    await made.pending.close()
    assert made.worker.list_names() == [["a"]]


async def test_who_takes_a_killed_ones_place_publishes_what_it_has_made(tmp_path: Path) -> None:
    made = Made(tmp_path)
    await made.pending.start("me", succeeds=True)
    assert made.worker.left == ["me"]
    made.worker.failure = Unavailable("away")
    await made.pending.start("other", succeeds=True)
    tries = len(made.worker.left)
    made.worker.failure = None
    await wait_until(lambda: len(made.worker.left) > tries, "it is tried again")
    await made.pending.close()


@pytest.mark.parametrize("comes", [True, False])
async def test_a_rename_that_is_sent_again_waits_for_what_the_client_before_had_made(tmp_path: Path, comes: bool) -> None:
    """Until that is known the master knows of neither name, nor that this rename was done."""
    made = Made(tmp_path)
    asked: list[str] = []
    done = Changed(None)

    async def rename(operation_id: str, _: Renaming) -> Changed:
        asked.append(operation_id)
        if made.worker.failure is not None or not asked[1:]:
            raise NotFound("no such name")
        return done

    stub: Any = SimpleNamespace(rename=rename)
    changes = Changes(stub, made.news, made.pending)
    renaming = Renaming(DIRECTORY, "a", DIRECTORY, "b")
    with pytest.raises(NotFound):
        await changes.rename(renaming, "op-1")
    assert asked == ["op-1"], "there is nothing to be waited for"
    asked.clear()
    made.worker.failure = Unavailable("away")
    await made.pending.start("me", succeeds=True)
    waiting = asyncio.create_task(changes.rename(renaming, "op-1"))
    await wait_until(lambda: asked, "the master is asked")
    if comes:
        made.worker.failure = None
        assert await waiting is done
        assert asked == ["op-1", "op-1"]
    else:
        with pytest.raises(Unavailable):
            await waiting
    made.worker.failure = None
    await made.pending.close()
