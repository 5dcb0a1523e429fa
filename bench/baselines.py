"""What our figures are held against, each as a process of its own: a bare obstore loop, readers of files.

    python -m bench.baselines fetch --endpoint URL --bucket B --dir DIR KEY...   ranges of 8 MiB, 8 in flight, into local files
    python -m bench.baselines sequential FILE...                                 read(1 MiB) to the end
    python -m bench.baselines random-files DIR --seed N                          open(p, 'rb').read() of every file, shuffled
    python -m bench.baselines held FILE                                          the same twice, once a line has come
    python -m bench.baselines upload FILE BUCKET                                 multipart upload, parts of 16 MiB, 8 in flight

Each prints one JSON line: bytes, files, seconds, cpu_seconds.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import time
from pathlib import Path

RANGE_BYTES = 8 << 20
IN_FLIGHT = 8


async def fetch(endpoint: str, bucket: str, directory: Path, keys: list[str]) -> tuple[int, int]:
    """Fetch objects whole into files named by their place in the list."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        bucket,
        endpoint=endpoint,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    limit = asyncio.Semaphore(IN_FLIGHT)
    loop = asyncio.get_running_loop()
    total = 0

    async def get_range(key: str, fd: int, start: int, stop: int) -> None:
        nonlocal total
        async with limit:
            result = await obstore.get_async(store, key, options={"range": (start, stop)})
            data = await result.bytes_async()
            await loop.run_in_executor(None, os.pwrite, fd, data, start)
            total += len(data)

    async def get_object(number: int, key: str, size: int) -> None:
        fd = os.open(directory / str(number), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        try:
            starts = range(0, size, RANGE_BYTES)
            await asyncio.gather(*(get_range(key, fd, start, min(start + RANGE_BYTES, size)) for start in starts))
        finally:
            os.close(fd)

    sizes = {}
    for page in obstore.list(store, prefix=keys[0].rpartition("/")[0]):
        for meta in page:
            sizes[meta["path"]] = meta["size"]
    objects = asyncio.Semaphore(IN_FLIGHT)

    async def guarded(number: int, key: str) -> None:
        async with objects:
            await get_object(number, key, sizes[key])

    await asyncio.gather(*(guarded(number, key) for number, key in enumerate(keys)))
    return total, len(keys)


def upload(path: Path, bucket: str) -> tuple[int, int]:
    """One file to the store of the environment (AWS_*), by obstore's own multipart upload."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(bucket, endpoint=os.environ["AWS_ENDPOINT_URL"], region="us-east-1", client_options={"allow_http": True})
    obstore.put(store, "bare.bin", path, use_multipart=True, chunk_size=16 << 20, max_concurrency=IN_FLIGHT)
    return path.stat().st_size, 1


def read_sequentially(paths: list[Path], *, forget: bool) -> tuple[int, int]:
    """Read files from start to end, 1 MiB a call; `forget`: without what the kernel has cached under these paths."""
    total = 0
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            if forget:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := file.readinto(buffer):
                total += count
    return total, len(paths)


def read_held(path: Path) -> tuple[int, list[float]]:
    """Read a file to its end, twice, through a descriptor that was opened before a line came on standard input; bytes, and the
    seconds of each time. What the kernel has of it is dropped before the second."""
    buffer = bytearray(1 << 20)
    seconds = []
    with open(path, "rb", buffering=0) as file:
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(2):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            total, start = 0, time.perf_counter()
            while count := file.readinto(buffer):
                total += count
            seconds.append(time.perf_counter() - start)
    return total, seconds


def list_random_files(directory: Path, seed: int) -> list[str]:
    """Every file below a directory, in random order."""
    names = [os.path.join(root, name) for root, _, files in os.walk(directory) for name in files]  # noqa: PTH118
    names.sort()
    random.Random(seed).shuffle(names)
    return names


def read_files(names: list[str]) -> tuple[int, int]:
    """Read files whole, the way training code does it."""
    total = 0
    for name in names:
        with open(name, "rb") as file:
            total += len(file.read())
    return total, len(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fetch")
    command.add_argument("--endpoint", required=True)
    command.add_argument("--bucket", required=True)
    command.add_argument("--dir", type=Path, required=True)
    command.add_argument("--keys-from", type=Path, required=True)
    command = commands.add_parser("sequential")
    command.add_argument("files", type=Path, nargs="+")
    command.add_argument("--forget", action="store_true", help="drop the kernel's pages of the files first")
    command = commands.add_parser("random-files")
    command.add_argument("dir", type=Path)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--wait", action="store_true", help="say when the names are known, and wait for a line")
    command = commands.add_parser("upload")
    command.add_argument("file", type=Path)
    command.add_argument("bucket")
    command = commands.add_parser("held")
    command.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "held":
        total, seconds = read_held(arguments.file)
        print(json.dumps({"bytes": total, "seconds": seconds[0], "again_seconds": seconds[1]}))
        return
    names: list[str] = []
    if arguments.command == "random-files":
        names = list_random_files(arguments.dir, arguments.seed)
        if arguments.wait:
            print("ready", flush=True)
            sys.stdin.readline()
    start = time.perf_counter()
    if arguments.command == "fetch":
        import uvloop

        keys = arguments.keys_from.read_text().split()
        total, files = uvloop.run(fetch(arguments.endpoint, arguments.bucket, arguments.dir, keys))
    elif arguments.command == "upload":
        total, files = upload(arguments.file, arguments.bucket)
    elif arguments.command == "sequential":
        total, files = read_sequentially(arguments.files, forget=arguments.forget)
    else:
        total, files = read_files(names)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    json.dump({"bytes": total, "files": files, "seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
