"""A master's metadata into one file, and back: what `backup` and `restore` do.

Owns what goes along with the pairs (the cluster's id, its token, the mounts' secrets, which lie elsewhere in a database than in a
home), and in which order a restore writes, so that one that was cut short is never served. What becomes of the pairs is in
master/core/restoring.py, the file's format in kv/dump.py. Blocks; one call a process.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alluxio_like import __version__, errors
from alluxio_like.cli.metadata import Metadata, check_metadata, open_metadata
from alluxio_like.kv import dump
from alluxio_like.kv.api import KeyValueStore, ReadTransaction
from alluxio_like.master import cluster_state
from alluxio_like.master.core import mounts, records, restoring
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.secrets_file import SecretsFile
from alluxio_like.rpc.auth import read_token

_BATCH = 10_000
_ALL = (b"\0", b"\xff")

Progress = Callable[[int, int], None]
"""Told how many pairs, and how many bytes of the file."""


def write_backup(file: Path, metadata: Metadata, *, token_file: Path | None, on_progress: Progress) -> tuple[int, int]:
    """Back up; pairs and bytes. Whether a master serves meanwhile makes no difference: it is the state of one moment.

    Raises Conflict (the file is there; a master on another machine has the database), ConfigError.
    """
    online = metadata.directory is not None and metadata.directory.exists()
    check_metadata(metadata, online=online)
    partial = file.with_name(file.name + ".partial")
    if file.exists():
        raise errors.AlreadyExists("the file is there already: give another name", subject=str(file))
    with open_metadata(metadata, online=online, instead="stop it") as store, store.read() as txn:
        if txn.get(records.KEY_FORMAT) is None:
            raise errors.ConfigError("there is no namespace: no master has started on it yet", subject=str(metadata.home or ""))
        if txn.get(records.KEY_RESTORING) is not None:
            raise errors.Corrupt("a restore into it was not finished: run `alluxio-like restore` again")
        header = _make_header(txn, metadata, token_file)
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            count = dump.write_dump(out, header, _list_pairs(txn), lambda pairs: on_progress(pairs, out.tell()))
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
    partial.rename(file)
    _sync_directory(file.parent)
    return count, size


def _list_pairs(txn: ReadTransaction) -> Iterator[tuple[bytes, bytes]]:
    """All but what the header has, and load jobs, whose plans lie elsewhere."""
    return ((key, value) for key, value in txn.scan(*_ALL) if not cluster_state.is_own_key(key) and not key.startswith(b"job"))


def _make_header(txn: ReadTransaction, metadata: Metadata, token_file: Path | None) -> dict[str, Any]:
    home = metadata.home
    cluster_id = cluster_state.lookup_cluster_id(txn)
    token = ""
    if token_file is not None:
        token = read_token(token_file)
    elif home is not None and (home / "token").exists():
        token = read_token(home / "token")
    ids = [mount.mount_id for mount in mounts.list_mounts(txn)]
    secrets: dict[str, Any] = {}
    if cluster_id is not None:
        if not token:
            raise errors.ConfigError(
                "the mounts' secrets in the database open with the cluster's token alone: give --token-file", subject="token_file"
            )
        reader = cluster_state.SecretsBox(cluster_id, token)
        secrets = {str(one): dict(reader.get(txn, one)) for one in ids}
    elif home is not None:
        cluster_id = (home / "cluster_id").read_text().strip()
        known = SecretsFile(home / "secrets.json")
        secrets = {str(one): dict(known.get(one)) for one in ids}
    return {
        "created_ns": time.time_ns(),
        "release": __version__,
        "namespace_format": records.FORMAT,
        "cluster_id": cluster_id,
        "token": token,
        "secrets": {one: found for one, found in secrets.items() if found},
    }


def read_facts(file: Path) -> dict[str, Any]:
    """Of a backup when, by which release and of which cluster it was made. Raises Corrupt, FormatTooNew."""
    with file.open("rb") as source:
        header = dump.read_header(source, str(file))
    return {name: header[name] for name in ("created_ns", "release", "cluster_id")}


def verify(file: Path, on_progress: Progress) -> int:
    """Read a backup to its end; how many pairs. Raises Corrupt."""
    count = 0
    with file.open("rb") as source:
        dump.read_header(source, str(file))
        for count, _ in enumerate(dump.read_pairs(source, str(file)), 1):
            if not count % _BATCH:
                on_progress(count, source.tell())
    return count


def restore(file: Path, metadata: Metadata, *, replace: bool, on_progress: Progress) -> int:
    """Restore; how many pairs. With `replace` what is in a home is moved aside first (`meta.before-TIME`), what is in a database
    is deleted. Raises Conflict (a master runs; something is there), Corrupt, FormatTooNew; then nothing is touched.
    """
    verify(file, lambda _pairs, _size: None)
    if metadata.home is not None:
        metadata.home.mkdir(parents=True, exist_ok=True)
        _move_aside(metadata, replace=replace)
    with file.open("rb") as source:
        header = dump.read_header(source, str(file))
        if header["namespace_format"] > records.FORMAT:
            raise errors.FormatTooNew(f"the backup was made by release {header['release']}: use that one", subject=str(file))
        if metadata.home is not None:
            _write_home(metadata.home, header, with_secrets=not metadata.url)
        with open_metadata(metadata, online=False, instead="stop it") as store:
            _make_room(store, replace=replace)
            count = 0
            pairs: list[tuple[bytes, bytes]] = []
            for pair in restoring.transform_all(dump.read_pairs(source, str(file))):
                pairs.append(pair)
                if len(pairs) == _BATCH:
                    count += _put(store, pairs)
                    on_progress(count, source.tell())
            count += _put(store, pairs)
            if metadata.url:
                _put_secrets(store, header)
            with store.write() as txn:
                restoring.finish(txn)
                txn.delete(records.KEY_RESTORING)
            store.flush()
    return count


def _move_aside(metadata: Metadata, *, replace: bool) -> None:
    """What is in a home; what a restore left there that was cut short goes."""
    directory = metadata.directory
    assert directory is not None and metadata.home is not None
    if metadata.url or not directory.exists():
        return
    try:
        with open_metadata(metadata, online=False, instead="stop it") as store, store.read() as txn:
            is_broken = txn.get(records.KEY_RESTORING) is not None
            is_empty = next(iter(txn.scan(*_ALL, limit=1)), None) is None
    except (errors.Corrupt, errors.FormatTooNew):
        is_broken = is_empty = False
    if is_broken or is_empty:
        return
    if not replace:
        raise errors.Conflict(
            "there is metadata already: restore into an empty home, or move it aside with --replace", subject=str(metadata.home)
        )
    directory.rename(metadata.home / f"meta.before-{time.strftime('%Y%m%dT%H%M%S')}")


def _make_room(store: KeyValueStore, *, replace: bool) -> None:
    with store.read() as txn:
        is_broken = txn.get(records.KEY_RESTORING) is not None
        is_empty = next(iter(txn.scan(*_ALL, limit=1)), None) is None
    if not is_empty and not is_broken and not replace:
        raise errors.Conflict("there is metadata already: take another database, or delete what is there with --replace")
    with store.write() as txn:
        txn.put(records.KEY_RESTORING, b"1")
    store.flush()
    while not is_empty:
        with store.write() as txn:
            keys = [key for key, _ in txn.scan(*_ALL, limit=_BATCH) if key != records.KEY_RESTORING]
            for key in keys:
                txn.delete(key)
        is_empty = not keys


def _put(store: KeyValueStore, pairs: list[tuple[bytes, bytes]]) -> int:
    count = len(pairs)
    with store.write() as txn:
        txn.put_many(pairs)
    pairs.clear()
    return count


def _write_home(home: Path, header: dict[str, Any], *, with_secrets: bool) -> None:
    """The cluster's id and token, where the home has none; the mounts' secrets."""
    for name, value in (("cluster_id", header["cluster_id"]), ("token", header["token"])):
        place = home / name
        if place.exists() and name == "cluster_id" and place.read_text().strip() != value:
            raise errors.Conflict(
                f"the home is that of cluster {place.read_text().strip()}, the backup of {value}: give another home",
                subject=str(home),
            )
        if value and not place.exists():
            _write_private(place, f"{value}\n")
    if with_secrets:
        _write_private(home / "secrets.json", json.dumps(header["secrets"]))


def _put_secrets(store: KeyValueStore, header: dict[str, Any]) -> None:
    if not header["token"]:
        raise errors.ConfigError("the backup was made without the cluster's token: mount the stores again with -o")
    meta = MetaStore(store)
    cluster_state.join(meta, header["cluster_id"], header["token"])
    stored = cluster_state.StoredSecrets(meta, header["cluster_id"], header["token"])
    with store.write() as txn:
        for mount in mounts.list_mounts(txn):
            stored.put(txn, mount.mount_id, header["secrets"].get(str(mount.mount_id), {}))


def _write_private(place: Path, text: str) -> None:
    temporary = place.with_name(place.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(place)
    _sync_directory(place.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
