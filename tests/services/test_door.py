"""The worker's door: who gets in, what they get, and how long it stays. Callers of other users are processes of their own."""

import asyncio
import contextlib
import gc
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache.door import FILES_FORMAT, HandedFile, enter_door, open_at_door
from alluxio_like.cache.store import CacheDirSpec, CacheStore, Role
from alluxio_like.clock import SystemClock
from alluxio_like.types import PAGE_BYTES, FileRef, Fingerprint, InodeId, MountId, VersionId, WorkerId
from alluxio_like.worker import door as worker_door
from alluxio_like.worker.door import Door, Guests, parse_guests
from tests.servers.processes import become
from tests.unit.worker_parts import wait_until

GUEST = 65534
STRANGER = 65533
SIZE = 3 * PAGE_BYTES + 77

CHILD = """
import json, os, socket, sys
path, request = sys.argv[1:]
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
text, fds, _, _ = socket.recv_fds(connection, 4096, 16)
print(json.dumps({"greeting": text.decode(), "fds": len(fds)}), flush=True)
if request:
    connection.sendall(request.encode() + b"\\n")
    text, fds, _, _ = socket.recv_fds(connection, 4096, 16)
    print(json.dumps({"answer": text.decode(), "fds": len(fds)}), flush=True)
    for command in sys.stdin:
        if command == "read\\n":
            print(json.dumps(os.pread(fds[0], 20, 0).decode()), flush=True)
        elif command == "write\\n":
            tries = {}
            for name, call in {
                "write": lambda: os.pwrite(fds[0], b"x", 0),
                "reopen": lambda: os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR),
                "truncate": lambda: os.ftruncate(fds[0], 0),
            }.items():
                try:
                    call()
                    tries[name] = "done"
                except OSError as error:
                    tries[name] = type(error).__name__
            print(json.dumps(tries), flush=True)
        elif command == "give back\\n":
            os.close(fds[0])
            connection.close()
            print("null", flush=True)
"""


def make_ref(inode: int, size: int = SIZE, token: str = "etag") -> FileRef:
    return FileRef(InodeId(inode), VersionId(1), MountId(1), f"key{inode}", Fingerprint(token, size))


def make_request(ref: FileRef) -> str:
    fields = {"request": 1, "open": [ref.inode, ref.version], "token": ref.fingerprint.token, "size": ref.size}
    return json.dumps(fields)


