"""Random operations by several threads, done alike on the target and in a local directory: every result, and after each step
the whole trees, are the same.

Three threads work at once, each in a directory of its own, so that what comes of each call is determined; between their turns one
works all over the tree (and moves things from one directory to another), or something happens to the target (`Target.disturb`: an
eviction, a daemon that is killed, a store that fails), which nobody may notice.
"""

import errno
import itertools
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from tests.posix.system import (
    KEEP_SIZE,
    PUNCH_HOLE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ZERO_RANGE,
    attempt,
    fallocate,
    opened,
    renameat2,
)
from tests.posix.target import Target

pytestmark = [pytest.mark.mount, pytest.mark.timeout(0 if os.environ.get("ALLUXIO_LIKE_TEST_SOAK") else 600)]

SOAK = bool(os.environ.get("ALLUXIO_LIKE_TEST_SOAK"))
THREADS = 3

Operation = tuple[Any, ...]

# -- what is done ----------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d", "e/f", "e"])
OFFSETS = st.sampled_from([0, 1, 100, 4095, 4096, 5000, 65_536, 1_048_570])
LENGTHS = st.sampled_from([1, 10, 4096, 5000, 70_000])
SLOTS = st.sampled_from([0, 1])
SALTS = st.integers(1, 250)

OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("write"), NAMES, OFFSETS, LENGTHS, SALTS),
    st.tuples(st.just("rewrite"), NAMES, LENGTHS, SALTS),
    st.tuples(st.just("append"), NAMES, LENGTHS, SALTS),
    st.tuples(st.just("truncate"), NAMES, OFFSETS),
    st.tuples(st.just("mapped"), NAMES, OFFSETS, LENGTHS, SALTS),
    st.tuples(st.just("allocate"), NAMES, OFFSETS, LENGTHS, st.sampled_from([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])),
    st.tuples(st.just("copy"), NAMES, NAMES, OFFSETS, OFFSETS, LENGTHS),
    st.tuples(st.just("read"), NAMES, OFFSETS, LENGTHS),
    st.tuples(st.just("mkdir"), NAMES),
    st.tuples(st.just("rmdir"), NAMES),
    st.tuples(st.just("unlink"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES, st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])),
    st.tuples(st.just("link"), NAMES, NAMES),
    st.tuples(st.just("symlink"), NAMES, NAMES),
    st.tuples(st.just("chmod"), NAMES, st.sampled_from([0o600, 0o644, 0o755])),
    st.tuples(st.just("utimes"), NAMES, st.integers(1, 2**31)),
    st.tuples(st.just("setxattr"), NAMES, st.sampled_from(["user.x", "user.y"]), SALTS),
    st.tuples(st.just("removexattr"), NAMES, st.sampled_from(["user.x", "user.y"])),
    st.tuples(st.just("list"), NAMES),
    st.tuples(st.just("open"), SLOTS, NAMES, st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND])),
    st.tuples(st.just("handle write"), SLOTS, OFFSETS, LENGTHS, SALTS),
    st.tuples(st.just("handle read"), SLOTS, OFFSETS, LENGTHS),
    st.tuples(st.just("handle truncate"), SLOTS, OFFSETS),
    st.tuples(st.just("handle stat"), SLOTS),
    st.tuples(st.just("sync"), SLOTS),
    st.tuples(st.just("close"), SLOTS),
)

PROGRAM = st.lists(OPERATIONS, min_size=1, max_size=5)
MOVES = st.lists(
    st.tuples(st.integers(0, THREADS - 1), NAMES, st.integers(0, THREADS - 1), NAMES, st.booleans()), min_size=1, max_size=3
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("threads"), st.tuples(*[PROGRAM] * THREADS)),
        st.tuples(st.just("threads"), st.tuples(*[PROGRAM] * THREADS)),
        st.tuples(st.just("move"), MOVES),
        st.tuples(st.just("disturb"), st.integers(0, 5)),
    ),
    min_size=1,
    max_size=12,
)


