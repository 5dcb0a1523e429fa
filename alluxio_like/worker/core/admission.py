"""Whether bytes that a reader asked for are kept on this worker.

Deterministic: given sizes and counts, it answers. Homes are kept while there is room or something may go (core/eviction); a
guest, a local copy of a file whose home is elsewhere, only in space that no home needs. Plain functions, safe from any thread.
"""

from dataclasses import dataclass

GUEST_FILE_FRACTION = 0.125
"""Largest guest, as a part of the worker's capacity: so one huge file cannot turn out all the others (a guess)."""
GUEST_READ_FRACTION = 0.25
"""Read this part of a file, and the rest of it is likely to follow (a guess)."""


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """A file whose home is elsewhere, read here. `read_bytes`: read by local readers since it was first opened; `opens`: how
    often."""

    size: int
    read_bytes: int
    opens: int


def admits_guest(request: GuestRequest, *, capacity_bytes: int, home_bytes: int, guest_bytes: int) -> bool:
    """Whether a local copy is worth its space; `home_bytes` and `guest_bytes` are what the worker holds now.

    Room is judged as if guests could all go but for the one asked for: homes come first, then the guest.
    """
    if request.size > capacity_bytes * GUEST_FILE_FRACTION:
        return False
    if home_bytes + request.size > capacity_bytes:
        return False
    return request.opens >= 2 or request.read_bytes >= request.size * GUEST_READ_FRACTION
