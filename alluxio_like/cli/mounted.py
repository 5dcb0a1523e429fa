"""The mounts of this machine, and the books that their daemons keep.

Owns how they are found (/proc/self/mountinfo and an attribute of each mount's root) and asked (/jobs.json of the daemon). A mount
whose daemon is gone or stands still costs a few seconds and is said so. Blocking calls, each with a bound.
"""

import errno
import json
import os
import re
import ssl
import stat
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit, urlunsplit
from urllib.request import urlopen

from alluxio_like.errors import AlluxioLikeError, IsADirectory, NotFound, TimedOut, Unavailable

T = TypeVar("T")
Books = dict[str, Any]
"""What /jobs.json shows; see fuse/books_page.py."""

_FSTYPE = "fuse.alluxio_like"
_ASK_S = 5.0
_AT_ONCE = 16
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class LocalMount:
    """A mount of ours on this machine. `problem` says why its daemon cannot be asked; else `url` is where its HTTP server is."""

    mountpoint: str
    session: str = ""
    url: str = ""
    problem: str = ""


def list_local_mounts() -> list[LocalMount]:
    """All mounts of this machine that this process sees, those that do not answer included."""
    places = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] == _FSTYPE:
            places.append(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), left.split(" ")[4]))
    # At once, so that those that do not answer cost their time together.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(_look_at, dict.fromkeys(places)))


def _look_at(place: str) -> LocalMount:
    def ask() -> tuple[str, str]:
        names = ("session", "http")
        session, url = (os.getxattr(place, f"user.alluxio_like.{name}").decode() for name in names)
        return session, url

    try:
        session, url = _bounded(ask, "its daemon")
    except AlluxioLikeError as error:
        return LocalMount(place, problem=error.message)
    except OSError as error:
        known = {errno.ENOTCONN: "its daemon is gone", errno.ENODATA: "its daemon is of another release"}
        return LocalMount(place, problem=known.get(error.errno or 0, (error.strerror or str(error)).lower()))
    problem = "" if url else "its daemon serves no HTTP (http_bind is empty)"
    return LocalMount(place, session, url, problem)


def _bounded(call: Callable[[], T], what: str) -> T:
    """Call something that may hang in the kernel. Raises TimedOut; the call is then left to itself."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001  raised again by the caller
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_ASK_S)
    if failed:
        raise failed[0]
    if not found:
        raise TimedOut(f"{what} does not answer within {_ASK_S:g} s")
    return found[0]


def ask_books(mount: LocalMount, query: Mapping[str, str] = {}, *, ca: Path | None = None) -> Books:
    """The books of a mount. Raises Unavailable when they cannot be had, NotFound for a job or a file that they do not know."""
    if mount.problem:
        raise Unavailable(f"the mount {mount.mountpoint} cannot be asked: {mount.problem}", subject=mount.mountpoint)
    parts = urlsplit(mount.url)
    host = "127.0.0.1" if parts.hostname == "0.0.0.0" else "[::1]" if parts.hostname == "::" else parts.netloc.rpartition(":")[0]
    address = urlunsplit((parts.scheme, f"{host}:{parts.port}", "/jobs.json", urlencode(query), ""))
    context = None
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
        # Asked by its address on this machine, which no certificate names.
        context.check_hostname = False
    try:
        with urlopen(address, timeout=_ASK_S, context=context) as answer:
            books = json.load(answer)
    except HTTPError as error:
        said = _read_error(error)
        if query and error.code == 503:
            raise NotFound(said, subject=mount.mountpoint) from None
        raise Unavailable(f"the daemon of {mount.mountpoint}: {said}", subject=mount.mountpoint) from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"the daemon of {mount.mountpoint} does not answer at {mount.url}: {error}") from None
    if not isinstance(books, dict) or books.get("format") != 1:
        raise Unavailable(f"the daemon of {mount.mountpoint} is of another release: use its own programs")
    return books


def _read_error(error: HTTPError) -> str:
    try:
        with error:
            return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"answers {error.code}"


def find_mount(path: str, mounts: list[LocalMount]) -> LocalMount | None:
    """The mount that an absolute path lies in, the innermost."""
    inside = [one for one in mounts if path == one.mountpoint or path.startswith(one.mountpoint.rstrip("/") + "/")]
    return max(inside, key=lambda one: len(one.mountpoint), default=None)


def get_inode(path: str) -> int:
    """The inode number of a file on a mount. Raises NotFound, IsADirectory, Unavailable."""
    try:
        found = _bounded(lambda: Path(path).stat(), path)
    except FileNotFoundError:
        raise NotFound("no such file", subject=path) from None
    except OSError as error:
        raise Unavailable(f"{path}: {(error.strerror or str(error)).lower()}", subject=path) from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectory("a directory: give a file in it, or the number of the process that reads there", subject=path)
    return found.st_ino
