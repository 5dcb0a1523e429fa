"""Secrets that are named instead of given: `file:/path` and `env:NAME`.

Owns how such a value is spelled, read, and read again when it has changed. The namespace and `mounts` hold the name alone;
whoever opens the store (master and workers) reads the secret where it runs. Secrets of Kubernetes are files of a mounted volume,
such as `file:/var/run/secrets/NAME/KEY`, which the kubelet replaces while pods run. Small local reads; a `Secrets` may be used
from any thread.
"""

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from alluxio_like import errors

_REFERENCE = re.compile(r"(env|file):(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_BYTES = 1 << 20


def is_reference(text: str) -> bool:
    """Whether a secret's value is a name."""
    return _REFERENCE.fullmatch(text) is not None


def check_reference(text: str) -> None:
    """Raises ValueError, with what would be right, for a name that cannot be one."""
    found = _REFERENCE.fullmatch(text)
    if found is None or (found[1] == "env" and not _NAME.fullmatch(found[2])) or (found[1] == "file" and found[2][:1] != "/"):
        raise ValueError("env:NAME or file:/absolute/path")


class Secrets:
    """The secrets that options name, by option; those given outright pass through."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"

    def __contains__(self, option: str) -> bool:
        return option in self._values

    @property
    def may_change(self) -> bool:
        """Whether one of them is in a file."""
        return any(text.startswith("file:") for text in self._values.values())

    def get(self, option: str) -> str:
        """What the option's secret is now; "" where the option is not given. Raises ConfigError where it cannot be had.

        A file is read when it has changed; while it is missing, as it is replaced, what it held before holds.
        """
        text = self._values.get(option, "")
        found = _REFERENCE.fullmatch(text)
        if found is None:
            return text
        if found[1] == "env":
            secret = os.environ.get(found[2], "")
            if not secret:
                raise errors.ConfigError(f"option {option}: the environment has no {found[2]} here", subject=option)
            return secret
        with self._lock:
            return self._read(option, Path(found[2]))

    def _read(self, option: str, path: Path) -> str:
        known = self._known.get(option)
        try:
            status = path.stat()
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if known is not None and known[0] == stamp:
                return known[1]
            with path.open("rb") as stream:
                secret = stream.read(_MAX_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            if known is not None:
                return known[1]
            why = error.strerror if isinstance(error, OSError) else "not a text"
            raise errors.ConfigError(f"option {option}: {path} cannot be read here ({why})", subject=option) from None
        if not secret and known is not None:
            return known[1]
        if not secret:
            raise errors.ConfigError(f"option {option}: {path} is empty", subject=option)
        self._known[option] = (stamp, secret)
        return secret
