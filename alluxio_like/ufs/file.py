"""A local directory, or a network file system mounted at one. (Interface only so far.)"""

from collections.abc import AsyncIterator, Callable

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.uri import StoreUri


class FileUfs:
    """`Ufs` on a directory."""

    @classmethod
    def open(cls, uri: StoreUri, *, on_request: Callable[[str], None], io_timeout_s: float) -> "FileUfs":
        raise errors.Internal("not there yet")

    @property
    def bucket(self) -> str:
        raise errors.Internal("not there yet")

    @property
    def checks_first(self) -> bool:
        return False

    async def check(self) -> None:
        raise errors.Internal("not there yet")

    async def stat(self, key: str) -> StoreEntry:
        raise errors.Internal("not there yet")

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        raise errors.Internal("not there yet")

    def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        raise errors.Internal("not there yet")

    async def close(self) -> None:
        raise errors.Internal("not there yet")
