"""Objects that are overwritten, deleted, renamed and made again while they are read: every byte is checked.

A reader sees one content that was at that name, whole and unmixed, or ESTALE; never another name's bytes, never bytes that no
version has. Two mounts at once: one where the kernel reads whole files by itself, one where all reads come to the daemon. For 20
seconds; in the soak for five minutes.
"""

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alluxio_like import connect
from tests.cluster.conftest import StackMaker
from tests.cluster.test_leases import mount_again
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(600)]

SECONDS = 300.0 if os.environ.get("ALLUXIO_LIKE_TEST_SOAK") else 20.0
BLOCK = 4096
NAMES = [f"d{number % 3}/n{number}" for number in range(24)]
SIZES = (1, 100, BLOCK, 5 * BLOCK + 17, 110_000, 1 << 20, (1 << 20) + 1, 3_000_000)
LARGE = 12 << 20
"""Too large to be brought at its open: the first of it is read before the rest is there."""


def make_content(number: int, size: int) -> bytes:
    """A content that says its number in each 16 bytes, and where it is in each block."""
    blocks = (b"%08d%08d" % (number, block) * (BLOCK // 16) for block in range(-(-size // BLOCK)))
    return b"".join(blocks)[:size]


@dataclass
class Contents:
    """All contents there ever were: by number their size, by name the numbers."""

    sizes: dict[int, int] = field(default_factory=dict)
    history: dict[str, set[int]] = field(default_factory=dict)
    now: dict[str, int | None] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, size: int) -> int:
        with self.lock:
            number = len(self.sizes)
            self.sizes[number] = size
            self.history.setdefault(name, set()).add(number)
            return number


class Writer:
    """Changes objects of its own names, one after the other. A name's history grows before the store's does."""

    def __init__(self, server: S3Server, bucket: str, contents: Contents, names: list[str], seed: int) -> None:
        self._server, self._bucket, self._contents, self._names = server, bucket, contents, names
        self._random = random.Random(seed)
        self.changes: Counter[str] = Counter()

    def put(self, name: str) -> None:
        size = LARGE if self._random.random() < 0.06 else self._random.choice(SIZES)
        number = self._contents.add(name, size)
        self._server.put(self._bucket, name, make_content(number, size))
        self._contents.now[name] = number

    def change(self) -> None:
        contents, name = self._contents, self._random.choice(self._names)
        now = contents.now.get(name)
        kind = self._random.choice(("put", "put", "put", "delete", "rename")) if now is not None else "put"
        if kind == "put":
            self.put(name)
        elif kind == "delete":
            self._server.delete(self._bucket, name)
            contents.now[name] = None
        else:
            assert now is not None
            target = self._random.choice([other for other in self._names if other != name])
            contents.history.setdefault(target, set()).add(now)
            source = {"Bucket": self._bucket, "Key": name}
            self._server.client.copy_object(Bucket=self._bucket, Key=target, CopySource=source)
            self._server.delete(self._bucket, name)
            contents.now[target], contents.now[name] = now, None
        self.changes[kind] += 1


class Reader:
    """Opens names, reads them in one of several ways, and compares all of it."""

    def __init__(self, mount: Path, contents: Contents, seed: int) -> None:
        self._mount, self._contents = mount, contents
        self._random = random.Random(seed)
        self.seen: Counter[str] = Counter()

    def read_one(self) -> None:
        name = self._random.choice(NAMES)
        try:
            descriptor = os.open(self._mount / name, os.O_RDONLY)
        except FileNotFoundError:
            self.seen["absent"] += 1
            return
        except OSError as error:
            assert error.errno == errno.ESTALE, (name, error)
            self.seen["stale at open"] += 1
            return
        try:
            self._check(name, descriptor)
            self.seen["read"] += 1
        except OSError as error:
            assert error.errno == errno.ESTALE, (name, error)
            self.seen["stale"] += 1
        finally:
            os.close(descriptor)

    def _check(self, name: str, descriptor: int) -> None:
        first = os.pread(descriptor, 16, 0)
        if len(first) < 8:
            # Too short to tell its number.
            size = os.fstat(descriptor).st_size
            possible = {make_content(n, self._contents.sizes[n])[:16] for n in list(self._contents.history[name])}
            assert first in possible, (name, first)
            assert size == len(first)
            return
        number = int(first[:8])
        assert number in self._contents.history[name], f"{name} shows the content {number}, which was never there"
        expected = make_content(number, self._contents.sizes[number])
        assert os.fstat(descriptor).st_size == len(expected), (name, number)
        if self._random.random() < 0.5:
            at = 0
            while data := os.pread(descriptor, 1 << 18, at):
                assert data == expected[at : at + len(data)], (name, number, at)
                at += len(data)
            assert at == len(expected), (name, number, at)
            return
        for _ in range(6):
            at = self._random.randrange(len(expected) + 1)
            length = self._random.randrange(1, 200_000)
            data = os.pread(descriptor, length, at)
            assert data == expected[at : at + length], (name, number, at, length, len(data))
            # Held open, while it changes in the store.
            time.sleep(self._random.random() * 0.02)


def run_all(tasks: list[tuple[str, object]], seconds: float, is_enough: Callable[[], bool]) -> None:
    """Call each again and again, each in a thread of its own, until the time is up and it is enough, or one fails."""
    failures: list[BaseException] = []
    until_s = time.monotonic() + seconds

    def loop(step: object) -> None:
        assert callable(step)
        try:
            while not failures and (time.monotonic() < until_s or not is_enough()):
                assert time.monotonic() < until_s + 180, "it is not enough yet"
                step()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(step,), name=name) for name, step in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 240)
        assert not thread.is_alive(), f"{thread.name} hangs"
    if failures:
        raise failures[0]


