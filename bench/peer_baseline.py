"""What reading from another worker is held against: `sendfile` on a bare TCP connection, nothing of ours in it.

    python -m bench.peer_baseline serve DIR                        prints its port; answers a file's number with its bytes
    python -m bench.peer_baseline stream PORT NUMBER SIZE --into FILE   one file, hashed page by page, written to a file
    python -m bench.peer_baseline files PORT COUNT SIZE --seed N   that many files in random order, one after the other
    python -m bench.peer_baseline latency PATH --count N           random 4 KiB reads of a file, one after the other, in seconds

Files of DIR are named by number. All but `serve` print one JSON line.
"""

import argparse
import json
import os
import random
import resource
import socket
import struct
import sys
import time
from pathlib import Path

import xxhash

PAGE_BYTES = 1 << 20
_CALL = struct.Struct("<IQ")


def serve(directory: Path) -> None:
    """Until standard input is closed: (number, bytes) asks for the first bytes of a file."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while call := connection.recv(_CALL.size, socket.MSG_WAITALL):
        number, size = _CALL.unpack(call)
        fd = os.open(directory / f"{number:06d}.bin", os.O_RDONLY)
        sent = 0
        while sent < size:
            sent += os.sendfile(connection.fileno(), fd, sent, size - sent)
        os.close(fd)


def stream(connection: socket.socket, number: int, size: int, into: Path) -> int:
    """Receive a file page by page, hash it, write it."""
    buffer = memoryview(bytearray(PAGE_BYTES))
    fd = os.open(into, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    connection.sendall(_CALL.pack(number, size))
    position = 0
    while position < size:
        page = buffer[: min(PAGE_BYTES, size - position)]
        _receive(connection, page)
        xxhash.xxh3_64_intdigest(page)
        os.pwrite(fd, page, position)
        position += len(page)
    os.close(fd)
    return position


def get_files(connection: socket.socket, count: int, size: int, seed: int) -> int:
    """Receive files one after the other."""
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    buffer = memoryview(bytearray(size))
    for number in numbers:
        connection.sendall(_CALL.pack(number, size))
        _receive(connection, buffer)
    return count * size


def read_at_random(path: Path, count: int, seed: int) -> list[float]:
    """Seconds of each of `count` reads of 4 KiB at random offsets, past the kernel's read-ahead."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    size = os.fstat(fd).st_size
    chance = random.Random(seed)
    taken = []
    for _ in range(count):
        offset = chance.randrange(size // 4096) * 4096
        start = time.perf_counter()
        data = os.pread(fd, 4096, offset)
        taken.append(time.perf_counter() - start)
        if len(data) != 4096:
            raise RuntimeError("a short read")
    os.close(fd)
    return taken


def _receive(connection: socket.socket, buffer: memoryview) -> None:
    have = 0
    while have < len(buffer):
        count = connection.recv_into(buffer[have:])
        if not count:
            raise RuntimeError("the server has gone")
        have += count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve")
    command.add_argument("dir", type=Path)
    command = commands.add_parser("stream")
    command.add_argument("port", type=int)
    command.add_argument("number", type=int)
    command.add_argument("size", type=int)
    command.add_argument("--into", type=Path, required=True)
    command = commands.add_parser("files")
    command.add_argument("port", type=int)
    command.add_argument("count", type=int)
    command.add_argument("size", type=int)
    command.add_argument("--seed", type=int, default=1)
    command = commands.add_parser("latency")
    command.add_argument("path", type=Path)
    command.add_argument("--count", type=int, default=2000)
    command.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.dir)
        return
    if arguments.command == "latency":
        json.dump({"seconds": read_at_random(arguments.path, arguments.count, arguments.seed)}, sys.stdout)
        return
    with socket.create_connection(("127.0.0.1", arguments.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        if arguments.command == "stream":
            total = stream(connection, arguments.number, arguments.size, arguments.into)
        else:
            total = get_files(connection, arguments.count, arguments.size, arguments.seed)
        seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    json.dump({"bytes": total, "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}, sys.stdout)


if __name__ == "__main__":
    main()
