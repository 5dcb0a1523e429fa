"""Extended attributes that say where a file's bytes are cached.

Owns their names and most of their text, and which other names programs may set. Pure functions; safe from any thread.

    user.alluxio_like.version     the version of the content, a decimal number; files only
    user.alluxio_like.cached      bytes cached at least once in the cluster, a decimal number; files only
    user.alluxio_like.locations   "address=bytes" of each worker that holds part of it, separated by commas; files only
    user.alluxio_like.passthrough how opens of the file are served now: "passthrough", or "cached: " and why; files only
    user.alluxio_like.session     "kernel with passthrough", "kernel" or "pyfuse3"; the mount's root only
    user.alluxio_like.http        where the daemon serves /metrics and /jobs.json, empty for nowhere; the mount's root only
"""

from typing import Final, Protocol

from alluxio_like.errors import NoData
from alluxio_like.fuse.backend import CacheState
from alluxio_like.types import Entry, Kind

PREFIX = b"user.alluxio_like."
VERSION = PREFIX + b"version"
CACHED = PREFIX + b"cached"
LOCATIONS = PREFIX + b"locations"
PASSTHROUGH = PREFIX + b"passthrough"
SESSION = PREFIX + b"session"
HTTP = PREFIX + b"http"

_SELINUX = b"security.selinux"
"""A label, of which FUSE has none: `ls -l` hears so once and does not ask for each name."""


class Serving(Protocol):
    """How the kernel is served."""

    def describe_session(self) -> str:
        """The session, in words."""
        ...

    async def describe_file(self, entry: Entry) -> str:
        """How an open of the file would be served now, in words. May wait for what was just brought to be in the index."""
        ...


class _Pyfuse3:
    @staticmethod
    def describe_session() -> str:
        return "pyfuse3"

    @staticmethod
    async def describe_file(_entry: Entry) -> str:
        return "cached: the pyfuse3 session has no passthrough"


PYFUSE3: Final = _Pyfuse3()


def is_known(name: bytes) -> bool:
    """Whether a name can exist on some inode; anything else is answered without asking anybody."""
    return name in (VERSION, CACHED, LOCATIONS, PASSTHROUGH, SESSION, HTTP)


def is_settable(name: bytes) -> bool:
    """Whether programs may set an attribute of that name."""
    return has_namespace(name) and not name.startswith(PREFIX)


def has_namespace(name: bytes) -> bool:
    """Whether there are attributes of such names at all."""
    return is_list(name) or (name.startswith((b"user.", b"trusted.", b"security.")) and name != _SELINUX)


def is_list(name: bytes) -> bool:
    """Whether it is an access control list: one for who may, or a directory's for what is made in it."""
    return name in (b"system.posix_acl_access", b"system.posix_acl_default")


def is_shown(name: bytes, uid: int) -> bool:
    """Whether listxattr(2) shows a user that name: trusted attributes are root's."""
    return uid == 0 or not name.startswith(b"trusted.")


def needs_cache_state(name: bytes) -> bool:
    """Whether the value depends on what is cached now."""
    return name in (CACHED, LOCATIONS)


def format_value(name: bytes, entry: Entry, state: CacheState | None) -> bytes:
    """The value of an attribute; `state` is there where `needs_cache_state`. Raises NoData for one that is not there."""
    if entry.attr.kind is Kind.FILE:
        if name == VERSION:
            return b"%d" % entry.attr.version
        if state is not None and name == CACHED:
            return b"%d" % state.cached_bytes
        if state is not None and name == LOCATIONS:
            copies = sorted(state.copies, key=lambda copy: (copy.address, copy.worker_id))
            return ",".join(f"{copy.address}={copy.cached_bytes}" for copy in copies).encode()
    raise NoData("no such extended attribute", subject=name.decode(errors="replace"))
