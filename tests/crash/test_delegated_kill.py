"""Directories that a program fills as soon as it has made them, so that the master hears of the files later: kill -9 of the
daemon, the worker, the master and all at once, and another mount that looks at every moment. What was closed is there, with what
was written, by the name that was given last, whoever looks; nothing else is."""

import itertools
import os
import random
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.test_leases import read_metrics
from tests.cluster.writing import list_names, mounted_again, start_written, wait_until
from tests.crash.test_writing_crash import Running
from tests.servers.whole import assert_whole_disks

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(0 if "ALLUXIO_LIKE_TEST_SOAK" in os.environ else 300),
]

KILLS = int(os.environ.get("CRASH_RUNS", "200" if "ALLUXIO_LIKE_TEST_SOAK" in os.environ else "6"))
SEED = int(os.environ.get("CRASH_SEED", "1"))
SERVICES = [("daemon",), ("workers",), ("master",), ("daemon", "workers"), ("daemon", "workers", "master")]


@pytest.fixture
def running(workplace: Path) -> Iterator[Running]:  # noqa: F811
    (workplace / "store").mkdir()
    with start_written(workplace, f"file://{workplace / 'store'}", {}, "back") as stack:
        yield Running(stack, workplace)
        assert_whole_disks(workplace / "home", online=True)
    assert_whole_disks(workplace / "home")


def make_data(name: str) -> bytes:
    chosen = random.Random(name)
    return chosen.randbytes(chosen.choice([0, 1, 700, 5000, 70_000]))


def count_published(running: Running) -> float:
    metrics = read_metrics(running.stack.ready["master"]["http_address"])
    return metrics["alluxio_like_files_published_total", ()]


class Filler:
    """Makes directories and fills them, as tar does; knows what was acknowledged."""

    def __init__(self, place: Path, files: int = 40) -> None:
        self.place = place
        self.files = files
        self.closed: dict[str, tuple[int, int]] = {}
        """By path, mode and mtime."""
        self.tried: set[str] = set()
        self.gone: set[str] = set()
        """Names that files had before."""
        self.failed: list[str] = []

    def run(self, is_over: Callable[[], bool]) -> None:
        for number in itertools.count():
            if is_over():
                return
            directory = f"d{number:04d}"
            try:
                (self.place / directory).mkdir()
            except OSError as error:
                self.failed.append(f"{directory}: {error}")
                continue
            for file in range(self.files):
                if is_over():
                    return
                self.make(f"{directory}/f{file:03d}")

    def make(self, name: str) -> None:
        """Some are made under other names, or in the directory before, and renamed: as editors, pip and git do."""
        kind = len(self.closed) % 4
        if kind > 1:
            directory, _, file = name.rpartition("/")
            first = (self.place / f"d{int(directory[1:]) - 1:04d}").is_dir() and kind == 2
            self.write(name, f"d{int(directory[1:]) - 1:04d}/{file}.tmp" if first else f"{name}.tmp")
        else:
            self.write(name, name)

    def write(self, name: str, made_as: str) -> None:
        self.tried |= {name, made_as}
        mode, mtime = (0o640, 1_600_000_000 + len(self.tried)) if len(self.tried) % 3 else (0o600, 0)
        try:
            fd = os.open(self.place / made_as, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(fd, make_data(name))
                if mtime:
                    os.utime(fd, (mtime, mtime))
                    os.fchmod(fd, mode)
            finally:
                os.close(fd)
            if made_as != name:
                (self.place / made_as).rename(self.place / name)
                self.gone.add(made_as)
        except OSError as error:
            self.failed.append(f"{name}: {error}")
            return
        self.closed[name] = mode, mtime

    def check(self, place: Path) -> int:
        """What was closed by now is there, as any mount shows it; how many."""
        closed = dict(self.closed)
        for name, (mode, mtime) in closed.items():
            found = (place / name).read_bytes()
            assert found == make_data(name), f"{name} has {len(found)} bytes, not {len(make_data(name))}; {self.failed[-5:]}"
            status = (place / name).stat()
            assert stat.S_IMODE(status.st_mode) == mode, name
            assert mtime in (0, int(status.st_mtime)), name
        return len(closed)

    def check_names(self, place: Path) -> None:
        """And nothing else."""
        found = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}
        assert set(self.closed) <= found <= self.tried - self.gone, (found - self.tried, set(self.closed) - found)


