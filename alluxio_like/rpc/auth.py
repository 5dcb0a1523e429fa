"""The cluster's token: who must show it, and reading it from its file.

Owns the list of methods that only services and whoever runs the cluster may call: what services ask of each other, and changes of
the mount table (with a mount of file:/// anybody who can connect would read what services can). Pure but for reading the file.
"""

import hmac
import os
from pathlib import Path

from alluxio_like.errors import ConfigError

TOKEN_KEY = "alluxio-token"

_PACKAGE = "alluxio_like.rpc.v1"
_PROTECTED_METHODS = frozenset(
    f"/{_PACKAGE}.{name}"
    for name in (
        "Mounts/Mount",
        "Mounts/Unmount",
        "Mounts/SetSyncInterval",
        "Mounts/GetMountSecrets",
        "Mounts/Restore",
        "Workers/Register",
        "Workers/ReportBlocks",
        "Workers/Heartbeat",
        "Workers/Leave",
    )
)
_PROTECTED_SERVICES = tuple(f"/{_PACKAGE}.{name}/" for name in ("WorkerAdmin", "Changes", "Drafts"))


def needs_token(method: str) -> bool:
    """Whether a method (as in "/package.Service/Method") is for those alone who have the cluster's token."""
    return method in _PROTECTED_METHODS or method.startswith(_PROTECTED_SERVICES)


def is_token_right(shown: str | bytes, token: str) -> bool:
    """In constant time. Nobody is right where there is no token."""
    given = shown.encode() if isinstance(shown, str) else shown
    return bool(token) and hmac.compare_digest(given, token.encode())


def read_token(file: Path) -> str:
    """The token in a file. Raises ConfigError when it cannot be read, is empty, or others may read it.

    A group may read what is root's: Kubernetes gives a pod that is not root its Secrets so.
    """
    try:
        status = file.stat()
        token = file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigError(f"cannot read the cluster's token from {file}: {reason}", subject=str(file)) from error
    if status.st_mode & (0o077 if status.st_uid or not os.geteuid() else 0o037):
        raise ConfigError(f"the token file {file} is open to others: chmod 600 it", subject=str(file))
    if not token or not token.isprintable():
        raise ConfigError(f"the token file {file} holds no token: write one line of letters and digits", subject=str(file))
    return token
