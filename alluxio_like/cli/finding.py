"""Finds the master and turns what a person calls a path into a path of the namespace.

Owns the records of what runs on this machine: one small file for each `up` and each mount, in a directory that everybody of this
machine may read (root's) or only its user. No secrets are in them. A record counts only while its process lives, told by pid and
start time. Blocking calls on local files only.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from alluxio_like.errors import InvalidArgument, NotFound

_SYSTEM_DIR = Path("/run/alluxio-like")


@dataclass(frozen=True, slots=True)
class Record:
    """A running `up` or mount. `mountpoint` is empty where there is none; `path` is what of the namespace it shows."""

    pid: int
    start_ticks: int
    master: str
    home: str = ""
    mountpoint: str = ""
    path: str = "/"


def get_run_dirs() -> list[Path]:
    """Where records may be; the first one is where this process writes its own."""
    override = os.environ.get("ALLUXIO_LIKE_RUN_DIR")
    if override:
        return [Path(override)]
    if os.geteuid() == 0:
        return [_SYSTEM_DIR]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return [Path(runtime) / "alluxio-like", _SYSTEM_DIR]
    try:
        return [Path.home() / ".alluxio-like" / "run", _SYSTEM_DIR]
    except RuntimeError:
        # A user whom this machine does not know, as in many containers.
        return [_SYSTEM_DIR]


def get_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def write_record(kind: str, record: Record) -> Path | None:
    """Leave a record for commands to find; None where no directory can be written (commands then need --master)."""
    directory = get_run_dirs()[0]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{kind}-{record.pid}.json"
        temporary = file.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(record)))
        temporary.replace(file)
    except OSError:
        return None
    return file


def list_records() -> list[Record]:
    """The records of processes that live; those of others that may be removed are."""
    found = []
    for directory in get_run_dirs():
        for file in sorted(directory.glob("*.json")):
            try:
                record = Record(**json.loads(file.read_text()))
            except (OSError, ValueError, TypeError):
                continue
            if get_start_ticks(record.pid) == record.start_ticks:
                found.append(record)
            else:
                with contextlib.suppress(OSError):
                    file.unlink()
    return found


@contextlib.contextmanager
def recorded(kind: str, *, master: str, home: str = "", mountpoint: str = "", path: str = "/") -> Iterator[None]:
    """While this is entered, commands find this process."""
    pid = os.getpid()
    file = write_record(kind, Record(pid, get_start_ticks(pid) or 0, master, home, mountpoint, path))
    try:
        yield
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


def _find_mount(path: str, records: Iterable[Record]) -> Record | None:
    """The record of the mount that an absolute local path lies in, the innermost."""
    inside = [r for r in records if r.mountpoint and (path == r.mountpoint or path.startswith(r.mountpoint.rstrip("/") + "/"))]
    return max(inside, key=lambda record: len(record.mountpoint), default=None)


def to_local(path: str) -> str:
    """A path as an absolute one without . and .. and links in front; asks no file system below a mount of ours."""
    absolute = os.path.normpath(os.path.join(os.getcwd(), path))  # noqa: PTH109, PTH118 (bytes of names stay as they are)
    head, tail = os.path.split(absolute)
    # Links on the way to a mountpoint matter (/data -> /mnt/data); only the part outside of our mounts may be asked for.
    records = list_records()
    while head not in {"/", ""} and _find_mount(head, records):
        head, more = os.path.split(head)
        tail = os.path.join(more, tail)  # noqa: PTH118
    return os.path.normpath(os.path.join(os.path.realpath(head), tail))  # noqa: PTH118


def find_master(explicit: str, *paths: str, configured: bool = False) -> tuple[str, str]:
    """The master's address and in words where it comes from; an empty address leaves it to the configuration.

    In this order: `explicit`, ALLUXIO_LIKE_MASTER, the mount that one of `paths` lies in, what the configuration names (if it
    does: `configured`), the one `up` or mount that runs here, the configuration's default. Raises InvalidArgument when several
    run and nothing tells which is meant.
    """
    if explicit:
        return explicit, "given by --master"
    if os.environ.get("ALLUXIO_LIKE_MASTER"):
        return "", "given by ALLUXIO_LIKE_MASTER"
    records = list_records()
    for path in paths:
        if "://" not in path and (record := _find_mount(to_local(path), records)):
            return record.master, f"of the mount {record.mountpoint}"
    if configured:
        return "", "given by the configuration"
    masters = sorted({record.master for record in records})
    if len(masters) > 1:
        raise InvalidArgument(f"several run on this machine ({', '.join(masters)}): give --master HOST:PORT")
    if masters:
        return masters[0], "running here"
    return "", "by default"


def lookup_token_file(master: str) -> Path | None:
    """The token of the `up` on this machine whose master is at `master`, where this user may read it."""
    for record in list_records():
        file = Path(record.home) / "token"
        if record.master == master and record.home and os.access(file, os.R_OK):
            return file
    return None


def to_namespace_path(path: str) -> str:
    """What a person calls a path, as an absolute path of the namespace; a store's URI stays as it is.

    A path below one of our mounts on this machine is that file; any other absolute path is one of the namespace. Raises
    InvalidArgument for a relative path outside of all mounts.
    """
    if "://" in path:
        return path
    if not path:
        raise InvalidArgument("an empty path: the root is /")
    local = to_local(path)
    if record := _find_mount(local, list_records()):
        below = local[len(record.mountpoint.rstrip("/")) :].strip("/")
        return f"{record.path.rstrip('/')}/{below}".rstrip("/") or "/"
    if not path.startswith("/"):
        raise InvalidArgument(
            f"{path!r} is not below a mount of this machine: give an absolute path of the namespace", subject=path
        )
    return os.path.normpath("/" + path.lstrip("/"))


def match_uri(uri: str, mounts: Iterable[tuple[str, str]]) -> str:
    """The namespace's path of a store's URI, given (path, URI) of all mounts; raises NotFound."""
    wanted = uri.rstrip("/")
    best: tuple[int, str] | None = None
    for path, mounted in mounts:
        base = mounted.rstrip("/")
        if (wanted == base or wanted.startswith(base + "/")) and (best is None or len(base) > best[0]):
            best = len(base), path.rstrip("/") + wanted[len(base) :]
    if best is None:
        raise NotFound(f"no mount covers {uri}: mount it first with 'alluxio-like mount /PATH {uri}'", subject=uri)
    return best[1] or "/"
