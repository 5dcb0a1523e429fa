"""What a check finds: plain data.

Owns no rule; those are in master/core/checking.py and cache/checking.py, which say what to write to mend something. Safe from
any thread.
"""

from enum import StrEnum
from typing import NamedTuple

RESTORE = "restore the metadata from a backup, or report it with what fsck prints"
"""The cure for what cannot be mended without losing something."""
REPAIR = "fsck --repair"


class Grade(StrEnum):
    """How bad it is."""

    WRONG = "wrong"
    """Something that can never be so."""
    LEFTOVER = "leftover"
    """Something that a crash may leave behind; it does no harm, and goes by itself or by a repair."""


Writes = tuple[tuple[bytes, bytes | None], ...]
"""Keys, and what is to be there (None: nothing)."""


class Finding(NamedTuple):
    """One thing. `rule` is the short name of what does not hold, `cure` says what to do, `writes` mend it without a loss."""

    grade: Grade
    rule: str
    message: str
    cure: str = ""
    writes: Writes = ()
