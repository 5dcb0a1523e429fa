"""Pages and blocks of a cache file in memory: roles, presence bits, ranges. Plain data and pure functions."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from alluxio_like.types import PAGES_PER_BLOCK, PageRange


class Role(IntEnum):
    """Why a worker holds a file; the numbers are those of the disk."""

    HOME = 1
    GUEST = 2


@dataclass(frozen=True, slots=True)
class PresentRun:
    """Pages of one generation of a file that are there, with their checksums: what a Fill reply tells a local reader."""

    generation: int
    pages: PageRange
    checksums: tuple[int, ...]


@dataclass(slots=True)
class Block:
    """Presence of one block. `suspect` pages are on the disk, but a crash of the machine lies between; they count as missing."""

    bits: int
    suspect: int
    checksums: "array[int]"


NO_BLOCK = Block(0, 0, array("Q"))


def split_pages(pages: PageRange) -> Iterator[tuple[int, int]]:
    """The blocks a range touches, each with the bits of its pages in the range."""
    for block in range(pages.first // PAGES_PER_BLOCK, -(-pages.stop // PAGES_PER_BLOCK)):
        low = max(0, pages.first - block * PAGES_PER_BLOCK)
        high = min(PAGES_PER_BLOCK, pages.stop - block * PAGES_PER_BLOCK)
        if high > low:
            yield block, (1 << high) - (1 << low)


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """pwrite until all is written. Raises OSError."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
