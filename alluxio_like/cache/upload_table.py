"""What a worker has to upload, in memory: versions that the store does not have, in the order of their coming and by inode.

Owns the table and the sums over it; what of it is on the disk is drafts.py's. No call takes longer the more there is, but those
that list all of it. Rule of concurrency: any thread may call; `_lock` is held for arithmetic alone.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Collection

from alluxio_like.cache.writing_records import UploadRecord
from alluxio_like.types import FileId, InodeId


class UploadTable:
    """Records, each with the number of the cache directory that has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uploads: dict[FileId, tuple[UploadRecord, int]] = {}
        self._by_inode: dict[InodeId, dict[FileId, None]] = {}
        self._by_mode: defaultdict[str, dict[FileId, None]] = defaultdict(dict)
        self._bytes: Counter[str] = Counter()

    def __contains__(self, file_id: FileId) -> bool:
        return file_id in self._uploads

    def get(self, file_id: FileId) -> tuple[UploadRecord, int] | None:
        """A record and its directory; None: there is none."""
        return self._uploads.get(file_id)

    def put(self, record: UploadRecord, directory: int) -> None:
        """A new record, or another one in the same place."""
        file_id = record.file_id
        with self._lock:
            old = self._uploads.get(file_id)
            if old is not None:
                self._remove(old[0])
            self._uploads[file_id] = record, directory
            self._by_inode.setdefault(file_id.inode, {})[file_id] = None
            self._add(record)

    def pop(self, file_id: FileId) -> tuple[UploadRecord, int] | None:
        """Take a record out; None: there is none."""
        with self._lock:
            found = self._uploads.pop(file_id, None)
            if found is not None:
                self._remove(found[0])
                versions = self._by_inode[file_id.inode]
                del versions[file_id]
                if not versions:
                    del self._by_inode[file_id.inode]
            return found

    def list_all(self) -> list[UploadRecord]:
        """All of them."""
        with self._lock:
            return [record for record, _ in self._uploads.values()]

    def list_inodes(self, modes: Collection[str]) -> list[InodeId]:
        """Those that have any of these modes."""
        with self._lock:
            return [file_id.inode for mode in modes for file_id in self._by_mode[mode]]

    def list_of(self, inode: InodeId) -> list[UploadRecord]:
        """Those of one inode, the oldest version first."""
        with self._lock:
            found = [self._uploads[file_id][0] for file_id in self._by_inode.get(inode, ())]
        return sorted(found, key=lambda record: record.ref.version)

    def count(self, modes: Collection[str] | None = None) -> tuple[int, int]:
        """How many have one of these modes (None: whatever mode), and their bytes."""
        with self._lock:
            chosen = list(self._by_mode) if modes is None else modes
            return sum(len(self._by_mode[mode]) for mode in chosen), sum(self._bytes[mode] for mode in chosen)

    def _add(self, record: UploadRecord) -> None:
        self._by_mode[record.mode][record.file_id] = None
        self._bytes[record.mode] += record.ref.size

    def _remove(self, record: UploadRecord) -> None:
        del self._by_mode[record.mode][record.file_id]
        self._bytes[record.mode] -= record.ref.size
