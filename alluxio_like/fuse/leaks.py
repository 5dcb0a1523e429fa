"""Gives back the backing files that dead daemons had registered.

The holder's. Standard library only. One thread.
"""

import contextlib

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.fuse import ledger
from alluxio_like.fuse.device import Device

_KEPT_FOR_S = 10.0
"""What a dead daemon has registered is given back only after so long: a process may have been told to use it and not have done so
yet. A guess, and a generous one."""
_A_TURN = 1000
"""Ids closed at a time, about a millisecond's work."""


class Leaks:
    """Backing ids whose daemons are dead, and when to close them."""

    def __init__(self) -> None:
        self._due: list[tuple[float, list[int]]] = []

    def note(self, device: Device, ledger_fd: int, now: float, *, alone: bool) -> None:
        """A daemon with this ledger is dead. `alone`: no other has registered anything since."""
        ids, last = ledger.list_left(ledger_fd)
        if last is not None and alone:
            # It died while the kernel gave it one: ids are given out in turn, so it lies between the last known and the next.
            with contextlib.suppress(AlluxioLikeError):
                following = device.open_backing(ledger_fd)
                device.close_backing(following)
                ids += range(max(last + 1, following - 2), following)
        if ids:
            self._due.append((now + _KEPT_FOR_S, ids))

    def close_due(self, device: Device, now: float) -> None:
        """Close some of what is due."""
        if not self._due or now < self._due[0][0]:
            return
        ids = self._due[0][1]
        for backing_id in ids[:_A_TURN]:
            with contextlib.suppress(AlluxioLikeError):
                device.close_backing(backing_id)
        del ids[:_A_TURN]
        if not ids:
            self._due.pop(0)
