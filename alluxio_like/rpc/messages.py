"""What crosses the wire beyond alluxio_like.types, as plain frozen data.

Owns the shapes that handlers return and stubs give back; each mirrors the message of the same name under proto/. Sizes are bytes,
times nanoseconds since the epoch, durations seconds. Protobuf messages themselves stay in rpc/. Safe from any thread.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from alluxio_like.types import (
    PAGE_BYTES,
    Cluster,
    Entry,
    FileId,
    FileRef,
    InodeId,
    JobId,
    MountId,
    PageRange,
    Recall,
    Space,
    TreeColumns,
    VersionId,
    Worker,
    WorkerId,
)
from alluxio_like.waits import NONE, Seconds


@dataclass(frozen=True, slots=True)
class LookupResult:
    """An answer about one name: `entry` None says that it does not exist. Usable for `valid_s` without asking again.

    `leased`: the caller's lease of `directory` covers it (and its lease of the entry itself, if that is a directory), so that it
    is recalled when it changes. `chain`: of a path, the directories that lead to it, from the root on.
    """

    entry: Entry | None
    valid_s: float
    leased: bool = False
    directory: InodeId = InodeId(0)
    chain: tuple[InodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class DirPage:
    """One page of a directory. `next_cursor` is empty at the end.

    `dir_key` stands before the name in the entries' keys ("" or ending in "/"); it lets the wire leave those keys out. Entries
    whose key is not `dir_key + name` are sent with their own. `mount_id` is that of most entries.
    """

    entries: tuple[Entry, ...]
    next_cursor: bytes
    valid_s: float
    mount_id: MountId = MountId(0)
    dir_key: str = ""
    leased: bool = False
    unleased: tuple[InodeId, ...] = ()
    """Directories among the entries whose attributes no lease covers."""


@dataclass(frozen=True, slots=True)
class TreePage:
    """Part of a whole tree. `mark`, on the last page, names what the tree was (0: it changed meanwhile); `unchanged`: it is still
    what it was when the mark that was given was."""

    columns: TreeColumns
    mark: int = 0
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class WatchMessage:
    """From a client: `session_id` and `run` in the first message of a stream, see coherence.proto."""

    number: int
    confirmed: int
    session_id: str = ""
    run: int = 0
    bye: bool = False
    succeeded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchReply:
    """To a client, see coherence.proto. `number` 0 answers no message, and `lease_s` means nothing then."""

    run: int
    number: int = 0
    lease_s: float = 0.0
    fresh: bool = False
    recalls: tuple[Recall, ...] = ()
    sequence: int = 0
    cluster_epoch: int = 0


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync found."""

    directories: int = 0
    added: int = 0
    removed: int = 0
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class FsTotals:
    """Totals of the known namespace and of the caches. Of the inode that was asked about: the space that its quotas and its store
    have (None: nothing is known to limit it), the kind of write policy that holds (empty: nothing can be written), and what the
    tightest quota leaves (None: none). `has_quotas`: there are quotas somewhere."""

    files: int
    known_bytes: int
    capacity_bytes: int
    used_bytes: int
    space: Space | None = None
    policy: str = ""
    quota_free_bytes: int | None = None
    has_quotas: bool = False


@dataclass(frozen=True, slots=True)
class MountSpec:
    """What is to be mounted. `sync_interval_s` 0 leaves the default, negative means never. `options` may hold secrets, and as
    `write` a write policy: without one the mount is read-only.

    `update`: what is mounted there already gets these options (secrets not given stay as they are). With `keep_others` they are
    changes: all others stay, and one with an empty text is taken away; `uri` may be empty then.
    """

    path: str
    uri: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    read_only: bool = True
    sync_interval_s: float = 0.0
    uid: int = 0
    gid: int = 0
    skip_check: bool = False
    update: bool = False
    keep_others: bool = False


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """What a store says of a file's archive: `state` is "online", "archived", "restoring" or "restored"; `until_ns` is the end of
    the last, 0: not known."""

    state: str
    storage_class: str = ""
    until_ns: int = 0


@dataclass(frozen=True, slots=True)
class MountInfo:
    """A mount without its secrets: their values read "***". `trouble` says why its store failed last; empty: it did not.
    To who mounts it, it also says that nothing is there."""

    mount_id: MountId
    path: str
    uri: str
    options: Mapping[str, str]
    read_only: bool
    sync_interval_s: float
    uid: int
    gid: int
    created_ns: int
    trouble: str = ""
    sync_paths: Mapping[str, float] = field(default_factory=dict)
    """Directories below it with an interval of their own, in seconds (negative: never)."""
    write: str = ""
    """The write policy; empty: read-only."""
    write_paths: Mapping[str, str] = field(default_factory=dict)
    """Directories below it with a write policy of their own."""


