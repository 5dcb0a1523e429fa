"""What each call of the master has to do with directories that are delegated to somebody (0071), before it is served.

Owns that table alone: NONE, these inodes, or all directories. A method that is not in it has to do with all of them, so that one
that is added is safe; tests/unit/test_concerns.py fails until it is. What a call finds by names, in paths or listings, is taken
back where it is found, by the lister: such calls are NONE here. Pure functions, safe from any thread.
"""

import enum
from collections.abc import Callable
from typing import Any

from alluxio_like.types import InodeId

_PACKAGE = "/alluxio_like.rpc.v1."


class Concern(enum.Enum):
    """What has to be taken back before a call is served."""

    NONE = "none"
    INODES = "inodes"
    ALL = "all"


ListInodes = Callable[[Any], tuple[InodeId, ...] | None]


def get_concern(method: str) -> tuple[Concern, ListInodes]:
    """Of a method by its full name; with INODES, which of a request's inodes may be such directories
    (None: it has to do with all)."""
    name = method.removeprefix(_PACKAGE)
    if name in _NONE:
        return Concern.NONE, _get_none
    if name in _INODES:
        return Concern.INODES, _INODES[name]
    return Concern.ALL, _get_none


def is_listed(method: str) -> bool:
    """Whether somebody has decided what a method has to do with them."""
    name = method.removeprefix(_PACKAGE)
    return name in _NONE or name in _INODES or name in _ALL


def _get_none(_: Any) -> tuple[InodeId, ...]:
    return ()


def _get_inode(request: Any) -> tuple[InodeId, ...]:
    return (InodeId(request.inode),)


def _get_parent(request: Any) -> tuple[InodeId, ...]:
    return (InodeId(request.parent),)


def _get_link(request: Any) -> tuple[InodeId, ...]:
    return InodeId(request.inode), InodeId(request.parent)


def _get_parents(request: Any) -> tuple[InodeId, ...]:
    return InodeId(request.parent), InodeId(request.new_parent)


def _get_synced(request: Any) -> tuple[InodeId, ...] | None:
    # One directory is taken back when it is listed.
    return None if request.recursive else ()


_INODES: dict[str, ListInodes] = {
    # (What has the name that goes, or is replaced, is found by the lister.)
    "Changes/Create": _get_parent,
    "Changes/Link": _get_link,
    "Changes/Remove": _get_parent,
    "Changes/Rename": _get_parents,
    "Changes/SetAttributes": _get_inode,
    "Changes/GetXattrs": _get_inode,
    "Changes/SetXattr": _get_inode,
    "Namespace/GetEntry": _get_inode,
    "Namespace/Sync": _get_synced,
}
_NONE = frozenset(
    {
        # How delegations are held, and end: nobody of these may wait for that.
        "Coherence/Watch",
        "Changes/ReserveInodes",
        "Changes/PublishFiles",
        "Changes/Flush",
        # Names: the lister.
        "Namespace/Lookup",
        "Namespace/LookupMany",
        "Namespace/ResolvePath",
        "Namespace/ListDir",
        "Changes/GetWritePolicy",
        "Mounts/SetSyncInterval",
        "Mounts/GetSyncInterval",
        # One file that the master knows, or a symbolic link, not what is beside it.
        "Changes/ReadLink",
        "Changes/Seal",
        "Changes/NoteHolders",
        "Changes/PlanUpload",
        "Changes/PlanUploads",
        "Changes/EndUpload",
        "Changes/NotePersisted",
        "Changes/NoteConflict",
        "Workers/Locate",
        # Locks of inodes, by whose mount they are held.
        "Locks/Attach",
        "Locks/Set",
        "Locks/Test",
        "Locks/Wait",
        "Locks/Drop",
        # Sums over all that is known, and room: nothing of a directory. While there are delegations there are no quotas.
        "Namespace/StatFs",
        "Quotas/Claim",
        # The mount table, and keys of stores.
        "Mounts/ListMounts",
        "Mounts/GetMountSecrets",
        "Mounts/GetArchiveStatus",
        "Mounts/Restore",
        # Workers and caches.
        "Workers/Register",
        "Workers/ReportBlocks",
        "Workers/Heartbeat",
        "Workers/Leave",
        "Workers/GetCluster",
        # Jobs that were submitted before.
        "Cache/GetJob",
        "Cache/ListJobs",
        "Cache/WatchJob",
        "Cache/CancelJob",
        "Cache/ListJobProblems",
        # What is frozen.
        "Snapshots/Delete",
    }
)
_ALL = frozenset(
    {
        # Whole trees.
        "Namespace/ListTree",
        "Cache/SubmitLoad",
        "Cache/GetCacheStatus",
        "Cache/Free",
        "Cache/SetPinned",
        "Cache/Report",
        "Changes/ListUnpersisted",
        "Changes/Persist",
        "Snapshots/Create",
        "Snapshots/List",
        "Snapshots/Diff",
        "Quotas/List",
        "Trash/List",
        "Trash/Restore",
        "Trash/Empty",
        # What decides whether a directory can be delegated, or what is made in it.
        "Changes/SetWritePolicy",
        "Mounts/Mount",
        "Mounts/Unmount",
        "Quotas/Set",
        "Quotas/Clear",
        "Trash/Keep",
        "Trash/StopKeeping",
    }
)
