"""Where the secrets of mounts lie.

Owns the file of secrets: by mount id, mode 0600, never in a log or a message. It is written before the mount commits, so a mount
never lacks its secrets; what a crash between the two leaves is removed at the next start. Where the namespace's store outlives
the machine they lie there, encrypted (cluster_state.py). Safe from any thread.
"""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from alluxio_like.kv.api import WriteTransaction
from alluxio_like.types import MountId


class Secrets(Protocol):
    """Where mounts' secrets lie: `SecretsFile`, or with the namespace (cluster_state.py)."""

    def get(self, mount_id: MountId) -> Mapping[str, str]: ...

    def put(self, txn: WriteTransaction, mount_id: MountId, secrets: Mapping[str, str]) -> None:
        """Durable when the transaction is, in which the mount is made or changed."""
        ...

    async def forget(self, mount_id: MountId) -> None: ...

    def keep_only(self, mount_ids: set[MountId]) -> None:
        """Remove the secrets of all other mounts."""
        ...


class SecretsFile:
    """Secrets by mount id, in one file that only its owner can read. Safe from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._secrets: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, mount_id: MountId) -> Mapping[str, str]:
        with self._lock:
            return dict(self._secrets.get(str(mount_id), {}))

    def put(self, txn: WriteTransaction, mount_id: MountId, secrets: Mapping[str, str]) -> None:
        """Durable when it returns, before the transaction is."""
        self._put(mount_id, secrets)

    async def forget(self, mount_id: MountId) -> None:
        self._put(mount_id, {})

    def _put(self, mount_id: MountId, secrets: Mapping[str, str]) -> None:
        with self._lock:
            changed = {**self._secrets, str(mount_id): dict(secrets)}
            if not secrets:
                # Nothing is left of it, nor in the file.
                del changed[str(mount_id)]
            self._replace(changed)

    def keep_only(self, mount_ids: set[MountId]) -> None:
        with self._lock:
            kept = {key: value for key, value in self._secrets.items() if int(key) in mount_ids}
            self._replace(kept)

    def _replace(self, secrets: dict[str, dict[str, str]]) -> None:
        if secrets == self._secrets:
            return
        temporary = self._path.with_name(self._path.name + ".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(secrets, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._secrets = secrets
