"""The real Lister of a real master, over LMDB, before a store that changes and fails all the time: what may be answered.

The model is the store's history by the clock. Whatever fails (a page in the middle of a listing, a listing that hangs while
objects come and go, a restart of the master), it must hold that

- what is said of a name, that it is not there included, was true at some time within the sync interval and the longest listing;
- after a sync that succeeded, what is said is what was true while it ran;
- a failed listing never makes a name disappear nor a directory empty: who asks hears of the failure, or what is true;
- an inode id never stands for two contents.
"""

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from alluxio_like import errors
from alluxio_like.clock import ManualClock
from alluxio_like.config import MasterConfig
from alluxio_like.master import app
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.types import Entry, InodeId, Kind
from alluxio_like.ufs.memory import Fault, MemoryUfs

KEYS = ["a", "b", "c", "d/a", "d/b", "d/c", "d/e", "d/f/x", "g/x"]
DIRECTORIES = ["", "d", "d/f", "g"]
SYNC_S = 10.0
LONGEST_S = 8.0
"""What the clock moves at most while a listing hangs."""
FAULTS = [errors.StoreDenied("refused"), errors.StoreProtocol("not understood"), errors.StoreMissing("no bucket")]

State = str | None
"""Of a name: the token of a file, "dir", None for nothing."""


class ListerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.ExitStack()
        self.home = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.clock = ManualClock()
        self.ufs = MemoryUfs()
        self.history: dict[str, list[tuple[float, State]]] = {}
        self.contents: dict[InodeId, str] = {}
        self.held: tuple[asyncio.Event, asyncio.Task[Any], float] | None = None
        self.hung_s = 0.0
        self.is_broken = False
        self.master: app.Master

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @initialize(keys=st.sets(st.sampled_from(KEYS), min_size=4))
    def start(self, keys: set[str]) -> None:
        for key in sorted(keys):
            self.ufs.put(key, b"x")
        self.note()
        self.clock.advance(60)
        self.run(self.open())
        spec = MountSpec("/m", "s3://bucket", sync_interval_s=SYNC_S)
        self.run(self.master.mounts.mount("first", spec))

    async def open(self) -> None:
        config = MasterConfig(home=self.home, bind="127.0.0.1:0", http_bind="", page_entries=2, io_timeout_s=30)
        self.master = await app.start(config, clock=self.clock, opener=lambda *_, **__: self.ufs)

    def teardown(self) -> None:
        if self.held is not None:
            self.release()
        if hasattr(self, "master"):
            self.run(self.master.close())
        self.loop.close()
        self.stack.close()

    # The store

    def get_state(self, path: str) -> State:
        found = self.ufs.lookup_fingerprint(path)
        if found is not None:
            return found.token
        return "dir" if self.ufs.has_below(path + "/") else None

    def note(self) -> None:
        for path in {*KEYS, *DIRECTORIES} - {""}:
            events = self.history.setdefault(path, [])
            state = self.get_state(path)
            if not events or events[-1][1] != state:
                events.append((self.clock.monotonic(), state))

    def get_since(self, *, is_known: bool = True) -> float:
        """The oldest moment of which an answer may tell now. While the store fails that of what `is_known` may be any, but what
        is not known is never said not to be there."""
        if self.is_broken and is_known:
            return 0.0
        now_s = self.clock.monotonic()
        hung = self.held is not None or now_s - self.hung_s <= SYNC_S + LONGEST_S
        return now_s - SYNC_S - (LONGEST_S if hung else 0.0)

    def list_states(self, path: str, since_s: float) -> set[State]:
        """What has been true of a name from then on."""
        events = self.history[path]
        return {
            state for number, (_, state) in enumerate(events) if number + 1 == len(events) or events[number + 1][0] >= since_s
        }

    @rule(key=st.sampled_from(KEYS))
    def put(self, key: str) -> None:
        self.ufs.put(key, b"x")
        self.note()

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: str) -> None:
        if self.ufs.lookup_fingerprint(key) is not None:
            self.ufs.delete(key)
            self.note()

    @rule(error=st.sampled_from(FAULTS), after=st.integers(0, 2), path=st.sampled_from(KEYS))
    def break_a_page(self, error: errors.AlluxioLikeError, after: int, path: str) -> None:
        """One of the next pages fails, and somebody asks for a name when it is not believed any more."""
        self.is_broken = True
        self.wait(SYNC_S + 1)
        self.ufs.fail("LIST", *[Fault()] * after, error)
        self.lookup(path)

    @rule()
    @precondition(lambda self: self.is_broken and self.held is None)
    def mend(self) -> None:
        """The store answers again, and all of it is listed anew."""
        self.ufs.heal()
        self.is_broken = False
        for directory in DIRECTORIES:
            self.sync(directory)

    @rule(seconds=st.sampled_from([0.5, 3.0, SYNC_S + 1]))
    def wait(self, seconds: float) -> None:
        if self.held is None or self.clock.monotonic() + seconds - self.held[2] <= LONGEST_S:
            self.clock.advance(seconds)

    # The master

    @rule()
    def restart(self) -> None:
        if self.held is not None:
            self.release()
        self.run(self.master.close())
        self.run(self.open())

    @rule(path=st.sampled_from(KEYS + DIRECTORIES[1:]))
    def lookup(self, path: str) -> None:
        try:
            # Whoever waits for a listing that hangs would wait for ever by this clock.
            answer = self.run(asyncio.wait_for(self.master.lister.resolve_path(f"/m/{path}"), 0.2 if self.held else 30))
        except (errors.StoreError, TimeoutError):
            return
        except errors.NotADirectory:
            return
        self.check(path, answer.entry, self.get_since(is_known=answer.entry is not None))

    @rule(directory=st.sampled_from(DIRECTORIES))
    @precondition(lambda self: self.held is None)
    def list_directory(self, directory: str) -> None:
        since_s = self.get_since()
        try:
            entries = self.run(self.list_all(directory))
        except (errors.StoreError, errors.NotFound):
            return
        if entries is not None:
            self.check_directory(directory, entries, since_s)

    @rule(directory=st.sampled_from(DIRECTORIES))
    @precondition(lambda self: self.held is None)
    def sync(self, directory: str) -> None:
        since_s = self.clock.monotonic()
        try:
            answer = self.run(self.master.lister.resolve_path(f"/m/{directory}".rstrip("/")))
            if answer.entry is None:
                return
            self.run(self.master.lister.refresh(answer.entry.attr.inode, self.clock.now_ns()))
            entries = self.run(self.list_all(directory))
        except (errors.StoreError, errors.NotFound):
            return
        if entries is not None:
            self.check_directory(directory, entries, since_s)

    @rule(directory=st.sampled_from(DIRECTORIES), page=st.integers(0, 1))
    @precondition(lambda self: self.held is None)
    def hang(self, directory: str, page: int) -> None:
        """A listing begins, and one of its pages does not come for a while."""
        try:
            answer = self.run(self.master.lister.resolve_path(f"/m/{directory}".rstrip("/")))
        except errors.StoreError:
            return
        if answer.entry is None:
            return
        gate = asyncio.Event()
        self.ufs.heal()
        self.ufs.fail("LIST", *[Fault()] * page, Fault(until=gate))

        async def begin() -> "asyncio.Task[Any]":
            task = asyncio.ensure_future(self.master.lister.refresh(answer.entry.attr.inode, self.clock.now_ns()))
            await asyncio.sleep(0.01)
            return task

        self.held = (gate, self.run(begin()), self.clock.monotonic())

    @rule()
    @precondition(lambda self: self.held is not None)
    def release(self) -> None:
        assert self.held is not None
        gate, task, _ = self.held
        self.held, self.hung_s = None, self.clock.monotonic()

        async def end() -> None:
            gate.set()
            with contextlib.suppress(errors.AlluxioLikeError):
                await task

        self.run(end())
        self.ufs.heal()

    # What is checked

    async def list_all(self, directory: str) -> list[Entry] | None:
        answer = await self.master.lister.resolve_path(f"/m/{directory}".rstrip("/"))
        if answer.entry is None:
            return None
        entries: list[Entry] = []
        cursor = b""
        while True:
            listed = await self.master.lister.list_page(answer.entry.attr.inode, cursor, 2)
            entries += listed.page.entries
            cursor = listed.page.cursor
            if not cursor:
                return entries

    def check_directory(self, directory: str, entries: list[Entry], since_s: float) -> None:
        found = {entry.name: entry for entry in entries}
        assert len(found) == len(entries)
        for path in self.history:
            parent, _, name = path.rpartition("/")
            if parent == directory:
                self.check(path, found.get(name), since_s)

    def check(self, path: str, entry: Entry | None, since_s: float) -> None:
        state: State = None
        if entry is not None:
            state = "dir" if entry.attr.kind is Kind.DIRECTORY else entry.ref.fingerprint.token if entry.ref else "?"
        if entry is not None and entry.ref is not None:
            assert self.contents.setdefault(entry.attr.inode, entry.ref.fingerprint.token) == entry.ref.fingerprint.token
        # Of a name below, also what was true of the directories on the way counts: they may have been gone.
        allowed = self.list_states(path, since_s)
        if None in self.list_parents(path, since_s):
            allowed.add(None)
        assert state in allowed, (path, state, allowed)

    def list_parents(self, path: str, since_s: float) -> set[State]:
        found: set[State] = set()
        while path := path.rpartition("/")[0]:
            found |= self.list_states(path, since_s)
        return found


TestLister = ListerMachine.TestCase
TestLister.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
