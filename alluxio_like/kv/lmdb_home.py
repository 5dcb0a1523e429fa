"""The directory that an LMDB environment is in: who may open it, and whether it can be read.

Owns its lock (one process at a time) and its format number. Rule of concurrency: none of its own; called while a store is opened.
"""

import errno
import fcntl
import os
from pathlib import Path

from alluxio_like import errors

FORMAT = 2
"""1 had no blocks: what it has stays as it is, and what comes is packed."""


def lock_directory(path: Path) -> int:
    """The open lock file, locked; the kernel unlocks it when the process ends, however it ends."""
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise errors.Conflict(f"process {owner or 'unknown'} has the metadata store open", subject=str(path)) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def check_format(path: Path, *, is_read_only: bool = False) -> None:
    """Read the format number, and write it into a directory that is new or of a release before."""
    file = path / "format"
    if not file.exists():
        if (path / "data.mdb").exists():
            raise errors.Corrupt(
                "data.mdb is there without a format number: not a metadata store of this software", subject=str(path)
            )
        _write_format(path)
        return
    text = file.read_text(encoding="ascii", errors="replace").strip()
    if not text.isdecimal():
        raise errors.Corrupt("the format number of the metadata store cannot be read", subject=str(file))
    if int(text) > FORMAT:
        raise errors.FormatTooNew(
            f"written by a newer release (format {text}; this one reads up to {FORMAT}); use that release", subject=str(path)
        )
    if int(text) < FORMAT and not is_read_only:
        _write_format(path)


def _write_format(path: Path) -> None:
    partial = path / "format.new"
    with open(partial, "w", encoding="ascii") as out:
        out.write(f"{FORMAT}\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path / "format")
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def translate_os_error(error: OSError, path: Path) -> errors.AlluxioLikeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.NoSpace("no space left for metadata", subject=str(path))
    if error.errno in (errno.EACCES, errno.EPERM):
        return errors.AccessDenied("no access to the directory of the metadata store", subject=str(path))
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return errors.ConfigError("the metadata store must be a directory", subject=str(path))
    return errors.DiskError(f"the metadata store cannot be opened ({error.strerror})", subject=str(path))
