"""The index of one cache directory: LMDB, one environment, one writer process, any number of reading processes.

Owns transactions and the sums over all files. Writers group what they have: one commit costs one fdatasync, whatever its size. A
commit is in the data file before it is visible, but its meta page may be lost with the machine (metasync off): then the directory
is as it was one commit earlier, which the trust number makes harmless. One lock serialises commits and the delivery of what they
changed, so that changes are delivered in commit order.
"""

import contextlib
import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import lmdb

from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache.format import BlockRecord, FileRecord, UsageRecord
from alluxio_like.types import FileId, InodeId, VersionId

_LOG = logging.getLogger(__name__)

MAX_READERS = 2048
"""Slots for read transactions, of all processes together; each thread that looks uses one for microseconds."""
MIN_MAP_BYTES = 1 << 30
SCAN_BATCH = 2000
_VERSIONS_BATCH = 4
"""A file has one version in the cache, seldom more."""
RESERVE_BYTES = 4 << 20
"""Space beyond what the index takes that its disk keeps for it. Others may fill that disk, and what is removed then has to be
written down before its bytes may go. A guess: removing a file changes a few pages, of which most are used again."""
SOON_S = 0.05
"""When what nobody waits for is committed at the latest. A guess: as long as a name may take at the master."""


@dataclass(slots=True)
class BlockPut:
    """A block to write, for the generation of the file it comes with; bits 0 deletes it."""

    block: int
    trust: int
    bits: int
    checksums: "array[int]"