def make_content(ref: FileRef) -> bytes:
    seed = f"{ref.inode}/{ref.fingerprint.token}|".encode()
    return (seed * (ref.size // len(seed) + 1))[: ref.size]


class Caller:
    """A process of a user, at the door."""

    def __init__(self, door: Door, uid: int, ref: FileRef | None = None, gid: int | None = None) -> None:
        # The interpreter behind the virtual environment, which may be where other users cannot reach it.
        command = [os.path.realpath(sys.executable), "-I", "-c", CHILD, str(door.path), make_request(ref) if ref else ""]
        self.process = subprocess.Popen(
            [*become(uid, gid or uid), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    async def hear(self) -> Any:
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        return json.loads(line) if line else None

    async def ask(self, word: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return await self.hear()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)


@pytest.fixture
def home() -> Iterator[Path]:
    """A place that other users can reach, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="al-door-", dir="/var/tmp") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def store(home: Path) -> Iterator[CacheStore]:
    spec = CacheDirSpec(home / "cache", 1 << 30, allow_root_disk=True, keep_free_fraction=0.0)
    opened = CacheStore.open([spec], cluster_id="c", clock=SystemClock(), boot_id="boot")
    yield opened
    opened.close()


def fill(store: CacheStore, ref: FileRef, pages: int | None = None) -> None:
    content = memoryview(make_content(ref))
    file = store.create(ref, Role.HOME)
    for page in range(-(-ref.size // PAGE_BYTES) if pages is None else pages):
        file.write_pages(page, content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES])
    store.flush()


@asynccontextmanager
async def opened_door(store: CacheStore, home: Path, guests: Guests | None = None) -> AsyncIterator[Door]:
    door = Door(
        home,
        store.worker_id,
        lambda: "127.0.0.1:1",
        lambda: store.directory_fds,
        open_whole=lambda file_id, fingerprint: asyncio.to_thread(store.open_whole, file_id, fingerprint),
        guests=guests or Guests(frozenset({GUEST})),
    )
    await door.start()
    try:
        yield door
    finally:
        await door.stop()
    assert door.list_leases() == []
    assert not door.path.exists()


async def ask(door: Door, ref: FileRef, worker_id: WorkerId | None = None) -> HandedFile:
    return await asyncio.to_thread(open_at_door, str(door.path), ref, worker_id or door._worker_id)


async def test_its_own_user_gets_directories_and_may_ask_for_files(store: CacheStore, home: Path) -> None:
    fill(store, make_ref(1))
    async with opened_door(store, home) as door:
        greeting = await asyncio.to_thread(enter_door, str(door.path))
        assert (greeting.worker_id, greeting.address, greeting.pid) == (store.worker_id, "127.0.0.1:1", os.getpid())
        assert (len(greeting.directory_fds), greeting.files_only, greeting.takes_requests) == (1, False, True)
        for fd in greeting.directory_fds:
            os.close(fd)
        handed = await ask(door, make_ref(1))
        assert os.pread(handed.fd, SIZE, 0) == make_content(make_ref(1))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(handed.fd, b"x", 0)
        (lease,) = door.list_leases()
        assert (lease.pid, lease.uid, lease.file_id) == (os.getpid(), os.geteuid(), make_ref(1).file_id)
        handed.close()
        await wait_until(lambda: door.list_leases() == [])


async def test_what_is_not_wholly_there_is_not_handed_out(store: CacheStore, home: Path) -> None:
    fill(store, make_ref(1), pages=2)
    fill(store, make_ref(2))
    async with opened_door(store, home) as door:
        for ref in (make_ref(1), make_ref(2, token="other"), make_ref(3), make_ref(4, size=0)):
            with pytest.raises(errors.NotFound):
                await ask(door, ref)
        with pytest.raises(errors.Unavailable):
            await ask(door, make_ref(2), WorkerId("somebody else"))
        fill(store, make_ref(1))
        (await ask(door, make_ref(1))).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")
async def test_another_user_gets_single_files_if_it_is_named(store: CacheStore, home: Path) -> None:
    ref = make_ref(1)
    fill(store, ref)
    async with opened_door(store, home) as door:
        stranger = Caller(door, STRANGER, ref)
        assert await stranger.hear() == {"greeting": "", "fds": 0}
        stranger.kill()
        guest = Caller(door, GUEST, ref)
        said = await guest.hear()
        greeting = json.loads(said["greeting"])
        assert (greeting["format"], said["fds"]) == (FILES_FORMAT, 0)
        assert (await guest.hear())["fds"] == 1
        assert await guest.ask("read") == make_content(ref)[:20].decode()
        assert await guest.ask("write") == {"write": "OSError", "reopen": "PermissionError", "truncate": "OSError"}
        (lease,) = door.list_leases()
        assert (lease.pid, lease.uid) == (guest.process.pid, GUEST)
        # The file may be evicted no more, and one that must go is held, whole.
        assert store.remove([ref.file_id]).in_use == (ref.file_id,)
        store.remove([ref.file_id], force=True)
        usage = store.get_usage()[0]
        assert usage.held_files == 1
        # A file system may add blocks of its own.
        assert SIZE <= usage.held_bytes <= SIZE + (64 << 10)
        assert store.reap_held() == 0
        assert await guest.ask("read") == make_content(ref)[:20].decode()
        # The lease dies with its holder, however that dies.
        guest.kill()
        await wait_until(lambda: door.list_leases() == [])
        assert store.reap_held() > 0
        assert store.get_usage()[0].held_files == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")
async def test_users_may_be_named_by_their_groups(store: CacheStore, home: Path) -> None:
    fill(store, make_ref(1))
    async with opened_door(store, home, Guests(gids=frozenset({4242}))) as door:
        inside, outside = Caller(door, STRANGER, make_ref(1), gid=4242), Caller(door, STRANGER, make_ref(1))
        assert json.loads((await inside.hear())["greeting"])["format"] == FILES_FORMAT
        assert (await outside.hear())["greeting"] == ""
        assert (await inside.hear())["fds"] == 1
        assert await inside.ask("give back") is None
        await wait_until(lambda: door.list_leases() == [])
        inside.kill()
        outside.kill()


def test_a_descriptor_and_mappings_of_it_keep_the_file(store: CacheStore) -> None:
    ref = make_ref(1)
    fill(store, ref)
    fd, generation = store.open_whole(ref.file_id, ref.fingerprint)
    cached = store.lookup(ref.file_id)
    assert cached is not None
    assert cached.generation == generation
    assert store.remove([ref.file_id]).in_use == (ref.file_id,)
    assert store.punch_block(ref.file_id, 0) == 0
    mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    os.close(fd)
    # The mapping alone.
    assert store.remove([ref.file_id]).in_use == (ref.file_id,)
    assert mapped[:] == make_content(ref)
    # Replaced under it: another content of the same id, then freed; the mapping shows what it was made of.
    fill(store, make_ref(1, token="new"))
    store.remove([ref.file_id], force=True)
    assert mapped[:] == make_content(ref)
    assert store.reap_held() == 0
    mapped.close()
    assert store.reap_held() > 0


def test_a_killed_holder_lets_the_file_go(store: CacheStore) -> None:
    ref = make_ref(1)
    fill(store, ref)
    fd, _ = store.open_whole(ref.file_id, ref.fingerprint)
    # A process that has nothing but a copy of the descriptor, mapped, with the descriptor closed.
    code = "import mmap, os, sys; m = mmap.mmap(int(sys.argv[1]), 0, prot=mmap.PROT_READ); os.close(int(sys.argv[1])); "
    code += "print(m[:5].decode(), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", code, str(fd)], pass_fds=(fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        os.close(fd)
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == make_content(ref)[:5].decode()
        assert store.remove([ref.file_id]).in_use == (ref.file_id,)
        holder.kill()
    assert store.remove([ref.file_id]).files == 1


# releases that know less


def enter_as_before(path: str) -> Any:
    """What the release before did."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(path)
        text, fds, _, _ = socket.recv_fds(connection, 4096, 253)
        for fd in fds:
            os.close(fd)
        if not text.endswith(b"\n"):
            return "shut"
        message = json.loads(text)
        return "too new" if message["format"] > 1 else (message["worker_id"], message["address"], len(fds))


async def test_an_older_client_gets_directories_as_before(store: CacheStore, home: Path) -> None:
    async with opened_door(store, home) as door:
        for _ in range(3):
            assert await asyncio.to_thread(enter_as_before, str(door.path)) == (store.worker_id, "127.0.0.1:1", 1)
        await wait_until(lambda: not door._callers)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")
async def test_an_older_client_of_another_user_is_told_to_stay_out(store: CacheStore, home: Path) -> None:
    async with opened_door(store, home) as door:
        guest = Caller(door, GUEST)
        # Its parser refuses what is above 1, in words; it reads through the worker then.
        assert json.loads((await guest.hear())["greeting"])["format"] > 1
        guest.kill()


async def test_an_older_workers_door_is_entered_as_before_and_asked_nothing(store: CacheStore, home: Path) -> None:
    path = str(home / "old.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    has_served = threading.Event()

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                text = json.dumps({"format": 1, "worker_id": "w", "address": "a:1", "pid": 5}).encode() + b"\n"
                socket.send_fds(connection, [text], store.directory_fds)
            has_served.set()

    thread = threading.Thread(target=serve)
    thread.start()
    greeting = await asyncio.to_thread(enter_door, path)
    assert (greeting.files_only, greeting.takes_requests, len(greeting.directory_fds)) == (False, False, 1)
    for fd in greeting.directory_fds:
        os.close(fd)
    assert await asyncio.to_thread(has_served.wait, 60), "the other end is closed"
    gc.collect()  # what earlier tests left is not to be closed in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(errors.Unavailable, match="takes no requests"):
        await asyncio.to_thread(open_at_door, path, make_ref(1), WorkerId("w"))
    thread.join()
    listener.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1


# bad manners


@pytest.mark.parametrize("line", [b"rubbish\n", b"{}\n", b'{"request": 2, "open": [1, 1]}\n', b"x" * 9000, b"\n", b"[1]\n"])
async def test_rubbish_is_refused(store: CacheStore, home: Path, line: bytes) -> None:
    async with opened_door(store, home) as door:

        def knock() -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(str(door.path))
                _, fds, _, _ = socket.recv_fds(connection, 4096, 10)
                for fd in fds:
                    os.close(fd)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(line)
                    return connection.recv(4096)
                return b""

        answer = await asyncio.to_thread(knock)
        assert answer == b"" or json.loads(answer)["error"] == "invalid_argument"
        fill(store, make_ref(1))
        (await ask(door, make_ref(1))).close()


async def test_who_says_nothing_is_not_kept(store: CacheStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_door, "REQUEST_S", 0.1)
    async with opened_door(store, home) as door:

        def knock() -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(str(door.path))
                _, fds, _, _ = socket.recv_fds(connection, 4096, 10)
                for fd in fds:
                    os.close(fd)
                return connection.recv(4096)

        assert await asyncio.to_thread(knock) == b""
        await wait_until(lambda: not door._callers)


async def test_callers_are_bounded(store: CacheStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_door, "MAX_CALLERS", 4)
    fill(store, make_ref(1))
    async with opened_door(store, home) as door:
        held = [await ask(door, make_ref(1)) for _ in range(2)]
        with pytest.raises(errors.Unavailable):
            await ask(door, make_ref(1))
        # Directories are given all the same.
        assert await asyncio.to_thread(enter_as_before, str(door.path)) == (store.worker_id, "127.0.0.1:1", 1)
        held.pop().close()
        await wait_until(lambda: len(door._callers) == 1)
        (await ask(door, make_ref(1))).close()
        held.pop().close()


async def test_stopping_the_door_leaves_descriptors_good(store: CacheStore, home: Path) -> None:
    fill(store, make_ref(1))
    async with opened_door(store, home) as door:
        handed = await ask(door, make_ref(1))
        await door.stop()
        assert os.pread(handed.fd, 100, PAGE_BYTES) == make_content(make_ref(1))[PAGE_BYTES : PAGE_BYTES + 100]
        handed.close()


def test_users_are_named_or_numbered() -> None:
    assert parse_guests(["root", "65534", "@0"]) == Guests(frozenset({0, 65534}), frozenset({0}))
    assert not parse_guests([])
    with pytest.raises(errors.ConfigError, match="no user 'nobody-of-this-name'"):
        parse_guests(["nobody-of-this-name"])
    with pytest.raises(errors.ConfigError, match="no group '@nothing-of-this-name'"):
        parse_guests(["@nothing-of-this-name"])
