"""What a master that may start on any machine keeps beside the namespace: who the cluster is, and the mounts' secrets.

Owns two tables of the namespace's store: `cluster` (id, and a mark of the token) and `secret/MOUNT`. Used only where the store
outlives the machine (kv.open.is_shared); else both are files in the master's home.

The token itself is never stored: it is what opens the secrets. They lie encrypted (AES-256-GCM) under a key derived from it
(HKDF-SHA256), each bound to its cluster and mount. Who has the database and not the token has no credentials of a store; a master
that starts elsewhere is given the token's file, and refuses another one, before it serves.
"""

import base64
import json
import os
from collections.abc import Mapping

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.types import MountId

_CLUSTER = b"cluster"
_SECRET = b"secret/"
_NONCE_BYTES = 12


def lookup_cluster_id(txn: ReadTransaction) -> str | None:
    """The cluster's id, once a master has started on this store."""
    raw = txn.get(_CLUSTER)
    return str(json.loads(raw)["id"]) if raw is not None else None


def join(meta: MetaStore, cluster_id: str, token: str) -> None:
    """Note the cluster at its first start; later, see that the token is its own. Raises ConfigError."""

    def apply(txn: WriteTransaction) -> None:
        raw = txn.get(_CLUSTER)
        if raw is None:
            mark = base64.b64encode(_derive(token, cluster_id, "token mark")).decode()
            txn.put(_CLUSTER, json.dumps({"id": cluster_id, "token_mark": mark}).encode())
        elif base64.b64decode(json.loads(raw)["token_mark"]) != _derive(token, cluster_id, "token mark"):
            raise errors.ConfigError(
                f"the token is not that of cluster {cluster_id}, whose metadata this is: give --token-file with the token's file "
                "of the master that ran before",
                subject="token_file",
            )

    meta.write_now(apply)


def is_own_key(key: bytes) -> bool:
    """Whether a pair belongs to this module: it is of this kind of store alone, and sealed by the token."""
    return key == _CLUSTER or key.startswith(_SECRET)


class SecretsBox:
    """The mounts' secrets in a transaction: opened, and sealed."""

    def __init__(self, cluster_id: str, token: str) -> None:
        self._cluster_id = cluster_id
        self._key = _derive(token, cluster_id, "mount secrets")

    def get(self, txn: ReadTransaction, mount_id: MountId) -> Mapping[str, str]:
        """Raises Corrupt."""
        raw = txn.get(_make_key(mount_id))
        return {} if raw is None else self._open(mount_id, raw)

    def seal(self, mount_id: MountId, secrets: Mapping[str, str]) -> bytes:
        """What `get` opens."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self._key).encrypt(nonce, json.dumps(dict(secrets)).encode(), self._bind(mount_id))

    def _open(self, mount_id: MountId, raw: bytes) -> dict[str, str]:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            plain = AESGCM(self._key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], self._bind(mount_id))
        except InvalidTag:
            raise errors.Corrupt("a mount's secrets cannot be opened: mount it again with -o", subject=str(mount_id)) from None
        found: dict[str, str] = json.loads(plain)
        return found

    def _bind(self, mount_id: MountId) -> bytes:
        return f"{self._cluster_id}/{int(mount_id)}".encode()


class StoredSecrets:
    """`mount_table.Secrets` in the namespace's store."""

    def __init__(self, meta: MetaStore, cluster_id: str, token: str) -> None:
        self._box = SecretsBox(cluster_id, token)
        self._meta = meta

    def get(self, mount_id: MountId) -> Mapping[str, str]:
        with self._meta.read() as txn:
            return self._box.get(txn, mount_id)

    def put(self, txn: WriteTransaction, mount_id: MountId, secrets: Mapping[str, str]) -> None:
        """With the transaction that makes the mount."""
        if secrets:
            txn.put(_make_key(mount_id), self._box.seal(mount_id, secrets))
        else:
            txn.delete(_make_key(mount_id))

    async def forget(self, mount_id: MountId) -> None:
        await self._meta.write(lambda txn: txn.delete(_make_key(mount_id)))

    def keep_only(self, mount_ids: set[MountId]) -> None:
        """Remove those of mounts whose end came before they were forgotten; for the start."""

        def apply(txn: WriteTransaction) -> None:
            known = {_make_key(mount_id) for mount_id in mount_ids}
            for key, _ in list(txn.scan(_SECRET, _SECRET + b"\xff")):
                if key not in known:
                    txn.delete(key)

        self._meta.write_now(apply)


def _make_key(mount_id: MountId) -> bytes:
    return _SECRET + int(mount_id).to_bytes(4, "big")


def _derive(token: str, cluster_id: str, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose in one cluster."""
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise errors.ConfigError(
            "metadata in PostgreSQL needs cryptography: pip install 'alluxio-like[postgresql]'", subject="postgresql://"
        ) from None
    return HKDF(SHA256(), 32, cluster_id.encode(), f"alluxio-like {purpose}".encode()).derive(token.encode())
