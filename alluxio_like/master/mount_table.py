"""The mounted stores: which are open, with which secrets, and what is known of their health.

Owns the open `Ufs` of each mount, and the memory of failures that keeps a store that is down from being asked by everybody. The
mount table itself is in the namespace's store (core/mounts.py), secrets are apart (secrets_file.py).

Used from the event loop alone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.kv.columns import Numbers
from alluxio_like.master.core import mounts as core
from alluxio_like.master.core import namespace, operations
from alluxio_like.master.core.model import NO_MOUNT, MountRecord
from alluxio_like.master.core.paths import show_name, split_path
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.master.secrets_file import Secrets
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import MountInfo, MountSecrets, MountSpec, SyncInterval
from alluxio_like.rpc.messages_writing import PolicyAt, WritePolicy
from alluxio_like.types import EVERYWHERE, InodeId, Kind, MountId, Recall, to_bytes, to_str
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import change_options, get_secret_names, parse_uri, split_secrets
from alluxio_like.ufs.writing import get_writable

log = logging.getLogger(__name__)

CHECKS_AT_ONCE = 8
"""Stores that are asked at once after a start; a guess."""
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 15.0
"""After failures in a row a store is asked at most so often by those who can do without it (guesses)."""


PLACE_OPTIONS = ("endpoint", "uid", "gid", "attrs")
"""Options that stay for a mount's life: other data would be under the same names, or inodes with two owners."""
_GIVES_CREDENTIALS = frozenset({"profile", "anonymous"})
"""Options that stand in for secrets."""

MAX_TROUBLES = 1000
_FLAT_SCHEMES = frozenset({"s3", "gs", "az"})
_MAX_KEY_BYTES = 1024
"""What S3, GCS and Azure take as a key."""
_MAX_PATH_BYTES = 4000
"""Of file systems that are asked by path: 4,095, less what the names of what is being written take."""
_MAX_WALKED_BYTES = 60_000
"""Of directories, which are walked step by step: so long that no path of the kernel's is longer (a guess)."""
_NOTHING = "nothing is there yet; if something should be, see that the bucket and the path in it are spelled right"
_OF_THE_WHOLE_STORE = (errors.StoreUnavailable, errors.StoreThrottled, errors.StoreMissing)


class UfsOpener(Protocol):
    """What ufs.open.open_ufs is; tests give others."""

    def __call__(
        self,
        uri: str,
        options: Mapping[str, str],
        *,
        secrets: Mapping[str, str],
        on_request: Callable[[str], None],
        io_timeout_s: float,
    ) -> Ufs: ...


@dataclass(slots=True)
class _Trouble:
    error: errors.AlluxioLikeError
    until_s: float
    backoff_s: float