@dataclass(frozen=True, slots=True)
class SyncInterval:
    """How long listings of a directory are believed (seconds; negative: for ever); `set_at` is where that is set, "" the
    default."""

    interval_s: float
    set_at: str


@dataclass(frozen=True, slots=True)
class MountSecrets:
    """A mount and the options that MountInfo hides."""

    mount: MountInfo
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RegisterResult:
    """What a worker that joined is told."""

    cluster_id: str
    cluster: Cluster


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """Which pages of a block a worker holds now: bit n is page n of the block. No bits: the block is gone."""

    file_id: FileId
    block: int
    present_bits: int
    present_bytes: int


@dataclass(frozen=True, slots=True)
class BlockReport:
    """A part of a worker's report. Of files whose block 0 is there from the first page on there are columns, of one length:
    inodes (array "Q"), versions ("I") and bytes present ("I")."""

    blocks: Sequence[BlockDelta]
    inodes: "array[int]"
    versions: "array[int]"
    sizes: "array[int]"

    def iter_deltas(self) -> Iterator[BlockDelta]:
        """All of it one by one."""
        yield from self.blocks
        for inode, version, size in zip(self.inodes, self.versions, self.sizes, strict=True):
            yield BlockDelta(FileId(InodeId(inode), VersionId(version)), 0, (1 << -(-size // PAGE_BYTES)) - 1, size)


@dataclass(frozen=True, slots=True)
class Throttle:
    """A store asked for less: how many such answers a bucket gave since the last heartbeat, at which rate of ours."""

    bucket: str
    count: int
    used_rate: float


@dataclass(frozen=True, slots=True)
class RateShare:
    """The requests per second that a worker may make to a bucket; 0 lifts the limit."""

    bucket: str
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A worker's changes since the last heartbeat that was answered; a repeat has the same `sequence`.

    `demand` counts store requests that somebody waited for since then.
    """

    worker_id: WorkerId
    session_id: str
    sequence: int
    changes: tuple[BlockDelta, ...]
    status: Worker
    throttles: tuple[Throttle, ...] = ()
    cluster_epoch: int = 0
    demand: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatResult:
    """`register_again`: the master does not know this session. `cluster` is there when the worker's view is old.

    `demand_elsewhere`: store requests that somebody waited for on other workers lately.
    """

    register_again: bool = False
    cluster: Cluster | None = None
    rates: tuple[RateShare, ...] = ()
    demand_elsewhere: int = 0


@dataclass(frozen=True, slots=True)
class BlockLocation:
    """A worker that holds pages of a block."""

    block: int
    worker_id: WorkerId
    present_bits: int
    present_bytes: int


class JobState(IntEnum):
    """Where a load job is; the numbers are those of the wire."""

    PLANNING = 1
    RUNNING = 2
    CHECKING = 3
    DONE = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def ended(self) -> bool:
        return self >= JobState.DONE


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """How to load. `bandwidth_bytes_s` is the whole job's, 0 for no limit; `hosts` are worker ids or host names."""

    replicas: int = 1
    glob: str = ""
    bandwidth_bytes_s: int = 0
    hosts: tuple[str, ...] = ()
    dry_run: bool = False
    fit: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class JobProblem:
    """A file that a job could not load; `code` is an error's code."""

    path: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A load job's state; see the message Job in proto/ for each field. `eta_s` is negative when not known."""

    job_id: JobId
    state: JobState
    spec: LoadSpec = LoadSpec()
    paths: tuple[str, ...] = ()
    path_count: int = 0
    listing_done: bool = False
    total_files: int = 0
    total_bytes: int = 0
    done_files: int = 0
    done_bytes: int = 0
    skipped_files: int = 0
    skipped_bytes: int = 0
    failed_files: int = 0
    unfit_files: int = 0
    unfit_bytes: int = 0
    checked_files: int = 0
    requests: int = 0
    rate_bytes_s: float = 0.0
    eta_s: float = -1.0
    free_bytes: int = 0
    created_ns: int = 0
    ended_ns: int = 0
    reason: str = ""
    problems: tuple[JobProblem, ...] = ()


@dataclass(frozen=True, slots=True)
class ProblemPage:
    """Problems of a job; `next_cursor` 0 at the end."""

    problems: tuple[JobProblem, ...]
    next_cursor: int


@dataclass(frozen=True, slots=True)
class HolderStatus:
    """What one worker holds below a path."""

    worker_id: WorkerId
    address: str
    files: int
    cached_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """How many files there are in so many whole copies."""

    replicas: int
    files: int


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """How much below a path is cached, where, in how many copies.

    `cached_bytes` counts what is cached at least once, `stored_bytes` all copies. `replicas` says how many files
    have how many whole copies. `version` is that of a single file, else 0. `complete` False: parts below were never listed.
    """

    files: int = 0
    known_bytes: int = 0
    cached_files: int = 0
    cached_bytes: int = 0
    stored_bytes: int = 0
    pinned_files: int = 0
    holders: tuple[HolderStatus, ...] = ()
    replicas: tuple[ReplicaCount, ...] = ()
    version: VersionId = VersionId(0)
    complete: bool = True
    summed: bool = False
    """From totals, where there are too many files to look at each: nothing is said of `cached_files`, `pinned_files`, `replicas`
    and the holders' files, and `cached_bytes` is the most that it can be."""


@dataclass(frozen=True, slots=True)
class FreeResult:
    """What was dropped, and how many files stayed because they are pinned."""

    files: int = 0
    freed_bytes: int = 0
    kept_pinned_files: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The cluster in one message; `jobs` are those not ended and the latest, `details` of the live workers that answered at
    once. What was written is `unpersisted` until a store has it; `journal_steps` are what stores have to follow beside.
    """

    cluster: Cluster
    mounts: tuple[MountInfo, ...]
    jobs: tuple[Job, ...]
    totals: FsTotals
    uptime_s: float
    software_version: str
    limited_buckets: tuple[RateShare, ...] = ()
    warnings: tuple[str, ...] = ()
    details: tuple["WorkerStatus", ...] = ()
    unpersisted_files: int = 0
    unpersisted_bytes: int = 0
    journal_steps: int = 0


class Priority(IntEnum):
    """Why bytes are wanted; the numbers are those of the wire."""

    DEMAND = 1
    AHEAD = 2
    LOAD = 3


@dataclass(frozen=True, slots=True)
class FilledPages:
    """Pages that are there, and the checksum (xxh3-64) of each."""

    pages: PageRange
    checksums: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Filled:
    """Pages that are in a worker's cache file now.

    `directory` (an index into the descriptors that the worker's door gave) and `generation` say which file that is, also before
    the index has been committed. `read_through`: nothing can be kept (or another worker is home and no copy is admitted); the
    caller reads the bytes through Data.Read instead.
    """

    present: tuple[FilledPages, ...] = ()
    directory: int = 0
    generation: int = 0
    read_through: bool = False
    waited: Seconds = NONE
    """How whoever asked has waited there since the item before."""


@dataclass(frozen=True, slots=True)
class Touched:
    """What a local client read by itself from a cache file since it last said so."""

    file_id: FileId
    read_bytes: int
    reads: int


@dataclass(frozen=True, slots=True)
class LoadFile:
    """A file to load or check: the named blocks of it, or all when there are none named.

    `sources` are addresses of workers that hold it or are about to: they are asked before the store.
    """

    ref: FileRef
    blocks: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileResult:
    """How the loading of one file ended; an empty `code` is success. `skipped`: it was wholly there before."""

    file_id: FileId
    skipped: bool = False
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """What was loaded since the last message; `results` are those of the files that have ended."""

    loaded_bytes: int = 0
    skipped_bytes: int = 0
    requests: int = 0
    results: tuple[FileResult, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Pages of a file that are not there; with verify, `bad_pages` failed their checksum and were dropped."""

    file_id: FileId
    missing_pages: int = 0
    bad_pages: int = 0


@dataclass(frozen=True, slots=True)
class DirectoryStatus:
    """One cache directory; `state` is "ok" or "failed", `held_bytes` of `held_files` evicted but still open somewhere.

    `passthrough` tells whether FUSE can pass reads through to its files: "yes", "no" (then why) or "unknown".
    """

    path: str
    quota_bytes: int
    used_bytes: int
    held_bytes: int
    free_disk_bytes: int
    state: str
    reason: str = ""
    held_files: int = 0
    file_system: str = ""
    passthrough: str = "unknown"
    passthrough_reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker in detail. `leases`: cache files handed out one by one through its door, and not yet given back."""

    info: Worker
    directories: tuple[DirectoryStatus, ...]
    queue_depth: int
    leases: int = 0
