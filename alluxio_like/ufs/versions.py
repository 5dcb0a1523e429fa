"""The interface of a store that can keep the contents that objects had before.

Owns its words. Stores that keep nothing of what is replaced or deleted, or cannot be asked for it here, do not implement it.
"""

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import Ufs


@runtime_checkable
class VersionedUfs(Ufs, Protocol):
    """A store that keeps older versions of objects where its bucket says so."""

    async def keeps_versions(self) -> bool:
        """Whether what is replaced or deleted from now on is kept. Raises StoreDenied where these credentials may not ask."""
        ...

    def read_kept(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        """As `read`, of that content whichever version of the object it is by now. It costs further requests where it is not the
        newest. Raises Stale when no version has it, saying what would keep it; StoreDenied where old versions may not be read."""
        ...
