"""What the suite runs on: a local ext4, which judges the checks themselves, and mounts of our own.

Owns making each of them and taking it away again. What a check asks of a target is its directory alone.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

EXT4_BYTES = 2 << 30


@dataclass(frozen=True)
class Target:
    """A file system to check."""

    name: str
    root: Path
    disturb: dict[str, Callable[[], object]] = field(default_factory=dict)
    """What may happen to it without anybody noticing: by name, what makes it happen and returns when it has."""


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory on the disk that other users reach, with a short path."""
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@contextmanager
def make_ext4() -> Iterator[Target]:
    """An ext4 of its own, in an image."""
    with workplace() as directory:
        image, root = directory / "image", directory / "mnt"
        root.mkdir()
        with open(image, "wb") as file:
            file.truncate(EXT4_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, root], check=True)
        try:
            yield Target("ext4", root)
        finally:
            subprocess.run(["umount", root], check=True)


TARGETS: dict[str, Callable[[], AbstractContextManager[Target]]] = {"ext4": make_ext4}
