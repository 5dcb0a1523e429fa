"""The interface of a store that says how much it can hold.

Owns its words. Stores without an end do not implement it.
"""

from typing import Protocol, runtime_checkable

from alluxio_like.types import Space
from alluxio_like.ufs.api import Ufs


@runtime_checkable
class MeasuredUfs(Ufs, Protocol):
    """A store with a size."""

    async def measure(self) -> Space:
        """What it can hold, and what of that is free to whoever writes there. Raises Store*."""
        ...
