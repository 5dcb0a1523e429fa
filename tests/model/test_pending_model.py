"""Files that a client makes and renames before the master hears of them, against a plain model: the real table of the client, the
real notes with drafts, and the master's real core, between which files are published in any order, and the client dies.

What must hold: what is shown to programs is what they did; what a name leads to at the master, once all is published,
is that too, with the times that were shown; a rename that is sent again is answered and not done again; and nothing is there
twice.
"""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alluxio_like.cache.new_files import NewFile, read_note
from alluxio_like.client.blanks import Blank, OpenedDraft
from alluxio_like.client.metadata import MetadataCache
from alluxio_like.client.news import News
from alluxio_like.client.pending import PendingFiles
from alluxio_like.kv.api import KeyValueStore
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import changes, mounts, namespace, operations, publishing, snapshots, tables
from alluxio_like.master.core.changes import NewInode, Outcome
from alluxio_like.master.core.publishing import Packer
from alluxio_like.rpc.messages import DirPage, LookupResult
from alluxio_like.rpc.messages_writing import Delegation, NewName, Published, PublishedFile, Renaming
from alluxio_like.types import Entry, FileRef, Fingerprint, InodeId, Kind, MountId, Recall, VersionId, WorkerId, to_bytes
from tests.model.checked import assert_whole

WORKER = WorkerId("w")
MAX_KEY = 1024
PACKER = Packer(
    lambda outcome: json.dumps([outcome.inode, outcome.version]).encode(),
    lambda data: Outcome(InodeId(json.loads(data)[0]), (), VersionId(json.loads(data)[1])),
)

names = st.sampled_from("abcde")
places = st.integers(0, 2)
numbers = st.integers(0, 5)
answers = st.sampled_from([True, True, True, False])


class PendingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.home = Path(tempfile.mkdtemp(prefix="al-model-"))
        self.kv: KeyValueStore = MemoryStore()
        with self.kv.write() as txn:
            namespace.prepare(txn, 1)
            self.root = mounts.add_mount(
                txn, "/m", "s3://b", options={}, read_only=False, uid=0, gid=0, now_ns=2, write="back"
            ).root
            new = NewInode(Kind.DIRECTORY, 0o755, 0, 0)
            self.directories = [
                changes.create(txn, self.root, b"d%d" % number, new, 3, max_key_bytes=MAX_KEY).inode for number in range(3)
            ]
            self.next = tables.reserve_inodes(txn, 1000)
        self.files: dict[tuple[InodeId, str], InodeId] = {}
        """What programs have made, by name."""
        self.count = 0
        self.begin_client()

    def run(self, call: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await call

        return self.loop.run_until_complete(wait())

    def begin_client(self) -> None:
        """A client to which all directories are delegated, and that knows them as the master does."""
        self.cache = MetadataCache(time.monotonic, lambda: True)
        keeper: Any = SimpleNamespace(session="lease", forget_here=self.cache.recall)
        self.news = News(self.cache, keeper, lambda _: None)
        worker: Any = self
        self.pending = PendingFiles(self.cache, lambda: True, self.news, worker, worker, io_timeout_s=60.0)

        async def start() -> None:
            await self.pending.start("me", succeeds=False)
            with self.kv.read() as txn, self.pending.making_directory() as note:
                for number, directory in enumerate(self.directories):
                    entries = namespace.list_entries(txn, directory).entries
                    begun = self.cache.begin()
                    self.cache.keep_page(directory, b"", DirPage(tuple(entries), b"", 1000.0, leased=True), begun)
                    entry = namespace.get_entry(txn, directory)
                    self.cache.keep(self.root, entry.name, LookupResult(entry, 1000.0, True, self.root), begun)
                    note(directory, Delegation(255, MountId(1), f"d{number}/"))

        self.run(start())

    # In place of the pool of blank drafts, and of the worker.

    def take(self) -> Blank | None:
        inode, self.next = self.next, InodeId(self.next + 1)
        return Blank(inode, OpenedDraft(WORKER, os.open(self.home / str(inode), os.O_RDWR | os.O_CREAT)))

    async def wait(self) -> None:
        pass

    def warm(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ask(self, _: WorkerId, call: Callable[[Any], Awaitable[Any]], *, wait_s: float) -> Any:
        return await call(self)

    async def watch(self, _: Any, call: Awaitable[Any]) -> Any:
        return await call

    async def publish(self, lease: str, files: list[NewFile], *, timeout_s: float) -> Published:
        made = self.publish_at_master(files)
        told = tuple(
            PublishedFile(
                FileRef(file.inode, one.newest.version or VersionId(1), MountId(1), file.name, Fingerprint("own-2", 0)), None
            )
            for file, one in zip(files, made, strict=True)
        )
        return Published(told)

    def publish_at_master(self, files: list[NewFile]) -> list[publishing.Published]:
        with self.kv.write() as txn:
            made = publishing.publish(snapshots.record(txn), files, "w", time.time_ns(), PACKER, lambda *_: False)
        assert not any(one.kept for one in made), "nobody else has made anything"
        return made

    # What programs do.

    @rule(place=places, name=names, closes=st.booleans())
    def create(self, place: int, name: str, closes: bool) -> None:
        directory = self.directories[place]
        self.count += 1
        self.see(directory, name)
        made = self.run(self.pending.create(NewName(directory, name, Kind.FILE, 0o644, 0, 0), f"op-{self.count}"))
        assert (made is None) == ((directory, name) in self.files)
        if made is not None:
            self.files[directory, name] = made.entry.attr.inode
            if closes:
                self.run(self.pending.note_closed(made.entry.attr.inode))

    @precondition(lambda self: self.files)
    @rule(number=numbers, new_place=places, new_name=names, is_answered=answers)
    def rename(self, number: int, new_place: int, new_name: str, is_answered: bool) -> None:
        old, new = self.choose(number), (self.directories[new_place], new_name)
        if new in self.files:
            return
        self.count += 1
        self.see(*new)
        operation_id, inode = f"op-{self.count}", self.files[old]
        renaming = Renaming(*old, *new)

        async def do() -> Any:
            return self.pending.rename(renaming, operation_id)

        is_pending = self.pending.is_pending(inode)
        if self.run(do()) is None:
            self.run(self.pending.settle_names(old, new))
            self.rename_at_master(operation_id, renaming)
            recalls = [Recall(directory, (to_bytes(called),), inodes=(inode,)) for directory, called in (old, new)]
            self.cache.recall(recalls)
            self.know(*old)
            self.know(*new)
        else:
            assert is_pending
        self.files[new] = self.files.pop(old)
        if not is_answered:
            self.kill()
            self.rename_at_master(operation_id, renaming)

    def know(self, directory: InodeId, name: str) -> None:
        """As the answer of the master tells."""
        with self.kv.read() as txn:
            entry = namespace.lookup(txn, directory, name)
            above = namespace.get_entry(txn, directory)
        begun = self.cache.begin()
        self.cache.keep(directory, name, LookupResult(entry, 1000.0, True, directory), begun)
        self.cache.keep(self.root, above.name, LookupResult(above, 1000.0, True, self.root), begun)

    def rename_at_master(self, operation_id: str, renaming: Renaming) -> None:
        old, new = (renaming.parent, to_bytes(renaming.name)), (renaming.new_parent, to_bytes(renaming.new_name))
        now_ns = time.time_ns()
        with self.kv.write() as txn:
            recording = snapshots.record(txn)

            def work() -> bytes:
                return PACKER.pack(changes.rename(recording, *old, *new, now_ns, max_key_bytes=MAX_KEY))

            operations.run_once(recording, operation_id, "rename", now_ns, work)

    # What happens to them.

    @precondition(lambda self: self.files)
    @rule(number=numbers)
    def settle(self, number: int) -> None:
        """Somebody asks about one."""
        inode = self.files[self.choose(number)]
        self.run(self.pending.settle([inode]))
        assert not self.pending.is_pending(inode)

    def choose(self, number: int) -> tuple[InodeId, str]:
        """One of the files that there are, the newest first."""
        return list(self.files)[-1 - number % len(self.files)]

    @rule(place=places)
    def take_back(self, place: int) -> None:
        """Others are told of a directory: all that there is in it, and that it was changed."""
        directory = self.directories[place]
        given = self.pending.give_up([Recall(directory, all_names=True)])
        if given is not None:
            self.run(given)
        self.check_directory(directory)
        with self.pending.making_directory() as note:
            note(directory, Delegation(255, MountId(1), f"d{place}/"))

    @rule()
    def kill(self) -> None:
        """The client dies; its worker publishes what is noted, and another takes its place."""
        notes = []
        fd = os.open(self.home, os.O_RDONLY)
        for file in self.pending._files.list_all():
            note = read_note(fd, str(file.file.inode))
            assert note is not None
            notes.append(note.file)
        os.close(fd)
        self.run(self.end_client())
        self.publish_at_master(notes)
        self.begin_client()
        self.check_master()

    async def end_client(self) -> None:
        if self.pending._publishing is not None:
            self.pending._publishing.cancel()
            await asyncio.gather(self.pending._publishing, return_exceptions=True)
        for file in self.pending._files.list_all():
            self.pending._files.remove(file)

    # What must hold.

    @invariant()
    def programs_see_what_they_did(self) -> None:
        for directory in self.directories:
            for name in "abcde":
                entry = self.see(directory, name)
                inode = None if entry is None else entry.attr.inode
                assert inode == self.files.get((directory, name)), (directory, name)

    def see(self, directory: InodeId, name: str) -> Entry | None:
        """What a program is shown."""
        if self.cache.lookup(directory, name) is None:
            self.run(self.pending.settle_names((directory, name)))
            self.know(directory, name)
        found = self.cache.lookup(directory, name)
        assert found is not None
        return found.entry

    def check_directory(self, directory: InodeId) -> None:
        with self.kv.read() as txn:
            there = {entry.name: entry.attr for entry in namespace.list_entries(txn, directory).entries}
            found = namespace.get_entry(txn, directory).attr
        wanted = {name: inode for (parent, name), inode in self.files.items() if parent == directory}
        assert {name: attr.inode for name, attr in there.items()} == wanted
        shown = self.cache.get(directory)
        assert shown is not None
        assert shown.entry is not None
        assert found.mtime_ns == shown.entry.attr.mtime_ns, "it was changed when it was shown to be"
        for name, attr in there.items():
            known = self.see(directory, name)
            assert known is not None
            assert (attr.ctime_ns, attr.mtime_ns) == (known.attr.ctime_ns, known.attr.mtime_ns), name

    def check_master(self) -> None:
        for directory in self.directories:
            self.check_directory(directory)
        assert_whole(self.kv)
        with self.kv.read() as txn:
            assert namespace.get_totals(txn).files == len(self.files)

    def teardown(self) -> None:
        try:
            self.run(self.pending.settle_all())
            self.check_master()
        finally:
            self.run(self.end_client())
            self.loop.close()
            shutil.rmtree(self.home)


TestPending = PendingMachine.TestCase
TestPending.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
