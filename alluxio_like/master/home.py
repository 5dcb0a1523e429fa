"""The master's home directory: its lock, the cluster's id and token.

Owns the files `lock`, `cluster_id` and `token` there. Used at the start, before the event loop has anything else to do.
"""

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Self

from alluxio_like import errors
from alluxio_like.rpc.auth import read_token


class Home:
    """A home that this process holds until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create it where needed and lock it. Raises Conflict when another process has it, naming that."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.ConfigError(f"cannot use {path} as home: {error.strerror}", subject=str(path)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise errors.Conflict(
                f"another master (pid {holder}) uses the home {path}: stop it, or give another --home", subject=str(path)
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        return cls(path, lock)

    def get_cluster_id(self) -> str:
        """The id given to the cluster at its first start."""
        return self._get_or_create("cluster_id", lambda: secrets.token_hex(8))

    def has_token(self) -> bool:
        """Whether a token was made or put here before."""
        return (self.path / "token").exists()

    def get_token(self, configured: Path | None) -> tuple[str, Path]:
        """The cluster's token and its file: the configured one (which must exist), or one made here at the first start."""
        if configured is not None:
            return read_token(configured), configured
        self._get_or_create("token", lambda: secrets.token_hex(32))
        return read_token(self.path / "token"), self.path / "token"

    def _get_or_create(self, name: str, make: Callable[[], str]) -> str:
        file = self.path / name
        if not file.exists():
            temporary = self.path / f"{name}.new"
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(make() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        return file.read_text().strip()

    def close(self) -> None:
        """Let others have it."""
        os.close(self._lock)
