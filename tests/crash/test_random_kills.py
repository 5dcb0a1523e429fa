"""kill -9 of the daemon, the worker, the master, or all at once, at random moments, while programs write: again and again on the
same disks. After each kill all that was acknowledged is there, nothing is torn, and `fsck` finds nothing.

CRASH_RUNS is the number of kills (`make soak`: 500), CRASH_SEED makes others of them, CRASH_SERVICES says what is killed ("daemon
workers+master": either of the two).
"""

import contextlib
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.writing import start_written, wait_until
from tests.crash.test_writing_crash import Running
from tests.servers.whole import assert_whole_disks

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(0 if "ALLUXIO_LIKE_TEST_SOAK" in os.environ else 300),
]

RUNS = int(os.environ.get("CRASH_RUNS", "500" if os.environ.get("ALLUXIO_LIKE_TEST_SOAK") else "4"))
SEED = int(os.environ.get("CRASH_SEED", "1"))
SERVICES = [
    tuple(one.split("+")) for one in os.environ.get("CRASH_SERVICES", "daemon workers master daemon+workers+master").split()
]
NAMES = [f"{folder}/{name}" for folder in ("a", "b") for name in ("f", "g", "h")]
Content = bytes | None
"""None: there is no such file."""


class Program:
    """Does what programs do, and knows what of it was acknowledged: for each name the contents that it may have."""

    def __init__(self, place: Path, number: int) -> None:
        self.place = place / f"p{number}"
        self.random = random.Random(f"{SEED} {number}")
        self.may_be: dict[str, list[Content]] = {name: [None] for name in NAMES}
        self.torn: set[str] = set()
        """Names of files that were being written in place when it failed: any mixture may be there."""
        self.lines = 0
        self.logged: set[int] = set()
        self.failed: list[str] = []
        self.steps: list[str] = []
        """The last ones that were acknowledged, with a mark of the content: to be read when something is wrong."""
        self.wrong: list[str] = []
        for folder in ("a", "b"):
            (self.place / folder).mkdir(parents=True)

    def run(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            step = self.random.choice([self.replace, self.replace, self.rewrite, self.move, self.remove, self.log])
            # What fails was not acknowledged: the next step begins anew.
            try:
                step()
            except OSError as error:
                self.failed.append(f"{step.__name__}: {error}")

    def make_data(self) -> bytes:
        return self.random.randbytes(self.random.choice([0, 1, 3000, 200_000, 1_500_000]))

    def note(self, name: str, content: Content) -> None:
        """Acknowledged."""
        self.may_be[name] = [content]
        self.torn.discard(name)
        self.steps = [*self.steps[-40:], f"{name}: {_mark(content)}"]

    def replace(self) -> None:
        """A new file is written, and renamed to its name; what is read back is what was written."""
        name, data = self.random.choice(NAMES), self.make_data()
        (self.place / "new").write_bytes(data)
        self.may_be[name] = [*self.may_be[name], data]
        (self.place / "new").rename(self.place / name)
        known = self.may_be[name]
        self.note(name, data)
        if (found := (self.place / name).read_bytes()) != data:
            again = (self.place / name).read_bytes()
            before = [len(one) for one in known if one is not None and found == one]
            self.wrong.append(
                f"{name} has {_mark(found)}, not {_mark(data)} (right from the start: {_count_common(found, data)} bytes; what "
                f"was there before: {before}); read again it has {_mark(again)}; failed: {self.failed[-5:]}; {self.steps}"
            )

    def rewrite(self) -> None:
        """A file is changed in place, in the middle and at its end, synced, and closed."""
        name = self.random.choice(NAMES)
        before = self.may_be[name]
        if name in self.torn or len(before) != 1 or before[0] is None:
            return
        data = bytearray(before[0])
        at, more = self.random.randrange(len(data) + 1), self.random.randbytes(5000)
        self.torn.add(name)
        with (self.place / name).open("r+b", buffering=0) as out:
            os.pwrite(out.fileno(), more, at)
            data[at : at + len(more)] = more
            if self.random.random() < 0.5:
                os.fsync(out.fileno())
        self.note(name, bytes(data))

    def move(self) -> None:
        old, new = self.random.sample(NAMES, 2)
        if old in self.torn or self.may_be[old] == [None] or len(self.may_be[old]) != 1:
            return
        (content,) = self.may_be[old]
        self.may_be[old] = [content, None]
        self.may_be[new] = [*self.may_be[new], content]
        (self.place / old).rename(self.place / new)
        self.note(old, None)
        self.note(new, content)

    def remove(self) -> None:
        name = self.random.choice(NAMES)
        self.may_be[name] = [*self.may_be[name], None]
        with contextlib.suppress(FileNotFoundError):
            (self.place / name).unlink()
            self.note(name, None)

    def log(self) -> None:
        self.lines += 1
        with (self.place / "log").open("ab") as out:
            out.write(b"%06d\n" % self.lines)
        self.logged.add(self.lines)

    def check(self) -> None:
        """What is there is what may be; from now on it is what is known."""
        assert not self.wrong, self.wrong
        # Nobody else writes there: nothing may have been kept beside a foreign content.
        found = {str(path.relative_to(self.place)) for path in self.place.rglob("*") if not path.is_dir()}
        assert found <= {*NAMES, "new", "log"}, f"{self.place.name}: {found - {*NAMES}}; failed: {self.failed[-5:]}; {self.steps}"
        for name in NAMES:
            content = _read(self.place / name)
            if name not in self.torn:
                allowed = self.may_be[name]
                if content not in allowed:
                    again = _read(self.place / name)
                    raise AssertionError(
                        f"{self.place.name}/{name} has {_mark(content)}, not {[_mark(one) for one in allowed]}; read again it "
                        f"has {_mark(again)}; failed: {self.failed[-5:]}; {self.steps}"
                    )
            self.may_be[name] = [content]
            self.torn.discard(name)
        lines = [int(line) for line in (_read(self.place / "log") or b"").split()]
        assert lines == sorted(set(lines)) and self.logged <= set(lines), f"{self.place.name}/log: {lines}, {self.logged}"


def _mark(content: Content) -> str:
    return "nothing" if content is None else f"{len(content)} bytes {zlib.crc32(content):08x}"


def _count_common(one: bytes, other: bytes) -> int:
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))