class MountTable:
    """See the module."""

    def __init__(
        self,
        meta: MetaStore,
        secrets: Secrets,
        opener: UfsOpener,
        *,
        clock: Clock,
        metrics: Metrics,
        io_timeout_s: float,
        default_sync_interval_s: float,
        tell: Callable[[Iterable[Recall]], object],
        count_workers: Callable[[], int],
    ) -> None:
        """`tell` is told what a change of the table takes back of what clients know; `count_workers` counts those that live."""
        self._count_workers = count_workers
        self._meta = meta
        self._secrets = secrets
        self._opener = opener
        self._clock = clock
        self._metrics = metrics
        self._io_timeout_s = io_timeout_s
        self._default_interval_s = default_sync_interval_s
        self._tell = tell
        self._records: dict[MountId, MountRecord] = {}
        self._open: dict[MountId, Ufs] = {}
        self._troubles: dict[MountId, dict[InodeId | None, _Trouble]] = {}
        """By directory; None: what concerns the whole store."""
        self._intervals: dict[MountId, dict[str, float]] = {}
        """Of mounts where directories have intervals of their own, those, by their prefixes."""
        self._retired: list[Ufs] = []

    def restore(self) -> None:
        """Take up the stored mounts; no store is asked."""
        with self._meta.read() as txn:
            self._records = {record.mount_id: record for record in core.list_mounts(txn)}
            self._intervals = {m: found for m in self._records if (found := core.list_intervals(txn, m))}
        self._secrets.keep_only(set(self._records))

    def take_up(self) -> None:
        """Read the table again, after a change of it whose end nobody could tell: stores that were open stay so."""
        with self._meta.read() as txn:
            self._records = {record.mount_id: record for record in core.list_mounts(txn)}
        for mount_id in [mount_id for mount_id in self._open if mount_id not in self._records]:
            self._retired.append(self._open.pop(mount_id))

    # -- stores --------------------------------------------------------------------------------------------------------

    def get_ufs(self, mount_id: MountId) -> Ufs:
        """The open store of a mount. Raises NotFound, and ConfigError for options that this release no longer takes."""
        if mount_id not in self._open:
            record = self.get_record(mount_id)
            self._open[mount_id] = self._open_store(record.path, record.uri, record.options, self._secrets.get(mount_id))
        return self._open[mount_id]

    def _open_store(self, path: str, uri: str, options: Mapping[str, str], secrets: Mapping[str, str]) -> Ufs:
        def count(op: str) -> None:
            self._metrics.store_requests.labels(op, path).inc()

        return self._opener(uri, options, secrets=secrets, on_request=count, io_timeout_s=self._io_timeout_s)

    def list_ids(self) -> list[MountId]:
        return list(self._records)

    def is_flat(self, mount_id: MountId) -> bool:
        """Whether a mount's store has no directories of its own, and moves none. Raises NotFound."""
        return parse_uri(self.get_record(mount_id).uri).scheme in _FLAT_SCHEMES

    def get_key_limit(self, mount_id: MountId) -> int:
        """Bytes that a key below a mount's root may have. Raises NotFound."""
        uri = parse_uri(self.get_record(mount_id).uri)
        most = _MAX_PATH_BYTES
        if uri.scheme in _FLAT_SCHEMES:
            most = _MAX_KEY_BYTES
        elif uri.scheme == "file":
            most = _MAX_WALKED_BYTES
        return most - len(to_bytes(uri.prefix))

    def get_record(self, mount_id: MountId) -> MountRecord:
        record = self._records.get(mount_id)
        if record is None:
            raise errors.NotFound("no such mount", subject=str(mount_id))
        return record

    def can_be_written(self, mount_id: MountId) -> bool:
        """Whether programs may change what is below a mount."""
        record = self._records.get(mount_id)
        return record is not None and not record.read_only

    def wants_stored_attributes(self, mount_id: MountId) -> bool:
        """Whether the owner, mode and time of files are to be those in their objects' metadata."""
        record = self._records.get(mount_id)
        return record is not None and record.options.get("attrs") == "object"

    def get_sync_interval_s(self, mount_id: MountId, directory: InodeId) -> float:
        """How long a directory's listing is believed; infinity for never to be asked again."""
        interval = self._find_interval(mount_id, directory).interval_s
        return interval if interval >= 0 else float("inf")

    def get_sync_intervals_s(self, mount_id: MountId, directories: Numbers) -> NDArray[np.float64]:
        """The same for many directories of a mount."""
        if self._intervals.get(mount_id):
            return np.array([self.get_sync_interval_s(mount_id, InodeId(inode)) for inode in directories.tolist()], np.float64)
        # Nothing is set below the mount.
        return np.full(len(directories), self.get_sync_interval_s(mount_id, InodeId(0)))

    def _find_interval(self, mount_id: MountId, directory: InodeId) -> SyncInterval:
        intervals = self._intervals.get(mount_id)
        record = self._records.get(mount_id)
        if intervals and record is not None:
            try:
                with self._meta.read() as txn:
                    prefix = namespace.get_key(txn, directory)[1]
            except errors.NotFound:
                prefix = ""
            found = core.find_setting(intervals, prefix)
            if found is not None:
                return SyncInterval(intervals[found], _make_path(record, found))
        if record is None or record.sync_interval_s is None:
            return SyncInterval(self._default_interval_s, "")
        return SyncInterval(record.sync_interval_s, record.path)

    def describe_sync_interval(self, directory: InodeId) -> SyncInterval:
        """What holds for a directory, and where it is set. Raises NotFound, and InvalidArgument where nothing is mounted."""
        return self._find_interval(self._get_place(directory)[0], directory)

    def _get_place(self, directory: InodeId) -> tuple[MountId, str]:
        with self._meta.read() as txn:
            mount_id, prefix = namespace.get_key(txn, directory)
            if mount_id == NO_MOUNT:
                raise errors.InvalidArgument(
                    "no store is mounted there: name a mount, or a directory of one; see `alluxio-like mounts`",
                    subject=namespace.get_path(txn, directory),
                )
        return mount_id, prefix

    async def set_sync_interval(self, directory: InodeId, seconds: float | None) -> SyncInterval:
        """Set a directory's sync interval (None: what holds above it; negative: never). Raises as `describe_sync_interval`."""
        mount_id, prefix = self._get_place(directory)

        async def commit() -> None:
            await self._meta.write(lambda txn: core.set_interval(txn, mount_id, prefix, seconds))
            with self._meta.read() as txn:
                self._records[mount_id] = core.get_mount(txn, mount_id)
                self._intervals[mount_id] = core.list_intervals(txn, mount_id)
            # Answers hold as long as the interval was when they were given.
            self._tell([Recall(EVERYWHERE, all_names=True)])

        await run_to_end(commit())
        return self.describe_sync_interval(directory)

    def note_failure(self, mount_id: MountId, directory: InodeId, error: errors.AlluxioLikeError) -> None:
        """A listing failed: for a while (longer each time) the store is left alone by those who can do without it.

        Where the store refuses or answers wrongly, that says nothing of its other directories.
        """
        troubles = self._troubles.setdefault(mount_id, {})
        if len(troubles) >= MAX_TROUBLES:
            troubles.clear()
        place = None if isinstance(error, _OF_THE_WHOLE_STORE) else directory
        old = troubles.get(place)
        backoff = FIRST_BACKOFF_S if old is None else min(MAX_BACKOFF_S, 2 * old.backoff_s)
        troubles[place] = _Trouble(error, self._clock.monotonic() + backoff, backoff)

    def note_success(self, mount_id: MountId, directory: InodeId) -> None:
        troubles = self._troubles.get(mount_id)
        if troubles is not None:
            troubles.pop(None, None)
            troubles.pop(directory, None)

    def lookup_trouble(self, mount_id: MountId, directory: InodeId) -> errors.AlluxioLikeError | None:
        """Why the store is not to be asked for a directory just now; None: it may be."""
        troubles = self._troubles.get(mount_id, {})
        now = self._clock.monotonic()
        return next((t.error for place in (None, directory) if (t := troubles.get(place)) is not None and now < t.until_s), None)

    def list_troubles(self) -> list[str]:
        """One line for each mount whose store failed last time."""
        found = [(record.path, self._describe_trouble(mount_id)) for mount_id, record in self._records.items()]
        return [f"{path}: {trouble}" for path, trouble in found if trouble]

    async def check_all(self) -> None:
        """Ask each store whether it is there, some at a time, so that `mounts` and `report` can say which is not. Nobody waits
        for it: a store that is down keeps nobody from the others."""
        at_once = asyncio.Semaphore(CHECKS_AT_ONCE)

        async def check(record: MountRecord) -> None:
            async with at_once:
                try:
                    await self.get_ufs(record.mount_id).check()
                except errors.AlluxioLikeError as error:
                    if self._records.get(record.mount_id) == record:
                        log.warning("a store does not answer", extra={"path": record.path, "error": str(error)})
                        self.note_failure(record.mount_id, record.root, error)

        await asyncio.gather(*[check(record) for record in self._records.values()])

    # -- the table -----------------------------------------------------------------------------------------------------

    async def mount(self, operation_id: str, spec: MountSpec) -> MountInfo:
        """Mount a store and say so to nobody but the caller. Nothing is changed unless the store answers (or skip_check)."""
        if not spec.path.startswith("/"):
            raise errors.InvalidArgument("a mount's path is absolute in the namespace, such as /data", subject=spec.path)
        if spec.update:
            return await self._update(operation_id, spec)
        options, write = _take_policy(spec.options)
        public, secret = split_secrets(parse_uri(spec.uri).scheme, options)
        store = self._open_store(spec.path, spec.uri, public, secret)
        try:
            found = await self._check(store, write or "", skip=spec.skip_check)
            uid, gid = int(public.get("uid", spec.uid)), int(public.get("gid", spec.gid))
            interval = None if spec.sync_interval_s == 0 else spec.sync_interval_s
            now_ns = self._clock.now_ns()

            def add(txn: WriteTransaction) -> bytes:
                record = core.add_mount(
                    txn,
                    spec.path,
                    spec.uri,
                    options=public,
                    read_only=not write,
                    uid=uid,
                    gid=gid,
                    now_ns=now_ns,
                    sync_interval_s=interval,
                    write=write or "",
                )
                self._secrets.put(txn, record.mount_id, secret)
                return str(int(record.mount_id)).encode()

            def apply(txn: WriteTransaction) -> bytes:
                return operations.run_once(txn, operation_id, "mount", now_ns, lambda: add(txn))

            info = await run_to_end(self._commit_mount(spec.path, apply))
            # Who mounts is told; it is no failure of the store, and objects may come.
            return info if found or write else replace(info, trouble=_NOTHING)
        finally:
            await store.close()

    async def _check(self, store: Ufs, write: str, *, skip: bool) -> bool:
        """Whether a store can be mounted like this; False: there is nothing in it, and no directory either. Raises what it
        says, Unsupported (it can only be read), InvalidArgument."""
        found = skip or await store.check()
        if not write:
            return found
        policy = WritePolicy.parse(write)
        writable = get_writable(store)
        if not skip:
            # The first call finds out, and fails where nothing may be written.
            await writable.get_capabilities()
        self.check_policy(policy)
        return found

    def check_policy(self, policy: WritePolicy) -> None:
        """Whether there are enough workers for it. Raises InvalidArgument."""
        if policy.replicas > max(1, live := self._count_workers()):
            raise errors.InvalidArgument(
                f"{policy} needs {policy.replicas} workers and {live} live: start more, or say back:1, with which files that "
                "were closed and not yet uploaded are away, or lost, with the one worker that has them",
                subject="write",
            )

    def find_policy(self, txn: ReadTransaction, mount_id: MountId, prefix: str) -> PolicyAt:
        """What holds for what is written below a prefix."""
        record = self.get_record(mount_id)
        settings = core.list_policies(txn, mount_id)
        found = core.find_setting(settings, prefix)
        text, path = (record.write, record.path) if found is None else (settings[found], _make_path(record, found))
        return PolicyAt(WritePolicy.parse(text or core.DEFAULT_POLICY), path)

    async def set_policy(self, mount_id: MountId, prefix: str, policy: WritePolicy | None) -> None:
        """Set a directory's write policy (None: what holds above it). Raises ReadOnly, InvalidArgument."""
        if policy is not None:
            self.check_policy(policy)
        await self._meta.write(lambda txn: core.set_policy(txn, mount_id, prefix, "" if policy is None else str(policy)))
        with self._meta.read() as txn:
            self._records[mount_id] = core.get_mount(txn, mount_id)

    async def _commit_mount(self, path: str, apply: Callable[[WriteTransaction], bytes]) -> MountInfo:
        """Store a mount and take it up here; both or, where it cannot be stored, neither."""
        with self._meta.read() as txn:
            recalls = core.list_recalls(txn, path)
        mount_id = MountId(int(await self._meta.write(apply)))
        with self._meta.read() as txn:
            record = core.get_mount(txn, mount_id)
            recalls += core.list_recalls(txn, path)
        self._records[mount_id] = record
        self._tell(recalls)
        self._troubles.pop(mount_id, None)
        if (old := self._open.pop(mount_id, None)) is not None:
            # Of a mount that was updated. Requests may be under way on it: it is closed with the rest.
            self._retired.append(old)
        # An id that workers have seen must not be given to another mount after a power loss.
        await self._meta.flush()
        log.info("mounted", extra={"path": record.path, "uri": record.uri})
        return self._describe(record)

    def _choose_options(
        self, known: MountRecord, spec: MountSpec, options: Mapping[str, str]
    ) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """A mount's options after an update, as (public, secret)."""
        before = self._secrets.get(known.mount_id)
        scheme = parse_uri(known.uri).scheme
        if spec.keep_others:
            return split_secrets(scheme, change_options(scheme, {**known.options, **before}, options))
        public, secret = split_secrets(parse_uri(spec.uri).scheme, options)
        if not secret and not (_GIVES_CREDENTIALS | get_secret_names(scheme)) & public.keys():
            secret = dict(before)
        return public, secret

    async def _update(self, operation_id: str, spec: MountSpec) -> MountInfo:
        """Give a mount other options; those that say where its data is must be as they are."""
        parts = split_path(spec.path)
        known = next((r for r in self._records.values() if split_path(r.path) == parts), None)
        if known is None:
            raise errors.NotFound("nothing is mounted there", subject=spec.path)
        options, write = _take_policy(spec.options)
        write = known.write if write is None else write
        public, wanted = self._choose_options(known, spec, options)
        moved = [name for name in PLACE_OPTIONS if known.options.get(name) != public.get(name)]
        if (spec.uri and str(parse_uri(known.uri)) != str(parse_uri(spec.uri))) or moved:
            raise errors.Conflict(
                f"{known.uri} is mounted there with other options ({', '.join(moved) or 'another store'}): unmount it first, "
                "because other data, or attributes from elsewhere, would be under the same names",
                subject=spec.path,
            )
        mount_id = known.mount_id
        before = self._secrets.get(mount_id)
        interval = known.sync_interval_s if spec.sync_interval_s == 0 else spec.sync_interval_s
        same_place = interval == known.sync_interval_s and write == known.write
        if dict(known.options) == public and before == wanted and same_place:
            return self._describe(known)
        store = self._open_store(known.path, known.uri, public, wanted)
        try:
            await self._check(store, write, skip=spec.skip_check)
        finally:
            await store.close()

        def change(txn: WriteTransaction) -> bytes:
            core.update_mount(txn, mount_id, options=public, sync_interval_s=interval, write=write)
            self._secrets.put(txn, mount_id, wanted)
            return str(int(mount_id)).encode()

        def apply(txn: WriteTransaction) -> bytes:
            return operations.run_once(txn, operation_id, "mount", self._clock.now_ns(), lambda: change(txn))

        info = await run_to_end(self._commit_mount(known.path, apply))
        if interval != known.sync_interval_s:
            # Answers hold as long as the interval was when they were given.
            self._tell([Recall(EVERYWHERE, all_names=True)])
        return info

    async def unmount(self, operation_id: str, path: str, *, force: bool = False) -> None:
        """Take a mount away; its secrets go with it. See core.remove_mount."""
        await run_to_end(self._commit_unmount(operation_id, path, force=force))

    async def _commit_unmount(self, operation_id: str, path: str, *, force: bool) -> None:
        now_ns = self._clock.now_ns()
        with self._meta.read() as txn:
            recalls = core.list_recalls(txn, path)
        raw = await self._meta.write(
            lambda txn: operations.run_once(
                txn,
                operation_id,
                "unmount",
                now_ns,
                lambda: str(int(core.remove_mount(txn, path, now_ns, force=force).mount_id)).encode(),
            )
        )
        mount_id = MountId(int(raw))
        self._records.pop(mount_id, None)
        self._intervals.pop(mount_id, None)
        self._troubles.pop(mount_id, None)
        with self._meta.read() as txn:
            recalls += core.list_recalls(txn, path)
        self._tell(recalls)
        # A mount that comes back by a power loss needs its secrets.
        await self._meta.flush()
        log.info("unmounted", extra={"path": path})
        # Its own alone: a mount that was stored meanwhile may not be in `_records` yet, and keeps its secrets.
        await self._secrets.forget(mount_id)
        store = self._open.pop(mount_id, None)
        if store is not None:
            await store.close()

    def list_mounts(self) -> list[MountInfo]:
        """All mounts, by path."""
        return sorted((self._describe(record) for record in self._records.values()), key=lambda info: info.path)

    def get_mount_secrets(self, mount_id: MountId) -> MountSecrets:
        """For workers alone."""
        return MountSecrets(self._describe(self.get_record(mount_id)), self._secrets.get(mount_id))

    def lookup_path(self, uri: str) -> str | None:
        """The namespace's path of a store URI: that of the mount that covers it most closely; None: no mount does."""
        best: tuple[int, str] | None = None
        for record in self._records.values():
            root = record.uri.rstrip("/")
            if uri.rstrip("/") == root or uri.startswith(root + "/"):
                rest = uri[len(root) :].strip("/")
                path = record.path.rstrip("/") + ("/" + rest if rest else "") or "/"
                best = max(best or (-1, ""), (len(root), path))
        return best[1] if best is not None else None

    def _describe(self, record: MountRecord) -> MountInfo:
        options = {**record.options, **dict.fromkeys(self._secrets.get(record.mount_id), "***")}
        return MountInfo(
            mount_id=record.mount_id,
            path=record.path,
            uri=record.uri,
            options=options,
            read_only=record.read_only,
            sync_interval_s=record.sync_interval_s or 0.0,
            uid=record.uid,
            gid=record.gid,
            created_ns=record.created_ns,
            trouble=self._describe_trouble(record.mount_id),
            sync_paths={_make_path(record, prefix): s for prefix, s in self._intervals.get(record.mount_id, {}).items()},
            write=record.write,
            write_paths={_make_path(record, prefix): policy for prefix, policy in self._list_policies(record.mount_id).items()},
        )

    def _list_policies(self, mount_id: MountId) -> Mapping[str, str]:
        with self._meta.read() as txn:
            return core.list_policies(txn, mount_id)

    def _describe_trouble(self, mount_id: MountId) -> str:
        known = self._troubles.get(mount_id)
        return str(max(known.values(), key=lambda t: t.until_s).error) if known else ""

    async def close(self) -> None:
        """Close all stores."""
        for store in [*self._open.values(), *self._retired]:
            await store.close()
        self._open.clear()
        self._retired.clear()


def _take_policy(options: Mapping[str, str]) -> tuple[Mapping[str, str], str | None]:
    """A mount's options without the write policy, which is none of the store's; and that (None: not given)."""
    return {name: value for name, value in options.items() if name != "write"}, options.get("write")


def _make_path(record: MountRecord, prefix: str) -> str:
    """The namespace's path of a prefix of a mount's store."""
    shown = (to_str(show_name(to_bytes(name), Kind.DIRECTORY, shadowed=False)) for name in prefix[:-1].split("/"))
    return record.path.rstrip("/") + "/" + "/".join(shown)
