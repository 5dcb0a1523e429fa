"""The client library as what the operations need.

Owns nothing but the conversion. Concurrency: that of the client, one event loop.
"""

from collections.abc import Awaitable, Callable, Sequence

from alluxio_like.cache.reader import LocalFile
from alluxio_like.client.changes import Changes
from alluxio_like.client.client import Client, FileReader
from alluxio_like.client.drafts import DraftFiles
from alluxio_like.client.far import FarReader
from alluxio_like.client.locks import Locks
from alluxio_like.client.pending import PendingFiles
from alluxio_like.fuse.backend import Answer, CachedCopy, CacheState, Listing, Totals, WholeFile
from alluxio_like.rpc.messages import BlockLocation
from alluxio_like.types import (
    BLOCK_BYTES,
    PAGE_BYTES,
    PAGES_PER_BLOCK,
    Entry,
    FileRef,
    InodeId,
    Recall,
    get_block_count,
    get_full_mask,
    get_page_count,
)


class ClientBackend:
    """A Backend over a client, which whoever made it closes."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def changes(self) -> Changes:
        return self._client.changes

    @property
    def drafts(self) -> DraftFiles:
        return self._client.drafts

    @property
    def pending(self) -> PendingFiles:
        return self._client.pending

    def open_locks(self, holder: str) -> Locks:
        return self._client.open_locks(holder)

    async def resolve(self, path: str) -> Answer:
        result = await self._client.lookup_path(path)
        return Answer(result.entry, result.valid_s)

    async def lookup(self, parent: InodeId, name: str) -> Answer:
        result = await self._client.lookup(parent, name)
        return Answer(result.entry, result.valid_s)

    def lookup_known(self, parent: InodeId, name: str) -> Answer | None:
        result = self._client.lookup_known(parent, name)
        return None if result is None else Answer(result.entry, result.valid_s)

    def get_known(self, inode: InodeId) -> Answer | None:
        result = self._client.get_known(inode)
        return None if result is None else Answer(result.entry, result.valid_s)

    def lookup_old(self, parent: InodeId, name: str) -> Entry | None:
        return self._client.lookup_old(parent, name)

    def get_old(self, inode: InodeId) -> tuple[Entry, InodeId] | None:
        return self._client.get_old(inode)

    def list_known_names(self, directory: InodeId, limit: int) -> Sequence[bytes] | None:
        return self._client.list_known_names(directory, limit)

    async def get_entry(self, inode: InodeId) -> Answer:
        result = await self._client.get_entry(inode)
        return Answer(result.entry, result.valid_s)

    async def list_dir(self, inode: InodeId, cursor: bytes | None) -> Listing:
        page = await self._client.list_dir(inode, cursor or b"")
        return Listing(page.entries, page.next_cursor or None, page.valid_s)

    def open_file(self, entry: Entry) -> FileReader:
        return self._client.open_file(entry)

    def open_far(self, entry: Entry) -> FarReader | None:
        return self._client.open_far(entry)

    def expect_open(self, entry: Entry) -> None:
        self._client.expect_open(entry)

    def find_whole(self, entry: Entry) -> LocalFile | None:
        return None if entry.ref is None else self._client.find_whole(entry.ref)

    async def verify_whole(self, entry: Entry, whole: WholeFile) -> bool:
        if entry.ref is None or not isinstance(whole, LocalFile):
            return False
        return await self._client.verify_whole(entry.ref, whole)

    @property
    def is_prepared(self) -> bool:
        return self._client.is_local_known

    async def prepare(self) -> None:
        await self._client.find_local()

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        self._client.note_local_read(ref, read_bytes)

    def watch(self, listener: Callable[[Sequence[Recall]], Awaitable[None]], succeeds: Sequence[str] = ()) -> str:
        return self._client.watch(listener, succeeds)

    async def get_totals(self, inode: InodeId) -> Totals:
        totals, space = await self._client.measure(inode)
        return Totals(totals.files, totals.known_bytes, space)

    async def get_cache_state(self, entry: Entry) -> CacheState:
        if entry.ref is None:
            return CacheState(0, ())
        (blocks,) = await self._client.locate([entry.ref.file_id])
        held: dict[str, int] = {}
        for block in blocks:
            held[block.worker_id] = held.get(block.worker_id, 0) + block.present_bytes
        addresses: dict[str, str] = {}
        if held:
            cluster = await self._client.get_cluster()
            addresses = {worker.worker_id: worker.address for worker in cluster.workers}
        copies = [CachedCopy(worker, addresses.get(worker, worker), size) for worker, size in held.items()]
        return CacheState(count_cached_bytes(entry.attr.size, blocks), copies)


def count_cached_bytes(size: int, blocks: "tuple[BlockLocation, ...]") -> int:
    """Bytes of a file of `size` bytes that are in at least one of the copies of its blocks."""
    union: dict[int, int] = {}
    for block in blocks:
        if block.block < get_block_count(size):
            bits = block.present_bits & get_full_mask(size, block.block)
            union[block.block] = union.get(block.block, 0) | bits
    total = sum(bits.bit_count() for bits in union.values()) * PAGE_BYTES
    last_page = get_page_count(size) - 1
    if last_page >= 0 and union.get(last_page * PAGE_BYTES // BLOCK_BYTES, 0) >> (last_page % PAGES_PER_BLOCK) & 1:
        total -= (last_page + 1) * PAGE_BYTES - size
    return total
