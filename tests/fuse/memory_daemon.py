"""The real daemon over a tree in memory, for tests of mounts without services; obeys JSON lines on stdin and answers each on
stdout.

Arguments: MOUNTPOINT READY_FILE JSON (settings: io_timeout_s, entry_timeout_s, path, never_now, big_files, many, fuse).
"""

import asyncio
import contextlib
import gc
import json
import sys
from pathlib import Path
from typing import Any

import uvloop

from alluxio_like.config import FuseConfig
from alluxio_like.errors import AlluxioLikeError, make_error
from alluxio_like.fuse.app import serve
from alluxio_like.fuse.memory import Content, MemoryBackend
from alluxio_like.fuse.nested import NestedMounts
from alluxio_like.fuse.session_kernel import Session as KernelSession
from alluxio_like.fuse.session_pyfuse3 import _Port
from alluxio_like.logs import setup_logging
from alluxio_like.metrics import Metrics
from alluxio_like.types import EVERYWHERE, Recall


def make_bytes(seed: int) -> Content:
    """Bytes that tell their own place: the 8-byte word at offset 8 n is seed + n, big-endian."""

    def content(offset: int, length: int) -> bytes:
        first, last = offset // 8, (offset + length + 7) // 8
        words = b"".join((seed + number).to_bytes(8, "big") for number in range(first, last))
        return words[offset - first * 8 :][:length]

    return content


def build(settings: dict[str, Any]) -> MemoryBackend:
    backend = MemoryBackend(
        valid_s=settings.get("valid_s", 5.0),
        io_timeout_s=settings.get("io_timeout_s", 30.0),
        page_entries=settings.get("page_entries", 1000),
        whole_dir=Path(settings["whole_dir"]) if "whole_dir" in settings else None,
        write_dir=Path(settings["write_dir"]) if "write_dir" in settings else None,
    )
    backend.never_now = settings.get("never_now", False)
    backend.add_file("/hello.txt", b"hello, world\n")
    backend.add_file("/empty", b"")
    backend.add_file("/dir/sub/deep.bin", bytes(range(256)) * 40)
    for name, size in settings.get("big_files", {}).items():
        backend.add_file(name, make_bytes(size), size)
    for name, count in settings.get("many", {}).items():
        backend.add_many(name, (f"sample-{number:07d}.bin" for number in range(count)), b"x" * 10)
    for name in settings.get("complete", ()):
        backend.complete_path(name)
    return backend


class Control:
    """Does what the test asks."""

    def __init__(self, backend: MemoryBackend) -> None:
        self.backend = backend
        self.recalls: list[asyncio.Future[None]] = []

    def obey(self, command: dict[str, Any]) -> Any:
        backend, faults = self.backend, self.backend.faults
        match command.pop("do"):
            case "add_file":
                return backend.add_file(command["path"], command["text"].encode())
            case "add_copy":
                return backend.add_file(command["path"], Path(command["of"]).read_bytes())
            case "add_raw_name":
                backend.add_many("/dir", [bytes.fromhex(command["name"]).decode("utf-8", "surrogateescape")], b"odd")
            case "remove":
                backend.remove(command["path"])
            case "set_owner":
                backend.set_owner(**command)
            case "stall":
                setattr(faults, command["what"], asyncio.Event())
            case "fail":
                setattr(faults, command["what"], make_error(command["code"], "as the test asked"))
            case "lift":
                for event in (faults.stall_reads, faults.stall_names, faults.stall_fills, faults.stall_creates):
                    if event is not None:
                        event.set()
                faults.stall_reads = faults.stall_names = faults.stall_fills = faults.fail_reads = faults.fail_names = None
                faults.stall_creates = faults.fail_changes = None
                faults.refuse_fills = False
            case "refuse_fills":
                faults.refuse_fills = True
            case "complete":
                backend.complete_path(command["path"])
            case "evict":
                backend.evict(command["path"])
            case "wake":
                # As if a request had made the device readable and vanished since.
                for found in [found for found in gc.get_objects() if isinstance(found, _Port | KernelSession)]:
                    if isinstance(found, KernelSession):
                        found._take()
                    else:
                        assert found._waiter is not None
                        found._wake(found._waiter)
            case "recall":
                assert backend.listener is not None
                directory = EVERYWHERE if command["path"] is None else backend.add_directory(command["path"])
                names = tuple(name.encode() for name in command.get("names", ()))
                recall = Recall(directory, names, all_names=command.get("all_names", False))
                self.recalls.append(asyncio.ensure_future(backend.listener([recall])))
            case "nested":
                (nested,) = (found for found in gc.get_objects() if isinstance(found, NestedMounts))
                return ["/".join(step.decode() for step in steps) for steps in nested.list_steps()]
            case "recalled":
                return [recall.done() for recall in self.recalls]
            case "counts":
                tasks = len(asyncio.all_tasks())
                counts = {"reads": backend.reads, "reads_now": backend.reads_now, "tasks": tasks}
                counts |= {"open": backend.open_readers, "fills": backend.fills}
                return {**counts, **backend.calls}
            case other:
                raise ValueError(other)
        return None


async def listen(control: Control) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(control.obey(json.loads(line))), flush=True)


async def main(mountpoint: str, ready_file: str, text: str) -> int:
    settings = json.loads(text)
    backend = build(settings)
    config = FuseConfig(
        mountpoint=Path(mountpoint),
        ready_file=Path(ready_file),
        path=settings.get("path", "/"),
        client={"io_timeout_s": settings.get("io_timeout_s", 30.0)},
        entry_timeout_s=settings.get("entry_timeout_s", 5.0),
        **settings.get("fuse", {}),
    )
    listening = asyncio.create_task(listen(Control(backend)))
    try:
        return await serve(config, backend, Metrics())
    except AlluxioLikeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


if __name__ == "__main__":
    setup_logging("fuse")
    sys.exit(uvloop.run(main(*sys.argv[1:])))
