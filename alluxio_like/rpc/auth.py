"""Tokens: which call needs which, and reading them from their files.

Owns the list of methods that only services and whoever runs the cluster may call: what services ask of each other, and changes of
the mount table (with a mount of file:/// anybody who can connect would read what services can). They need the cluster's token.
All else needs none, or, where tokens of clients are configured, one of those or the cluster's. Pure but for reading the files;
safe from any thread.
"""

import hmac
import os
from pathlib import Path

from alluxio_like.certificates import Renewed
from alluxio_like.errors import AccessDenied, ConfigError

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
        "Quotas/Set",
        "Quotas/Claim",
        "Quotas/Clear",
        "Snapshots/Create",
        "Snapshots/Delete",
        "Trash/Keep",
        "Trash/StopKeeping",
        "Trash/Restore",
        "Trash/Empty",
        "Workers/Register",
        "Workers/ReportBlocks",
        "Workers/Heartbeat",
        "Workers/Leave",
    )
)
_READING_METHODS = frozenset(
    f"/{_PACKAGE}.{name}" for name in ("Changes/ListUnpersisted", "Changes/GetXattrs", "Changes/ReadLink")
)
"""Of services below, what only tells what is there."""
_PROTECTED_SERVICES = tuple(f"/{_PACKAGE}.{name}/" for name in ("WorkerAdmin", "Changes", "Drafts", "Locks"))


def needs_token(method: str) -> bool:
    """Whether a method (as in "/package.Service/Method") is for those alone who have the cluster's token."""
    return method in _PROTECTED_METHODS or (method.startswith(_PROTECTED_SERVICES) and method not in _READING_METHODS)


class Guard:
    """Decides who may call what. `token` is the cluster's; "": nobody may call what needs it. `client_token_file` is read again
    when it changes; None: reading needs no token. Raises ConfigError."""

    def __init__(self, token: str, client_token_file: Path | None = None) -> None:
        self._token = token
        self._clients: Renewed[tuple[str, ...]] | None = None
        if client_token_file is not None:
            self._clients = Renewed([client_token_file], lambda: read_tokens(client_token_file))

    def check(self, method: str, shown: str | bytes) -> None:
        """Raises AccessDenied unless the token that was shown ("" for none) lets its bearer call a method."""
        if needs_token(method):
            if not _is_one_of(shown, (self._token,)):
                raise AccessDenied("the cluster's token is missing or wrong: set token_file to the master's")
        elif self._clients is not None and not _is_one_of(shown, (self._token, *self._clients.get())):
            raise AccessDenied(
                "this cluster asks its clients for a token, and none or a wrong one was shown: set token_file to a file with one"
            )


def _is_one_of(shown: str | bytes, tokens: tuple[str, ...]) -> bool:
    """In constant time for each. An empty token is nobody's."""
    given = shown.encode() if isinstance(shown, str) else shown
    return any(bool(token) and hmac.compare_digest(given, token.encode()) for token in tokens)


def read_token(file: Path) -> str:
    """The token in a file. Raises ConfigError when it cannot be read, is empty, or others may read it."""
    tokens = read_tokens(file)
    if len(tokens) > 1:
        raise ConfigError(f"the token file {file} holds {len(tokens)} lines: one token is one line", subject=str(file))
    return tokens[0]


def read_tokens(file: Path) -> tuple[str, ...]:
    """The tokens in a file, one a line. Raises ConfigError when it cannot be read, has none, or others may read it.

    A group may read what is root's: Kubernetes gives a pod that is not root its Secrets so.
    """
    try:
        status = file.stat()
        lines = [line.strip() for line in file.read_text("ascii").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise ConfigError(f"cannot read the token from {file}: {reason}", subject=str(file)) from error
    if status.st_mode & (0o077 if status.st_uid or not os.geteuid() else 0o037):
        raise ConfigError(f"the token file {file} is open to others: chmod 600 it", subject=str(file))
    tokens = tuple(line for line in lines if line)
    if not tokens or not all(token.isprintable() for token in tokens):
        raise ConfigError(f"the token file {file} holds no token: write one line of letters and digits", subject=str(file))
    return tokens