def _read(path: Path) -> Content:
    """What a file holds; a worker that is just starting is waited for."""

    def read() -> list[Content]:
        try:
            return [path.read_bytes()]
        except FileNotFoundError:
            return [None]

    found: list[Content] = wait_until(read, f"{path} to be readable")
    return found[0]


def read_store(programs: list[Program], store: Path) -> bool:
    """Whether the store holds what the programs know."""
    return all(
        (content is None and not (store / program.place.name / name).exists())
        or (content is not None and (store / program.place.name / name).read_bytes() == content)
        for program in programs
        for name, (content,) in program.may_be.items()
    )


@contextlib.contextmanager
def writing(programs: list[Program]) -> Iterator[None]:
    over = threading.Event()
    threads = [threading.Thread(target=program.run, args=(over.is_set,)) for program in programs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a program hangs"


@pytest.mark.parametrize("policy", ["through", "back:1"])
def test_kills_at_random_moments(workplace: Path, policy: str) -> None:  # noqa: F811
    chance = random.Random(SEED)
    (workplace / "store").mkdir()
    with start_written(workplace, f"file://{workplace / 'store'}", {}, policy) as stack:
        running = Running(stack, workplace)
        programs = [Program(running.place, number) for number in range(3)]
        for run in range(max(1, RUNS // 2)):
            killed = chance.choice(SERVICES)
            # What was killed before takes files again: what fails from now on does so by this kill.
            wait_until(lambda: (running.place / "probe").write_bytes(b"x"), "files are taken again")
            with writing(programs):
                time.sleep(chance.uniform(0.0, 2.0))  # the random moment
                running.kill(*killed)
                time.sleep(chance.uniform(0.0, 1.0))  # and how long it goes on
            try:
                for program in programs:
                    program.check()
                    # Of a daemon that dies programs notice nothing.
                    assert killed != ("daemon",) or not program.failed, program.failed
                    program.failed.clear()
                assert_whole_disks(workplace / "home", online=True)
            except AssertionError as error:
                raise AssertionError(f"run {run}, {policy}, killed {', '.join(killed)}: {error}") from error
        stack.run_command("alluxio-like", "fs", "wait", "/data", "--timeout", "5m")
        assert read_store(programs, running.store)
    assert_whole_disks(workplace / "home")
