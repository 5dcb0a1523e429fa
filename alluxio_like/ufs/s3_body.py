"""The body of an upload: part of a file, as boto3 reads it.

Owns a descriptor of its own, so that a caller who has gone cannot have another file's bytes sent by closing theirs. Made and left
on the event loop, read in a thread.
"""

import hashlib
import os
from base64 import b64encode

from alluxio_like import errors
from alluxio_like.ufs.threads import Lent
from alluxio_like.ufs.writing import Source

_PIECE_BYTES = 1 << 20


class Body:
    """A source as a file that can be read and sought; `failure` is what reading it raised, whatever the library makes of it."""

    def __init__(self, source: Source, key: str) -> None:
        self._source = source
        self._key = key
        self._position = 0
        self._file: Lent[int] = Lent(os.close)
        with self._file.use(lambda: os.dup(source.fd)):
            pass
        self.failure: errors.AlluxioLikeError | None = None

    def __len__(self) -> int:
        return self._source.length

    def __bool__(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Like a file's, but never short before the end. Raises InvalidArgument where the file is shorter than the source,
        Cancelled once nobody waits any more."""
        left = self._source.length - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        data = b""
        try:
            with self._file.use() as fd:
                while len(data) < wanted:
                    piece = os.pread(fd, wanted - len(data), self._source.offset + self._position + len(data))
                    if not piece:
                        raise errors.InvalidArgument("the source ends before what was promised of it", subject=self._key)
                    data = data + piece if data else piece
        except errors.AlluxioLikeError as error:
            self.failure = error
            raise
        except OSError as error:
            self.failure = errors.DiskError(f"the source cannot be read ({os.strerror(error.errno or 0)})", subject=self._key)
            raise self.failure from error
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.length}[whence]
        self._position = min(max(0, base + offset), self._source.length)
        return self._position

    def tell(self) -> int:
        return self._position

    def make_md5(self) -> str:
        """Of all of it, as the header Content-MD5 wants it; the position is the beginning afterwards."""
        self.seek(0)
        digest = hashlib.md5(usedforsecurity=False)
        while piece := self.read(_PIECE_BYTES):
            digest.update(piece)
        self.seek(0)
        return b64encode(digest.digest()).decode()

    def abandon(self) -> None:
        """Nobody waits any more: what is still being sent breaks off."""
        self._file.abandon()
