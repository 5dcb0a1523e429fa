"""Another client of a CephFS, by the distribution's own Python binding: what changes files behind the back of the one under test.

Run by the system's python3 (`cephfs_client.py CONF FS`), it takes a line of JSON for each call, [name, argument...], and
answers with one. Bytes are latin-1 in it, paths too. `CephFsClient` is the tests' end. One thread at a time.
"""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

SYSTEM_PYTHON = "/usr/bin/python3"


class CephFsClient:
    """The process; paths are absolute in the file system."""

    def __init__(self, conf: Path, file_system: str) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "--", SYSTEM_PYTHON, __file__, str(conf), file_system]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(self, name: str, *arguments: Any) -> Any:
        """What the call gives; RuntimeError with its error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        sent = [argument.decode("latin-1") if isinstance(argument, bytes) else argument for argument in arguments]
        self._process.stdin.write(json.dumps([name, *sent]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the other client ended with {self._process.wait(60)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def put(self, path: str, data: bytes) -> None:
        """Make a file, or replace it by a new one; directories as needed."""
        self.call("put", _to_bytes(path), data)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def _to_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


class _Calls:
    def __init__(self, conf: str, file_system: str) -> None:
        import cephfs  # type: ignore[import-not-found]

        self.fs = cephfs.LibCephFS(conffile=conf)
        self.fs.mount(filesystem_name=file_system.encode())

    def put(self, path: bytes, data: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        self.make_directories(parent)
        self.write(parent + b"/.being-written", data)
        self.fs.rename(parent + b"/.being-written", path)

    def make_directories(self, path: bytes) -> None:
        if path:
            self.fs.mkdirs(path, 0o755)

    def write(self, path: bytes, data: bytes, offset: int = 0) -> None:
        fd = self.fs.open(path, "w" if not offset else "r+", 0o644)
        if data:  # the library aborts the process when it is to write nothing
            self.fs.write(fd, data, offset)
        self.fs.fsync(fd, 0)
        self.fs.close(fd)

    def open_and_write(self, path: bytes, data: bytes, offset: int) -> None:
        """Write without sync or close: what is written stays with this client for now."""
        fd = self.fs.open(path, "r+", 0o644)
        self.fs.write(fd, data, offset)

    def truncate(self, path: bytes, size: int) -> None:
        self.fs.truncate(path, size)

    def delete(self, path: bytes) -> None:
        self.fs.unlink(path)

    def remove_directory(self, path: bytes) -> None:
        self.fs.rmdir(path)

    def rename(self, source: bytes, target: bytes) -> None:
        self.fs.rename(source, target)

    def link(self, target: bytes, path: bytes) -> None:
        self.fs.symlink(target, path)

    def read(self, path: bytes) -> str:
        fd = self.fs.open(path, "r", 0)
        try:
            return b"".join(iter(lambda: self.fs.read(fd, -1, 1 << 20), b"")).decode("latin-1")
        finally:
            self.fs.close(fd)

    def list_names(self, path: bytes) -> list[str]:
        handle = self.fs.opendir(path)
        names = []
        while (entry := self.fs.readdir(handle)) is not None:
            names.append(entry.d_name.decode("latin-1"))
        self.fs.closedir(handle)
        return [name for name in names if name not in {".", ".."}]

    def walk(self, path: bytes) -> dict[str, str | None]:
        """All below a directory, by path from there: the bytes of files, None of directories."""
        found: dict[str, str | None] = {}
        for name in self.list_names(path):
            below = path + b"/" + name.encode("latin-1")
            if stat.S_ISDIR(self.fs.stat(below).st_mode):
                found |= {name: None, **{f"{name}/{rest}": data for rest, data in self.walk(below).items()}}
            else:
                found[name] = self.read(below)
        return found

    def get_attribute(self, path: bytes, name: str) -> str:
        return str(self.fs.getxattr(path, name.decode("latin-1") if isinstance(name, bytes) else name).decode("latin-1"))

    def set_mode(self, path: bytes, mode: int) -> None:
        self.fs.chmod(path, mode)


def main() -> None:
    """Answer calls until the input ends."""
    calls = _Calls(*sys.argv[1:])
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        arguments = [argument.encode("latin-1") if isinstance(argument, str) else argument for argument in arguments]
        try:
            answer: dict[str, Any] = {"value": getattr(calls, name)(*arguments)}
        except Exception as error:  # noqa: BLE001 - it is the caller's
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