def fill(length: int, salt: int) -> bytes:
    return bytes((i + salt) % 251 + 1 for i in range(256)) * (length // 256 + 1)


class Side:
    """One of the two trees, as one thread works in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.handles: dict[int, int] = {}

    def do(self, operation: Operation) -> Any:
        """The result of an operation: of its errno, or what it gave."""
        name, *given_ = operation
        found: list[Any] = []

        def call() -> None:
            found.append(getattr(self, "_" + name.replace(" ", "_"))(*given_))

        came = attempt(call)
        return found[0] if came == "ok" else came

    def close(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()

    def _on(self, name: str, flags: int, call: Callable[[int], Any]) -> Any:
        with opened(self.root / name, flags) as fd:
            return call(fd)

    def _write(self, name: str, offset: int, length: int, salt: int) -> Any:
        return self._on(name, os.O_RDWR | os.O_CREAT, lambda fd: os.pwrite(fd, fill(length, salt)[:length], offset))

    def _rewrite(self, name: str, length: int, salt: int) -> Any:
        return self._on(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, lambda fd: os.write(fd, fill(length, salt)[:length]))

    def _append(self, name: str, length: int, salt: int) -> Any:
        return self._on(name, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, fill(length, salt)[:length]))

    def _truncate(self, name: str, size: int) -> None:
        os.truncate(self.root / name, size)

    def _mapped(self, name: str, offset: int, length: int, salt: int) -> Any:
        def write(fd: int) -> int:
            size = os.fstat(fd).st_size
            if offset >= size:
                return 0
            end = min(size, offset + length)
            with mmap.mmap(fd, size) as mapped:
                mapped[offset:end] = fill(length, salt)[: end - offset]
            return end - offset

        return self._on(name, os.O_RDWR, write)

    def _allocate(self, name: str, offset: int, length: int, mode: int) -> None:
        self._on(name, os.O_RDWR, lambda fd: fallocate(fd, mode, offset, length))

    def _copy(self, source: str, target: str, start: int, to: int, length: int) -> Any:
        if os.path.samefile(self.root / source, self.root / target):
            return "same"
        return self._on(
            source,
            os.O_RDONLY,
            lambda fd: self._on(target, os.O_RDWR, lambda other: os.copy_file_range(fd, other, length, start, to)),
        )

    def _read(self, name: str, offset: int, length: int) -> Any:
        return self._on(name, os.O_RDONLY, lambda fd: os.pread(fd, length, offset))

    def _mkdir(self, name: str) -> None:
        (self.root / name).mkdir()

    def _rmdir(self, name: str) -> None:
        (self.root / name).rmdir()

    def _unlink(self, name: str) -> None:
        (self.root / name).unlink()

    def _rename(self, source: str, target: str, flags: int) -> None:
        renameat2(self.root / source, self.root / target, flags)

    def _link(self, source: str, target: str) -> None:
        os.link(self.root / source, self.root / target, follow_symlinks=False)

    def _symlink(self, target: str, name: str) -> None:
        (self.root / name).symlink_to(target)

    def _chmod(self, name: str, mode: int) -> None:
        (self.root / name).chmod(mode)

    def _utimes(self, name: str, seconds: int) -> None:
        os.utime(self.root / name, ns=(seconds * 10**9 + 1, seconds * 10**9 + 2))

    def _setxattr(self, name: str, attribute: str, salt: int) -> None:
        os.setxattr(self.root / name, attribute, fill(salt, salt)[:salt])

    def _removexattr(self, name: str, attribute: str) -> None:
        os.removexattr(self.root / name, attribute)

    def _list(self, name: str) -> Any:
        return sorted(os.listdir(self.root / name))

    def _open(self, slot: int, name: str, flags: int) -> None:
        fd = os.open(self.root / name, os.O_RDWR | flags, 0o644)
        self._close(slot)
        self.handles[slot] = fd

    def _handle_write(self, slot: int, offset: int, length: int, salt: int) -> Any:
        return os.pwrite(self._get(slot), fill(length, salt)[:length], offset)

    def _handle_read(self, slot: int, offset: int, length: int) -> Any:
        return os.pread(self._get(slot), length, offset)

    def _handle_truncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._get(slot), size)

    def _handle_stat(self, slot: int) -> Any:
        found = os.fstat(self._get(slot))
        return found.st_size, found.st_nlink, found.st_mode

    def _sync(self, slot: int) -> None:
        os.fsync(self._get(slot))

    def _get(self, slot: int) -> int:
        if slot not in self.handles:
            raise OSError(errno.EBADF, "nothing is open there")
        return self.handles[slot]

    def _close(self, slot: int) -> None:
        if slot in self.handles:
            os.close(self.handles.pop(slot))


def describe(root: Path) -> dict[str, Any]:
    """All of a tree that has to be the same on both sides."""
    found: dict[str, Any] = {}
    numbers: dict[int, str] = {}
    pending = [root]
    while pending:
        directory = pending.pop()
        for name in sorted(os.listdir(directory)):
            path = directory / name
            at = str(path.relative_to(root))
            about = path.lstat()
            what: Any = None
            if stat.S_ISDIR(about.st_mode):
                pending.append(path)
            elif stat.S_ISLNK(about.st_mode):
                what = os.readlink(path)
            else:
                data = path.read_bytes()
                # Which names are one file, by the first of them.
                what = (data, numbers.setdefault(about.st_ino, at))
                assert len(data) == about.st_size, at
            given_times = about.st_mtime_ns if about.st_mtime_ns % 10**9 == 2 else None
            attributes = {}
            if not stat.S_ISLNK(about.st_mode):
                attributes = {n: os.getxattr(path, n) for n in os.listxattr(path) if n in {"user.x", "user.y"}}
            links = None if stat.S_ISDIR(about.st_mode) else about.st_nlink
            found[at] = (about.st_mode, links, about.st_uid, given_times, attributes, what)
    return found


def explain(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> str:
    """Where the bytes of a file differ; nothing of what else does."""
    if not (isinstance(ours[-1], tuple) and isinstance(theirs[-1], tuple)):
        return "another kind of file"
    data, expected = ours[-1][0], theirs[-1][0]
    differ = [at for at in range(min(len(data), len(expected))) if data[at] != expected[at]]
    return f"{len(data)} bytes for {len(expected)}, {len(differ)} of them others, from {differ[:1]} to {differ[-1:]}"


class Both:
    """The target's tree and the local one."""

    def __init__(self, target: Target, place: Path, local: Path) -> None:
        self._target = target
        self.roots = (place, local)
        self.sides = [(Side(place / f"t{n}"), Side(local / f"t{n}")) for n in range(THREADS)]
        for root, n in itertools.product(self.roots, range(THREADS)):
            (root / f"t{n}").mkdir(parents=True)

    def run(self, programs: tuple[list[Operation], ...], pool: ThreadPoolExecutor) -> None:
        def work(n: int) -> list[tuple[Operation, Any, Any]]:
            ours, theirs = self.sides[n]
            return [(operation, ours.do(operation), theirs.do(operation)) for operation in programs[n]]

        working = [pool.submit(work, n) for n in range(THREADS)]
        wait(working)
        for n, done in enumerate(working):
            for operation, ours, theirs in done.result():
                assert ours == theirs, (n, operation)

    def move(self, moves: list[tuple[int, str, int, str, bool]]) -> None:
        for source, name, target, new, as_link in moves:
            come = []
            for root in self.roots:
                do = os.link if as_link else os.rename
                named = {"follow_symlinks": False} if as_link else {}
                come.append(attempt(do, root / f"t{source}" / name, root / f"t{target}" / new, **named))
            assert come[0] == come[1], (source, name, target, new, as_link)

    def disturb(self, number: int) -> None:
        if self._target.disturb:
            name = sorted(self._target.disturb)[number % len(self._target.disturb)]
            note(f"disturbed: {name}")
            self._target.disturb[name]()
            # A daemon that has just begun learns of what is being written, and by whom, from the next call on it.
            for ours, _theirs in self.sides:
                for fd in ours.handles.values():
                    os.pread(fd, 1, 0)

    def compare(self) -> None:
        ours, theirs = describe(self.roots[0]), describe(self.roots[1])
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            assert ours[name] == expected, f"{name}: {explain(ours[name], expected)}"

    def close(self) -> None:
        for pair in self.sides:
            for side in pair:
                side.close()


@pytest.fixture
def local() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        yield Path(made)


def test_both_sides_are_the_same(file_system: Target, place: Path, local: Path) -> None:
    numbers = itertools.count()
    with ThreadPoolExecutor(THREADS) as pool:

        @settings(
            max_examples=400 if SOAK else 10,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if SOAK else [Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        @given(STEPS)
        def check(steps: list[Any]) -> None:
            run = next(numbers)
            roots = place / f"run{run}", local / f"run{run}"
            both = Both(file_system, *roots)
            try:
                for step, what in steps:
                    if step == "threads":
                        both.run(what, pool)
                    elif step == "move":
                        both.move(what)
                    else:
                        both.disturb(what)
                    both.compare()
            finally:
                both.close()
                for root in roots:
                    with suppress(OSError):
                        shutil.rmtree(root)

        check()