def test_readers_of_changing_objects_see_one_version_or_estale(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    contents = Contents()
    # Each name has one writer, so that it is known what is at it in the end.
    writers = [Writer(s3_server, s3_bucket, contents, NAMES[part::2], seed=part) for part in range(2)]
    for part, writer in enumerate(writers):
        for name in NAMES[part::2]:
            writer.put(name)
    stack = make_stack("--sync-interval", "2s", "--cache-size", "1GB")
    with mount_again(stack, workplace, "--passthrough", "off") as second, connect(stack.master) as client:
        readers = [Reader(mount, contents, seed) for seed, mount in enumerate((stack.mountpoint, second) * 2)]
        random_ = random.Random(9)

        def sync() -> None:
            client.sync_path(f"/d{random_.randrange(3)}")
            time.sleep(0.1)

        tasks: list[tuple[str, object]] = [("sync", sync)]
        tasks += [(f"writer {number}", writer.change) for number, writer in enumerate(writers)]
        tasks += [(f"reader {number}", reader.read_one) for number, reader in enumerate(readers)]

        def is_enough() -> bool:
            seen = sum((Counter(reader.seen) for reader in readers), Counter())
            changes = sum((Counter(writer.changes) for writer in writers), Counter())
            missed = seen["stale"] + seen["stale at open"] + seen["absent"]
            return seen["read"] > 20 and missed > 0 and min(changes[kind] for kind in ("put", "delete", "rename")) > 5

        run_all(tasks, SECONDS, is_enough)
        client.sync_path("/", recursive=True)
        for mount in (stack.mountpoint, second):
            for name in NAMES:
                number = contents.now.get(name)

                def is_right(path: Path = mount / name, number: int | None = number) -> bool:
                    try:
                        data = path.read_bytes()
                    except FileNotFoundError:
                        return number is None
                    return number is not None and data == make_content(number, contents.sizes[number])

                wait_until(f"{name} as it is in the end", is_right, timeout_s=60)
    seen = sum((reader.seen for reader in readers), Counter())
    changes = sum((writer.changes for writer in writers), Counter())
    print(f"{dict(changes)} while {dict(seen)}")  # noqa: T201


def test_who_has_read_a_part_reads_on_where_the_bucket_keeps_versions(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    s3_server.client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    old, new = os.urandom(64 << 20), os.urandom(1 << 20)
    s3_server.put(s3_bucket, "d/a", old)
    mount = make_stack().mountpoint
    # Only the first of it comes before it is replaced.
    proxy.set_rules({"op": "GET", "key": "d/a", "range_start": 0}, {"op": "GET", "key": "d/a", "status": 503, "code": "SlowDown"})
    with open(mount / "d" / "a", "rb") as held, open(mount / "d" / "a", "rb") as late:
        assert os.pread(held.fileno(), BLOCK, 0) == old[:BLOCK]
        s3_server.put(s3_bucket, "d/a", new)
        proxy.set_rules()
        # Who has had nothing of it is to see what is there now.
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            os.pread(late.fileno(), BLOCK, 32 << 20)
        assert os.pread(held.fileno(), BLOCK, 60 << 20) == old[60 << 20 : (60 << 20) + BLOCK]
        assert (mount / "d" / "a").read_bytes() == new
        assert held.read() == old