def test_what_was_closed_is_there_after_each_kill(running: Running) -> None:
    (running.place / "p").mkdir()
    filler, is_over = Filler(running.place / "p"), threading.Event()
    thread = threading.Thread(target=filler.run, args=(is_over.is_set,))
    thread.start()
    chosen = random.Random(SEED)
    try:
        for number in range(KILLS):
            time.sleep(chosen.uniform(0.2, 1.5))
            services = SERVICES[number % len(SERVICES)]
            running.kill(*services)
            filler.check(filler.place)
    finally:
        is_over.set()
        thread.join()
    filler.check(filler.place)
    filler.check_names(filler.place)
    assert len(filler.closed) > 20, filler.failed
    running.stack.run_command("alluxio-like", "fs", "wait", "/data", "--timeout", "120s")
    store = running.store / "p"
    assert {name: (store / name).read_bytes() for name in filler.closed} == {name: make_data(name) for name in filler.closed}


def test_another_mount_sees_what_was_closed_at_every_moment(running: Running, workplace: Path) -> None:  # noqa: F811
    (running.place / "p").mkdir()
    filler, is_over = Filler(running.place / "p", files=200), threading.Event()
    thread = threading.Thread(target=filler.run, args=(is_over.is_set,))
    with mounted_again(running.stack, workplace) as other:
        place = other / "data/p"
        thread.start()
        try:
            wait_until(lambda: len(filler.closed) > 5, "the first files")
            seen = 0
            for number in range(12):
                known = sorted(filler.closed)
                directory = known[-1].partition("/")[0]
                listed = list_names(place / directory)
                assert {name.partition("/")[2] for name in known if name.startswith(directory)} <= set(listed)
                seen = filler.check(place)
                if number == 6:
                    running.kill("daemon")
        finally:
            is_over.set()
            thread.join()
        filler.check(place)
        filler.check_names(place)
        assert not filler.failed, "a daemon that dies is not noticed"
        assert seen > 20
        # And the other way round: what is made there is seen here.
        (place / "other").mkdir()
        for number in range(100):
            (place / "other" / f"{number}").write_bytes(b"%d" % number)
            assert (filler.place / "other" / f"{number}").read_bytes() == b"%d" % number


def test_files_are_published_together_and_nothing_of_them_moves(running: Running) -> None:
    warm, place = running.place / "warm", running.place / "new"
    warm.mkdir()
    names = (warm / f"w{number}" for number in itertools.count())
    # The first ones are made as before, until there are drafts for others.
    wait_until(lambda: next(names).touch() or count_published(running) > 3, "the first is published")
    place.mkdir()
    subprocess.run(["sync", "-f", str(warm)], check=True)
    (warm / "w0").unlink()
    before = count_published(running)
    shown: dict[str, os.stat_result] = {}
    for number in range(100):
        file = place / f"f{number}"
        file.write_bytes(b"x" * number)
        shown[file.name] = file.stat()
    above = place.stat()
    wait_until(lambda: count_published(running) - before >= 100, "they are published")
    running.kill("daemon")  # nothing is known there but what the master says
    subprocess.run(["sync", "-f", str(place)], check=True)
    fields = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_ctime_ns")
    for name, status in shown.items():
        found = (place / name).stat()
        assert [getattr(found, field) for field in fields] == [getattr(status, field) for field in fields], name
    found = place.stat()
    assert [getattr(found, field) for field in fields] == [getattr(above, field) for field in fields]
