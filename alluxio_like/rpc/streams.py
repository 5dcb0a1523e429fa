"""Small helpers for asynchronous iterators. Safe from any task."""

from collections.abc import AsyncIterator
from typing import Any


class _Closing:
    # Not a generator itself: the end of a loop closes all of them at once, and so this one under the block that it waits for.
    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


def closing(iterator: AsyncIterator[Any]) -> _Closing:
    """Close the iterator at the end of the block, if it is one that can be closed (a generator)."""
    return _Closing(iterator)
