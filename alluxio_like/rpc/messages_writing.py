"""What crosses the wire when programs write, as plain frozen data.

As messages.py, for the services of writing.proto; each shape mirrors the message of the same name there. Safe from any thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from alluxio_like import errors
from alluxio_like.rpc.messages import LookupResult
from alluxio_like.types import Entry, FileId, FileRef, Fingerprint, InodeId, Kind, MountId, Recall


class WriteMode(StrEnum):
    """When a close returns: when the store has what was written, when several workers have it, or when one has it (then the store
    never gets it)."""

    THROUGH = "through"
    BACK = "back"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """`replicas`: workers that hold what was written when a close returns; of no meaning for THROUGH."""

    mode: WriteMode = WriteMode.THROUGH
    replicas: int = 1

    def __str__(self) -> str:
        return self.mode.value if self.replicas == 1 or self.mode is WriteMode.THROUGH else f"{self.mode.value}:{self.replicas}"

    @staticmethod
    def parse(text: str) -> "WritePolicy":
        """What `str` gives. Raises InvalidArgument."""
        name, _, count = text.partition(":")
        known = name in list(WriteMode) and (not count or (count.isascii() and count.isdecimal() and 1 <= int(count) <= 100))
        if not known or (count and name == WriteMode.THROUGH):
            raise errors.InvalidArgument(
                "a write policy is through (a close waits for the store), back or back:N (for N workers), or cache "
                "(for one worker; the store never gets it)",
                subject=text,
            )
        return WritePolicy(WriteMode(name), int(count or 1))


@dataclass(frozen=True, slots=True)
class PolicyAt:
    """What holds for a path, and the directory or mount where it is set."""

    policy: WritePolicy
    set_at: str


@dataclass(frozen=True, slots=True)
class NewName:
    """What is to be created. `mode` holds permission bits, umask already applied; `asked_mode` is without it, for a directory
    with a default access control list (None: `mode` is)."""

    parent: InodeId
    name: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    target: str = ""
    """Where a symbolic link leads."""
    device: int = 0
    asked_mode: int | None = None
    unnamed: bool = False
    """A file that gets its name by a link, if at all; `name` is empty."""
    delegate: bool = False
    """The caller would make files in this directory by itself, see Delegation."""


@dataclass(frozen=True, slots=True)
class Renaming:
    """Arguments of a rename; at most one of the flags."""

    parent: InodeId
    name: str
    new_parent: InodeId
    new_name: str
    no_replace: bool = False
    exchange: bool = False


@dataclass(frozen=True, slots=True)
class NewAttributes:
    """What is None stays."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What a name leads to now, as a lookup would have answered; without a name, how an inode is. `is_empty`: it is a directory,
    and nothing is in it."""

    parent: InodeId
    name: str
    result: LookupResult
    is_empty: bool = False


@dataclass(frozen=True, slots=True)
class Delegation:
    """A directory that was just made is the caller's alone, until its lease ends or all names of the directory are recalled.
    `name_bytes`: the longest name that the store can have there; `mount_id` and `key` begin what its files are known by there."""

    name_bytes: int
    mount_id: MountId
    key: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The inode that was made or changed (None: it is gone), what the caller itself has to forget, and how some of that is now,
    under the caller's lease."""

    entry: Entry | None
    recalls: tuple[Recall, ...] = ()
    told: tuple[Told, ...] = ()
    delegation: Delegation | None = None


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file as it is once the master knows it, or why it does not."""

    ref: FileRef | None
    policy: WritePolicy | None = None
    unwanted: bool = False
    error: errors.AlluxioLikeError | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """In the order in which they were given; the rest is of all of them, as in Changed."""

    files: tuple[PublishedFile, ...]
    recalls: tuple[Recall, ...] = ()
    told: tuple[Told, ...] = ()


@dataclass(frozen=True, slots=True)
class XattrChange:
    """`value` None takes it away. `create`: it must not be there; `replace`: it must be. `kill_sgid`: with an access control list
    the set-group-id bit goes."""

    name: bytes
    value: bytes | None
    create: bool = False
    replace: bool = False
    kill_sgid: bool = False


@dataclass(frozen=True, slots=True)
class SealedDraft:
    """A new content of a file, held by a worker. `base_version` is the version that it was made from; `lease` that of the client
    that asked for it, which hears of it by the answer. `early`: the file stays open, and the store gets it later. `extends`:
    `base_version` is the beginning of it."""

    inode: InodeId
    size: int
    mtime_ns: int
    worker_id: str
    base_version: int
    lease: str = ""
    early: bool = False
    extends: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """The version that a content has become. `unwanted`: the file has no name any more, and is never uploaded. The rest is for
    the client whose lease was given, see Changed."""

    ref: FileRef
    policy: WritePolicy
    unwanted: bool = False
    recalls: tuple[Recall, ...] = ()
    told: tuple[Told, ...] = ()
    over_quota: bool = False
    """It has made more of what is in a directory than its quota allows."""


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """Where a version is to be uploaded; what must be there (None: nothing); what goes with it."""

    mount_id: MountId
    key: str
    expected: Fingerprint | None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Persisted:
    """A version that the store has, as `stored`, at the plan's key."""

    file_id: FileId
    plan: UploadPlan
    stored: Fingerprint


@dataclass(frozen=True, slots=True)
class Unpersisted:
    """What below a path the store does not have, some of it by name; and the steps that stores still have to follow.

    `kept_files`: of these, those that nobody uploads by himself (policy CACHE). `conflicts`: what was kept beside foreign
    contents.
    """

    files: int
    size_bytes: int
    paths: tuple[str, ...]
    steps: int
    trouble: str = ""
    kept_files: int = 0
    kept_bytes: int = 0
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Persisting:
    """Files that are on their way to the store; `out_of_reach`: no worker that has them lives."""

    files: int
    out_of_reach: int


@dataclass(frozen=True, slots=True)
class DraftPlace:
    """Where a draft is: a path below the cache directory of that number."""

    directory: int
    path: str


@dataclass(frozen=True, slots=True)
class BlankDrafts:
    """Empty drafts, one for each inode id from `first` on; `noted`: a note can be kept with them (cache/new_files.py)."""

    first: InodeId
    places: tuple[DraftPlace, ...]
    noted: bool


@dataclass(frozen=True, slots=True)
class DraftSealed:
    """A file as it is now; `unchanged`: there was nothing to seal (`ref` None: its version is not known here). The rest is as in
    Changed."""

    ref: FileRef | None
    mtime_ns: int
    unchanged: bool = False
    recalls: tuple[Recall, ...] = ()
    told: tuple[Told, ...] = ()
    over_quota: bool = False
