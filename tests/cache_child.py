"""A process for tests of the cache: a reader of cache files, or a worker that is going to be killed.

Usage: cache_child.py reader SOCKET_FD DIRECTORY_FD… | cache_child.py worker SOCKET_FD PATH SEED. Lines of JSON go both ways.
"""

import json
import os
import random
import select
import socket
import sys
from pathlib import Path
from typing import IO, Any

from alluxio_like import errors
from alluxio_like.cache.reader import CacheReader, LocalFile
from alluxio_like.cache.store import CacheDirSpec, CacheStore, Role
from alluxio_like.clock import SystemClock
from alluxio_like.types import PAGE_BYTES, FileRef, Fingerprint, InodeId, MountId, PageRange, VersionId


def make_ref(inode: int, size: int, token: str) -> FileRef:
    return FileRef(InodeId(inode), VersionId(1), MountId(1), f"key{inode}", Fingerprint(token, size))


def make_page(ref: FileRef, page: int) -> bytes:
    seed = f"{ref.inode}/{ref.fingerprint.token}/{page}|".encode()
    length = min(PAGE_BYTES, ref.size - page * PAGE_BYTES)
    return (seed * (length // len(seed) + 1))[:length]


class Reader:
    """Obeys a test's commands on one CacheReader and one opened file."""

    def __init__(self, fds: list[int], commands: socket.socket) -> None:
        self.fds = fds
        self.commands = commands
        self.reader = CacheReader.open([os.dup(fd) for fd in fds])
        self.file: LocalFile | None = None

    def keep(self, file: LocalFile | None) -> bool:
        if self.file is not None:
            self.file.close()
        self.file = file
        return file is not None

    def obey(self, words: list[Any], stream: IO[str]) -> Any:
        command, *args = words
        if command == "lookup":
            return self.keep(self.reader.lookup(make_ref(*args)))
        if command == "open_filled":
            inode, size, directory, generation = args
            return self.keep(self.reader.open_filled(make_ref(inode, size, "etag"), directory, generation))
        if command == "fork":
            return self.fork(make_ref(*args))
        if command == "storm":
            return self.storm(args[0], stream)
        assert self.file is not None
        if command == "run":
            return self.file.get_present_run(*args)
        if command == "complete":
            return self.file.is_complete
        if command == "learn":
            return self.file.add_present(args[0], PageRange(args[1], args[2]), args[3])
        assert command == "read"
        try:
            return bytes(self.file.read(*args)).decode()
        except errors.AlluxioLikeError as error:
            return f"error {error.code}"

    def fork(self, ref: FileRef) -> str:
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            text = b"failed"
            try:
                file = self.reader.lookup(ref)
                assert file is not None
                text = bytes(file.read(0, ref.size))
                file.close()
                self.reader.close()
            finally:
                os.write(into, text)
                os._exit(0)
        os.close(into)
        os.waitpid(pid, 0)
        with os.fdopen(out, "rb") as pipe:
            return pipe.read().decode()

    def storm(self, count: int, stream: IO[str]) -> dict[str, Any]:
        rng = random.Random(os.getpid())
        wrong: list[str] = []
        reads = 0
        # (On a busy machine the end may come before there was anything to read.)
        while reads <= 50 or not select.select([self.commands], [], [], 0)[0]:
            ref = make_ref(rng.randint(1, count), 2 * PAGE_BYTES + 5, rng.choice("ab"))
            file = self.reader.lookup(ref)
            if file is None:
                continue
            for _ in range(4):
                offset = rng.randrange(ref.size)
                try:
                    data = bytes(file.read(offset, PAGE_BYTES))
                except errors.Corrupt as error:
                    wrong.append(str(error))
                    continue
                whole = b"".join(make_page(ref, page) for page in range(3))
                reads += len(data) > 0
                if data != whole[offset : offset + len(data)]:
                    wrong.append(f"{ref.inode} at {offset}: {len(data)} bytes")
            file.close()
        stream.readline()
        return {"wrong": wrong[:5], "reads": reads}


def run_reader(commands: socket.socket, fds: list[int]) -> None:
    stream = commands.makefile("rw")
    reader = Reader(fds, commands)
    for line in iter(stream.readline, ""):
        stream.write(json.dumps(reader.obey(json.loads(line), stream)) + "\n")
        stream.flush()


def run_worker(stream: IO[str], path: Path, seed: int) -> None:
    specs = [CacheDirSpec(path / name, 64 << 20, allow_root_disk=True, keep_free_fraction=0.0) for name in ("d0", "d1")]
    store = CacheStore.open(specs, cluster_id="c", clock=SystemClock(), boot_id="boot")
    rng = random.Random(seed)

    def say(word: object) -> None:
        stream.write(json.dumps(word) + "\n")
        stream.flush()

    say("ready")
    stream.readline()
    for turn in range(1_000_000):
        ref = make_ref(rng.randint(1, 30), 2 * PAGE_BYTES, rng.choice("ab"))
        try:
            file = store.create(ref, Role.HOME)
            page = rng.randrange(2)
            file.write_pages(page, make_page(ref, page))
        except errors.NoSpace:
            store.remove([make_ref(inode, 0, "").file_id for inode in range(1, 10)])
        if turn % 7 == 0:
            store.flush()
        if turn % 11 == 0:
            store.remove([ref.file_id])
        say(turn)


def main() -> None:
    kind, fd, *rest = sys.argv[1:]
    commands = socket.socket(fileno=int(fd))
    if kind == "reader":
        run_reader(commands, [int(number) for number in rest])
    else:
        run_worker(commands.makefile("rw"), Path(rest[0]), int(rest[1]))


if __name__ == "__main__":
    main()
