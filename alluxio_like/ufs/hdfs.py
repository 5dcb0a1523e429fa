"""HDFS: a directory of one as a store, by hdfs-native, without a JVM.

Owns reading and listing; the connection is `hdfs_client`'s, the order of listings `hdfs_listing`'s, writing `hdfs_writing`'s. A
content is known by its mtime and length, which is all that the library tells; since it cannot be asked for a content, the file is
asked for again after each read. What a reader was opened for cannot change under it: it holds the ids of blocks, which are only
ever appended to. Used on one event loop; listing blocks in threads.
"""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.hdfs_client import Clients, HdfsLink, HdfsSettings
from alluxio_like.ufs.hdfs_listing import Listing, make_entry, make_fingerprint
from alluxio_like.ufs.hdfs_names import get_name, is_ours, make_path
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.uri import StoreUri

if TYPE_CHECKING:
    from hdfs_native import AsyncFileReader, Client, FileStatus

_CHUNK_BYTES = 1 << 20
"""One request to a DataNode, on a connection that is kept, and one piece that the event loop's thread copies. 1, 4 and 8 MiB gave
0.44, 0.48 and 0.38 GB/s at 1.4, 1.7 and 1.9 s of CPU a GB, and held the loop for 3, 10 and 19 ms (0.14.7, loopback)."""
_KEPT_LISTINGS = 8
"""Listings whose place is kept between two pages; a guess. One that was dropped is begun again and skipped through."""
_KEPT_READERS = 16
_READER_S = 30.0
"""An open reader has the places of all blocks of its file, 180 bytes each, asked for at once: that is not repeated for each range
of a large file. A guess: the NameNode's knowledge of dead DataNodes is as old."""


@dataclass(slots=True)
class _Opened:
    """A reader, the clients it belongs to, and until when it is used again."""

    reader: "AsyncFileReader"
    clients: Clients
    until_s: float


