"""The interface of a store that can put contents into an archive, from which they must be asked back before they are read.

Owns its words. Stores that have no archive do not implement it; a read of an archived content raises StoreArchived.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from alluxio_like import errors
from alluxio_like.ufs.api import Ufs


class ArchiveState(StrEnum):
    """Whether a content can be read."""

    ONLINE = "online"
    ARCHIVED = "archived"
    RESTORING = "restoring"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """Of one content. `storage_class` is the store's own word, `until_ns` until when a restored one can be read; 0: not known."""

    state: ArchiveState
    storage_class: str = ""
    until_ns: int = 0


@runtime_checkable
class ArchivingUfs(Ufs, Protocol):
    """A store with an archive."""

    async def get_archive_status(self, key: str) -> ArchiveStatus:
        """Raises NotFound."""
        ...

    async def restore(self, key: str, days: int, tier: str) -> ArchiveStatus:
        """Ask for a content's return for so many days (in the store's `tier` of speed and price; empty: its usual one); what
        holds then. One that can be read, or was asked for already, is fine. Raises NotFound, Unsupported, InvalidArgument."""
        ...


def get_archiving(ufs: Ufs) -> ArchivingUfs:
    """An open store as one with an archive. Raises Unsupported."""
    if not isinstance(ufs, ArchivingUfs):
        raise errors.Unsupported("this store has no archive", subject=ufs.bucket)
    return ufs
