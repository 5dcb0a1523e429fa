"""Paths in HDFS from keys, and the names of the temporaries that writing leaves beside them until it is done.

Pure functions; safe from any thread.
"""

import re

from alluxio_like import errors
from alluxio_like.types import to_bytes, to_str

_OURS = re.compile(r"\..*\.alluxio-like\.[0-9a-f]{32}", re.DOTALL)
_TOKEN = re.compile(r"[0-9a-f]{32}")
MAX_NAME_BYTES = 255


def get_name(key: str) -> str:
    """The last component."""
    return key.rpartition("/")[2]


def make_path(prefix: str, key: str) -> str:
    """The absolute path of a key below a mount's prefix. Raises NotFound for what HDFS has no path for, and for temporaries."""
    for part in key.split("/"):
        if part in {"", ".", ".."} or ":" in part or is_ours(part):
            raise errors.NotFound("HDFS has no such name", subject=repr(key))
    return f"/{prefix}{key}"


def is_ours(name: str) -> bool:
    """Whether it is the name of a temporary."""
    return _OURS.fullmatch(name) is not None


def make_temporary(path: str, token: str) -> str:
    """The path of the temporary of a write to `path`, in the same directory: encryption, erasure coding and quotas go by that."""
    if not _TOKEN.fullmatch(token):
        raise errors.InvalidArgument("a token is 32 hex digits", subject=token)
    parent, _, name = path.rpartition("/")
    rest = f".alluxio-like.{token}"
    kept = to_bytes(name)[: MAX_NAME_BYTES - 1 - len(rest)]
    while True:  # not within a character
        try:
            shown = kept.decode()
            break
        except UnicodeDecodeError:
            kept = kept[:-1]
    return f"{parent}/.{to_str(shown.encode())}{rest}"
