"""A program that writes until it is killed: python killed_writer.py SEED DIRECTORY... Prints a line once it is at work.

Files begin with a line that says what they are made of, so that whoever reads them knows whether they are whole pieces.
"""

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

NAMES = tuple("abcdefghijkl")


def make_piece(number: int, size: int) -> bytes:
    """Bytes that say of themselves to which piece they belong."""
    unit = b"%08d\n" % number
    return (unit * (size // len(unit) + 1))[:size]


class Writer:
    """What it does to the names of a few directories, in a random order."""

    def __init__(self, seed: int, directories: list[Path]) -> None:
        self._random = random.Random(seed)
        self._directories = directories
        self._number = seed * 1000

    def work(self) -> None:
        steps = (self._write, self._write, self._append, self._replace, self._remove, self._truncate, self._link, self._move)
        print(flush=True)  # noqa: T201
        while True:
            step: Callable[[Path], None] = self._random.choice(steps)
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                step(self._pick())

    def _pick(self) -> Path:
        return self._random.choice(self._directories) / self._random.choice(NAMES)

    def _make(self, *sizes: int) -> bytes:
        self._number += 1
        return make_piece(self._number, self._random.choice(sizes))

    def _put(self, path: Path, flags: int, pieces: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
        for _ in range(pieces):
            os.write(fd, self._make(1, 900, 200_000))
        if self._random.random() < 0.3:
            os.fsync(fd)
        # As a program that computes between its writes: most are killed with a file open.
        time.sleep(self._random.choice((0, 0.02)))
        os.close(fd)

    def _write(self, path: Path) -> None:
        self._put(path, self._random.choice((0, os.O_TRUNC)), self._random.randrange(4))

    def _append(self, path: Path) -> None:
        self._put(path, os.O_APPEND, 1)

    def _replace(self, path: Path) -> None:
        new = path.with_suffix(".new")
        self._put(new, os.O_TRUNC, 2)
        new.replace(path)

    def _remove(self, path: Path) -> None:
        path.unlink()

    def _truncate(self, path: Path) -> None:
        os.truncate(path, self._random.randrange(3000))

    def _link(self, path: Path) -> None:
        os.link(path, path.with_suffix(".link"))

    def _move(self, path: Path) -> None:
        path.replace(self._pick())


if __name__ == "__main__":
    Writer(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]]).work()