class HdfsUfs:
    """`Ufs` on HDFS."""

    def __init__(self, settings: HdfsSettings, prefix: str, *, on_request: Callable[[str], None]) -> None:
        self._address = settings.address
        self._prefix = prefix
        self._on_request = on_request
        self._link = HdfsLink(settings)
        self._listings: OrderedDict[tuple[str, str], Listing] = OrderedDict()
        self._readers: OrderedDict[tuple[str, Fingerprint], _Opened] = OrderedDict()

    @classmethod
    def open(
        cls, uri: StoreUri, values: Mapping[str, OptionValue], *, on_request: Callable[[str], None], io_timeout_s: float
    ) -> "HdfsUfs":
        """The store of an hdfs:// URI with its parsed options; nothing is asked or read yet."""
        return cls(HdfsSettings.make(uri, values, io_timeout_s), uri.prefix, on_request=on_request)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address}/{self._prefix})"

    @property
    def bucket(self) -> str:
        return self._address

    @property
    def checks_first(self) -> bool:
        return False

    # -- asking ---------------------------------------------------------------------------------------------------------------

    async def check(self) -> bool:
        await self.list_page("", max_entries=1)
        return True

    async def stat(self, key: str) -> StoreEntry:
        path = make_path(self._prefix, key)
        self._on_request("HEAD")
        now_ms = time.time_ns() // 1_000_000
        status = await self._get_status(path, key)
        if status.isdir:
            raise errors.NotFound("not a file", subject=key)
        return make_entry(get_name(key), status, now_ms)

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        if prefix and not prefix.endswith("/"):
            raise errors.InvalidArgument("a directory's prefix ends in a slash", subject=prefix)
        path = make_path(self._prefix, prefix.removesuffix("/")) if prefix else "/" + self._prefix.rstrip("/")
        self._on_request("LIST")
        # A token is "serial of the listing:last sort name, in hex".
        serial, _, last = (token or "").partition(":")
        listing = self._listings.pop((prefix, serial), None) if token else None
        now_ms = time.time_ns() // 1_000_000
        # Asked first, as this call can be given up, and a listing's thread cannot.
        if not (await self._get_status(path, prefix)).isdir:
            if not prefix:
                raise errors.StoreMissing("not a directory", subject=f"{self._address}{path}")
            raise errors.NotFound("not a directory", subject=prefix)

        def look(client: "Client") -> tuple[Listing, tuple[StoreEntry, ...], bool]:
            going = listing or Listing(path, client.list_status(path), bytes.fromhex(last), is_ours, now_ms)
            return going, *going.take_page(max_entries)

        going, entries, has_more = await self._link.call_blocking(look, path)
        if not has_more:
            return ListPage(entries, None)
        # The serial tells apart listings of one directory that run at the same time.
        serial = serial or f"{time.monotonic_ns():x}"
        self._listings[prefix, serial] = going
        if len(self._listings) > _KEPT_LISTINGS:
            self._listings.popitem(last=False)
        return ListPage(entries, f"{serial}:{going.last.hex()}")

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        if offset < 0 or length < 0 or offset + length > fingerprint.size:
            raise errors.InvalidArgument("the range lies outside of the content", subject=key)
        if length == 0:
            return
        self._on_request("GET")
        path = make_path(self._prefix, key)
        opened = await self._open(path, key, fingerprint)
        end = offset + length
        if end > len(opened.reader):
            await self._compare(path, key, fingerprint)
            raise errors.StoreError("the file is being written: its end can be read once it is closed", subject=key)
        with opened.clients.hold():
            try:
                while offset < end:
                    size = min(_CHUNK_BYTES, end - offset)
                    chunk = await self._link.transfer(opened.clients, opened.reader.read_range(offset, size), key)
                    if len(chunk) != size:
                        raise errors.StoreProtocol(f"the answer has {len(chunk)} bytes instead of {size}", subject=key)
                    yield memoryview(chunk)
                    offset += size
            except errors.StoreError:
                # Perhaps its blocks are gone because it is; else they may have other places by now.
                self._readers.pop((key, fingerprint), None)
                await self._compare(path, key, fingerprint)
                raise
        await self._compare(path, key, fingerprint)

    async def close(self) -> None:
        self._listings.clear()
        self._readers.clear()
        await self._link.close()

    async def _open(self, path: str, key: str, fingerprint: Fingerprint) -> _Opened:
        now_s = time.monotonic()
        opened = self._readers.get((key, fingerprint))
        if opened is not None and opened.until_s > now_s and not opened.clients.is_retired:
            return opened
        clients = await self._link.get_clients()
        try:
            reader = await self._link.call_on(clients, clients.client.read(path), key)
        except (errors.NotFound, errors.NotADirectory):
            raise errors.Stale("the file is no longer there", subject=key) from None
        opened = _Opened(reader, clients, now_s + _READER_S)
        self._readers[key, fingerprint] = opened
        while len(self._readers) > _KEPT_READERS or next(iter(self._readers.values())).until_s <= now_s:
            self._readers.popitem(last=False)
        return opened

    async def _compare(self, path: str, key: str, fingerprint: Fingerprint) -> None:
        """Raises Stale unless the store has the content meant."""
        try:
            status = await self._link.call(lambda client: client.get_file_info(path), key)
        except (errors.NotFound, errors.NotADirectory):
            raise errors.Stale("the file is no longer there", subject=key) from None
        if status.isdir or make_fingerprint(status) != fingerprint:
            raise errors.Stale("the file has changed", subject=key)

    async def _get_status(self, path: str, key: str) -> "FileStatus":
        """Raises NotFound; StoreMissing where the mount's own directory is not there."""
        try:
            return await self._link.call(lambda client: client.get_file_info(path), key)
        except (errors.NotFound, errors.NotADirectory):
            root = "/" + self._prefix.rstrip("/")
            if path != root:
                await self._get_status(root, "")
                raise errors.NotFound("no such file or directory", subject=key) from None
        raise errors.StoreMissing("there is no such directory", subject=f"{self._address}/{self._prefix}")