@dataclass(slots=True)
class FilePut:
    """A file to write with those of its blocks that changed."""

    file_id: FileId
    record: FileRecord
    blocks: list[BlockPut] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a commit did to one block of a file of `size` bytes; bits 0: it is gone."""

    file_id: FileId
    block: int
    bits: int
    size: int


@dataclass(frozen=True, slots=True)
class Tables:
    """Handles of the tables of one environment."""

    files: Any
    blocks: Any
    writing: Any


@dataclass(slots=True)
class _Ticket:
    """Changes that wait for a transaction that is forced to the disk."""

    puts: list[FilePut]
    removes: list[tuple[FileId, int]]
    writing: Mapping[bytes, bytes | None]
    force: bool
    is_awaited: bool = False
    done: bool = False
    error: BaseException | None = None


class Index:
    """One directory's index, open for writing."""

    def __init__(self, path: str, map_bytes: int, on_commit: Callable[[list[Effect]], None]) -> None:
        self._env = lmdb.open(
            path,
            map_size=max(map_bytes, MIN_MAP_BYTES),
            subdir=True,
            mode=0o600,
            metasync=False,
            max_readers=MAX_READERS,
            max_spare_txns=16,
            max_dbs=3,
            readahead=False,
        )
        self._tables = Tables(*(self._env.open_db(name) for name in (fmt.FILES, fmt.BLOCKS, fmt.WRITING)))
        self._env.reader_check()
        self._page_bytes = int(self._env.stat()["psize"])
        self._reserved_bytes = 0
        self._fd = os.open(f"{path}/data.mdb", os.O_RDWR | os.O_CLOEXEC)
        self._reserve()
        self._on_commit = on_commit
        self.lock = threading.RLock()
        """Held around a commit and the delivery of its effects."""
        self._tickets_lock = threading.Lock()
        self._tickets: list[_Ticket] = []
        self._committing: list[_Ticket] = []
        self._closed = threading.Event()
        self._soon = threading.Event()
        self._committer: threading.Thread | None = None
        raw = self.get_meta(fmt.KEY_USAGE)
        self._usage = fmt.unpack_usage(raw) if raw else UsageRecord()
        self.trust = int.from_bytes(self.get_meta(fmt.KEY_TRUST) or b"\0", "big")

    @property
    def usage(self) -> UsageRecord:
        """Sums over all committed files."""
        return self._usage

    def get_meta(self, key: bytes) -> bytes | None:
        with self._env.begin() as txn:
            value = txn.get(key)
            return bytes(value) if value is not None else None

    def put_meta(self, values: dict[bytes, bytes]) -> None:
        """Write values of the directory (empty: forget it) and force them to the disk, meta page included."""
        with self.lock:
            with self._env.begin(write=True) as txn:
                for key, value in values.items():
                    txn.put(key, value) if value else txn.delete(key)
            self._env.sync(True)

    def lookup_file(self, file_id: FileId) -> FileRecord | None:
        with self._env.begin() as txn:
            raw = txn.get(fmt.make_file_key(file_id), db=self._tables.files)
        return fmt.unpack_file(raw) if raw is not None else None

    def lookup_block(self, file_id: FileId, block: int) -> BlockRecord | None:
        with self._env.begin() as txn:
            raw = txn.get(fmt.make_block_key(file_id, block), db=self._tables.blocks)
        return fmt.unpack_block(raw) if raw is not None else None

    def get_writing(self, key: bytes) -> bytes | None:
        """A record of what programs write here, also one that is to be committed soon."""
        with self._tickets_lock:
            for ticket in reversed([*self._committing, *self._tickets]):
                if key in ticket.writing:
                    return ticket.writing[key]
        with self._env.begin() as txn:
            value = txn.get(key, db=self._tables.writing)
            return bytes(value) if value is not None else None

    def scan_writing(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Those records whose keys begin with `prefix`."""
        for key, value in self._scan(self._tables.writing, prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def commit_durably(
        self,
        writing: Mapping[bytes, bytes | None],
        *,
        puts: Sequence[FilePut] = (),
        removes: Sequence[tuple[FileId, int]] = (),
    ) -> None:
        """Like `commit_grouped`, and the transaction outlives a power loss when this returns."""
        self._commit_ticket(_Ticket(list(puts), list(removes), writing, force=True, is_awaited=True))

    def commit_grouped(self, writing: Mapping[bytes, bytes | None], *, puts: Sequence[FilePut] = ()) -> None:
        """Change records of what programs write (None: forget it), and files with them, in one transaction. Callers at the same
        time share a transaction, and so its wait for the disk.

        Raises lmdb.Error or OSError: then it is not known whether anything was changed.
        """
        self._commit_ticket(_Ticket(list(puts), [], writing, force=False, is_awaited=True))

    def commit_soon(self, writing: Mapping[bytes, bytes | None]) -> None:
        """As `commit_grouped`, without waiting: it is in the next transaction, after SOON_S at the latest. For what a start can
        find out in another way when the process is killed before."""
        with self._tickets_lock:
            self._tickets.append(_Ticket([], [], writing, force=False))
            if self._committer is None:
                self._committer = threading.Thread(target=self._commit_now_and_then, name="index-soon", daemon=True)
                self._committer.start()
        self._soon.set()

    def commit_waiting(self) -> None:
        """What `commit_soon` was given by now is committed when this returns. Raises as `commit_grouped`."""
        with self._tickets_lock:
            if not (self._tickets or self._committing):
                return
        self._commit_ticket(_Ticket([], [], {}, force=False, is_awaited=True))

    def _commit_now_and_then(self) -> None:
        while not self._closed.is_set():
            self._soon.wait()
            self._closed.wait(SOON_S)
            self._soon.clear()
            with self.lock:
                if self._tickets and not self._closed.is_set():
                    self._commit_all()

    def _commit_all(self) -> None:
        """Under the lock. Commit what waits; what nobody waits for stays in front of the next transaction when that fails."""
        with self._tickets_lock:
            tickets, self._tickets = self._tickets, []
            self._committing = tickets
        self._commit_tickets(tickets)
        with self._tickets_lock:
            self._committing = []
            failed = [one for one in tickets if one.error is not None and not one.is_awaited]
            for one in failed:
                one.error, one.done = None, False
            self._tickets = [*failed, *self._tickets]

    def _commit_ticket(self, ticket: _Ticket) -> None:
        with self._tickets_lock:
            self._tickets.append(ticket)
        with self.lock:
            if not ticket.done:
                self._commit_all()
        if ticket.error is not None:
            raise ticket.error

    def _commit_tickets(self, tickets: list[_Ticket]) -> None:
        """Under the lock."""
        try:
            changed: dict[bytes, bytes | None] = {}
            for one in tickets:
                changed.update(one.writing)
            removes = [remove for one in tickets for remove in one.removes]
            self.commit(lambda: [put for one in tickets for put in one.puts], removes, writing=changed)
            if any(one.force for one in tickets):
                self._env.sync(True)
        except (lmdb.Error, OSError) as error:
            if not any(one.is_awaited for one in tickets):
                _LOG.error("a cache directory's index cannot be written: it is tried again with the next change: %s", error)
            for one in tickets:
                one.error = error
        finally:
            for one in tickets:
                one.done = True

    def commit(
        self,
        make_puts: Callable[[], list[FilePut]],
        removes: list[tuple[FileId, int]],
        uses: dict[FileId, int] | None = None,
        writing: Mapping[bytes, bytes | None] = MappingProxyType({}),
    ) -> None:
        """One transaction: the puts (made inside, so that a later commit never writes an older state), then the removal of files
        of the given generations, then last uses in seconds since the epoch, then records of what programs write.

        Raises lmdb.Error or OSError: then nothing was changed.
        """
        with self.lock:
            usage = replace(self._usage)
            effects: list[Effect] = []
            with self._env.begin(write=True) as txn:
                for put in make_puts():
                    _put_file(txn, self._tables, put, usage, effects)
                for file_id, generation in removes:
                    _remove_file(txn, self._tables, file_id, generation, usage, effects)
                for file_id, now_s in (uses or {}).items():
                    _put_use(txn, self._tables, file_id, now_s)
                for key, value in writing.items():
                    if value is None:
                        txn.delete(key, db=self._tables.writing)
                    else:
                        txn.put(key, value, db=self._tables.writing)
                txn.put(fmt.KEY_USAGE, fmt.pack_usage(usage))
            self._usage = usage
            self._reserve()
            self._on_commit(effects)

    def _reserve(self) -> None:
        """Under the lock. Keep space free for what comes; where there is none, or none can be kept, it goes on without."""
        used = (int(self._env.info()["last_pgno"]) + 1) * self._page_bytes
        if used + RESERVE_BYTES // 2 > self._reserved_bytes:
            with contextlib.suppress(OSError):
                syscalls.reserve(self._fd, used, RESERVE_BYTES)
            # Not asked for again before half of it is used, whatever came of it.
            self._reserved_bytes = used + RESERVE_BYTES

    def scan_files(self, after: FileId | None = None) -> Iterator[tuple[FileId, FileRecord]]:
        """All files in the order of their ids, or those behind one."""
        start = b"" if after is None else fmt.make_file_key(after) + b"\0"
        for key, raw in self._scan(self._tables.files, start):
            yield fmt.parse_file_key(key), fmt.unpack_file(raw)

    def scan_inode(self, inode: InodeId) -> Iterator[tuple[FileId, FileRecord]]:
        """All files of an inode."""
        start = FileId(inode, VersionId(0))
        if (first := self.lookup_file(start)) is not None:
            yield start, first
        for key, raw in self._scan(self._tables.files, fmt.make_file_key(start) + b"\0", _VERSIONS_BATCH):
            file_id = fmt.parse_file_key(key)
            if file_id.inode != inode:
                return
            yield file_id, fmt.unpack_file(raw)

    def scan_blocks(self) -> Iterator[tuple[FileId, int, int, int]]:
        """File id, block, trust, bits of every block."""
        for key, raw in self._scan(self._tables.blocks):
            file_id, block = fmt.parse_block_key(key)
            _, trust, bits = fmt.unpack_block_header(raw)
            yield file_id, block, trust, bits

    def _scan(self, table: Any, start: bytes = b"", at_once: int = SCAN_BATCH) -> Iterator[tuple[bytes, bytes]]:
        """Records of a table, in batches: no read transaction stays open meanwhile (it would keep pages from reuse)."""
        while True:
            batch: list[tuple[bytes, bytes]] = []
            with self._env.begin() as txn, txn.cursor(table) as cursor:
                if cursor.set_range(start):
                    for key, value in cursor:
                        if len(batch) >= at_once:
                            break
                        batch.append((bytes(key), bytes(value)))
            yield from batch
            if len(batch) < at_once:
                return
            start = batch[-1][0] + b"\0"

    def check_readers(self) -> int:
        """Free the slots of processes that died in a read; returns how many."""
        return self._env.reader_check()

    def close(self, *, clean: bool = True) -> None:
        """`clean`: what was to be committed soon is committed before."""
        self._closed.set()
        self._soon.set()
        if self._committer is not None:
            self._committer.join()
        with self.lock:
            if self._tickets and clean:
                self._commit_all()
        self._env.close()
        os.close(self._fd)


def account(usage: UsageRecord, record: FileRecord, sign: int) -> None:
    """Add a file to the sums (`sign` 1), or take it out (-1)."""
    held = sign * fmt.get_disk_bytes(record.present_bytes)
    usage.used_bytes += held
    usage.file_count += sign
    if record.role == 2:  # Role.GUEST
        usage.guest_bytes += held
    else:
        usage.home_bytes += held
    if record.pinned:
        usage.pinned_bytes += held


def _put_file(txn: lmdb.Transaction, tables: Tables, put: FilePut, usage: UsageRecord, effects: list[Effect]) -> None:
    key = fmt.make_file_key(put.file_id)
    raw = txn.get(key, db=tables.files)
    if raw is not None:
        old = fmt.unpack_file(bytes(raw))
        if old.generation == put.record.generation:
            account(usage, old, -1)
            put.record.last_use_s = max(put.record.last_use_s, old.last_use_s)
        else:
            _remove_file(txn, tables, put.file_id, old.generation, usage, effects)
    account(usage, put.record, 1)
    txn.put(key, fmt.pack_file(put.record), db=tables.files)
    for block in put.blocks:
        block_key = fmt.make_block_key(put.file_id, block.block)
        if block.bits:
            txn.put(block_key, fmt.pack_block(put.record.generation, block.trust, block.bits, block.checksums), db=tables.blocks)
        else:
            txn.delete(block_key, db=tables.blocks)
        effects.append(Effect(put.file_id, block.block, block.bits, put.record.size))


def _remove_file(
    txn: lmdb.Transaction, tables: Tables, file_id: FileId, generation: int, usage: UsageRecord, effects: list[Effect]
) -> None:
    key = fmt.make_file_key(file_id)
    raw = txn.get(key, db=tables.files)
    if raw is None:
        return
    record = fmt.unpack_file(bytes(raw))
    if record.generation != generation:
        return
    account(usage, record, -1)
    txn.delete(key, db=tables.files)
    prefix = fmt.make_block_prefix(file_id)
    with txn.cursor(tables.blocks) as cursor:
        found = cursor.set_range(prefix)
        while found and bytes(cursor.key()).startswith(prefix):
            _, block = fmt.parse_block_key(bytes(cursor.key()))
            effects.append(Effect(file_id, block, 0, record.size))
            found = cursor.delete()


def _put_use(txn: lmdb.Transaction, tables: Tables, file_id: FileId, now_s: int) -> None:
    key = fmt.make_file_key(file_id)
    raw = txn.get(key, db=tables.files)
    if raw is not None:
        record = fmt.unpack_file(bytes(raw))
        record.last_use_s = max(now_s, record.last_use_s)
        txn.put(key, fmt.pack_file(record), db=tables.files)
