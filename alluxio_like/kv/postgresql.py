"""The engine for metadata that must outlive a machine: a PostgreSQL server, with a copy in LMDB that answers the reads.

Owns two tables (the pairs; one row that says who writes), the connection, its place as the only writer, and the copy ("mirror")
in a local directory. Does not know what is stored.

Reads come from the mirror: they take microseconds, hold nothing on the server, and go on while it is away. A write runs on the
mirror first, in a transaction that is not committed; what it changed goes to the server as one statement; once that has committed
the mirror does. So nobody reads what the server may not have. A mirror that is not exactly what the server has, or is not there,
is filled anew.

Who may write: the row has an epoch, which each connection raises by one for itself, and the number of commits. The statement of a
write changes something only if both are what this process knows, in the transaction of the change. So a process that lost its
place, or a statement that was lost in the network and arrives late, never commits. A session lock beside it tells a second
process that the place is taken; nothing rests on it.

A connection that breaks within a commit leaves open whether it was done. The next connection knows: it waits for the row, raises
the epoch, and reads the number. If there is none in time, `Unavailable` is raised and the answer is found before the next write
begins; `on_late` is called if the change was done after all.

Durability: what was committed survives whatever the server's does (synchronous_commit is on, whatever the server's default).

Rule of concurrency: as in lmdb.py; writes, `keep` and `flush` are serialised by one lock. Every wait for the server is bounded.
"""

import contextlib
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alluxio_like import errors
from alluxio_like.kv.api import Begun, ReadTransaction, WriteTransaction
from alluxio_like.kv.columns import Columns, Numbers
from alluxio_like.kv.lmdb import LmdbStore, LmdbTransaction

log = logging.getLogger(__name__)

FORMAT = 1
RETRY_S = 0.2
START_PATIENCE_S = 15.0
"""How long a start waits for a place that is taken: a server notices the loss of a machine within 11 s by the settings below."""
CONNECT_S = 5.0
"""How long a start tries to reach the server: whoever started it hears what is wrong, and starts it again."""
_FILL_ROWS = 50_000
_CLIENT_SETTINGS = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "application_name": "alluxio-like",
}
_SESSION_SETTINGS = """
SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 10000;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')
"""
_TABLES = """
CREATE TABLE IF NOT EXISTS alluxio_like_pairs (key bytea PRIMARY KEY, value bytea NOT NULL);
CREATE TABLE IF NOT EXISTS alluxio_like_place (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL, store text NOT NULL, epoch bigint NOT NULL, number bigint NOT NULL, holder text NOT NULL
);
INSERT INTO alluxio_like_place (format, store, epoch, number, holder)
    VALUES (1, md5(random()::text || clock_timestamp()::text), 0, 0, '') ON CONFLICT DO NOTHING
"""
_LOCK = "SELECT pg_try_advisory_lock(1634497132, 'alluxio_like_place'::regclass::oid::integer)"
_TAKE = "UPDATE alluxio_like_place SET epoch = epoch + 1, holder = %s RETURNING epoch, number, store"
_TAKE_AGAIN = "UPDATE alluxio_like_place SET epoch = epoch + 1 WHERE epoch = %s AND store = %s RETURNING epoch, number, store"
_COMMIT = """
WITH place AS (
    UPDATE alluxio_like_place SET number = number + 1 WHERE epoch = %s AND number = %s RETURNING number
), gone AS (
    DELETE FROM alluxio_like_pairs WHERE key = ANY(%b::bytea[]) AND EXISTS (SELECT FROM place)
), come AS (
    INSERT INTO alluxio_like_pairs (key, value)
    SELECT * FROM unnest(%b::bytea[], %b::bytea[]) AS pair (key, value) WHERE EXISTS (SELECT FROM place)
    ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value
)
SELECT number FROM place
"""
_LOST_COMMITS = "the database lost what it had committed; start the master again to take up what it has"
_NOTE = b"mirrors"

Changes = Mapping[bytes, bytes | None]


class _Broken(Exception):
    """The connection ended within a call: whether what was asked for was done is not known."""


class _Writer:
    """A write transaction on the mirror that remembers what it changed; valid within its `with` block only."""

    def __init__(self, store: "PostgresqlStore") -> None:
        self._store = store
        self._inner: LmdbTransaction | None = None
        self.changes: dict[bytes, bytes | None] = {}

    def __enter__(self) -> Self:
        self._inner = self._store.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        inner, self._inner = self._inner, None
        assert inner is not None
        self._store.end(inner, self.changes if kind is None else None)

    def _open(self) -> LmdbTransaction:
        if self._inner is None:
            raise errors.Internal("a transaction is used outside of its block")
        return self._inner

    def get(self, key: bytes) -> bytes | None:
        return self._open().get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._open().get_many(keys)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._open().scan(start, stop, limit=limit, reverse=reverse)

    def scan_columns(self, start: bytes, stop: bytes, *, limit: int | None = None) -> Columns:
        return self._open().scan_columns(start, stop, limit=limit)

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        return self._open().scan_numbers(letter, numbers)

    def put(self, key: bytes, value: bytes) -> None:
        self._open().put(key, value)
        self.changes[key] = value

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._open().put_many(pairs)
        self.changes.update(pairs)

    def delete(self, key: bytes) -> bool:
        there = self._open().delete(key)
        if there:
            self.changes[key] = None
        return there


class PostgresqlStore:
    """A KeyValueStore in the database that a libpq URL names, with its mirror in directory `mirror`, made where it is missing.

    Raises ConfigError (the extra is not installed, not a URL), Conflict (another process has it), Unavailable (no server within
    `timeout_s`), AccessDenied, FormatTooNew, and what LmdbStore raises for the mirror.
    """

    def __init__(
        self,
        url: str,
        mirror: Path,
        *,
        timeout_s: float = 30.0,
        patience_s: float = START_PATIENCE_S,
        on_late: Callable[[], object] = lambda: None,
    ) -> None:
        self._settings = _parse(url)
        self._where = f"postgresql://{self._settings.get('host', '')}/{self._settings.get('dbname', '')}"
        self._timeout_s = timeout_s
        self._on_late = on_late
        self._lock = threading.Lock()
        self._writer: int | None = None
        self._closed = False
        self._connection: Any = None
        self._has_lock = False
        self._down_since: float | None = None
        self._lost: errors.AlluxioLikeError | None = None
        self._unknown: Changes | None = None
        self._epoch = self._number = 0
        self._store_id = ""
        self._mirror: LmdbStore | None = None
        try:
            self._start(patience_s)
            self._mirror = self._open_mirror(mirror)
        except BaseException:
            self._disconnect()
            raise

    # -- transactions --------------------------------------------------------------------------------------------------

    def read(self) -> contextlib.AbstractContextManager[ReadTransaction]:
        return self._get_mirror().read()

    def write(self) -> contextlib.AbstractContextManager[WriteTransaction]:
        return _Writer(self)

    def begin(self) -> LmdbTransaction:
        """For this module's transactions only."""
        if self._writer == threading.get_ident():
            raise errors.Internal("a write transaction within another one of the same thread")
        self._lock.acquire()
        try:
            self._settle(self._get_deadline())
            inner = self._get_mirror().begin_write()
        except BaseException:
            self._lock.release()
            raise
        self._writer = threading.get_ident()
        return inner

    def end(self, inner: LmdbTransaction, changes: Changes | None) -> None:
        """For this module's transactions only; `changes` None: the transaction is given up."""
        try:
            if not changes:
                inner.finish(commit=False)
                return
            try:
                self._commit(changes)
                # From here on the server has it: what hinders the mirror now is made good before the next write.
                self._unknown = changes
                inner.put_note(_NOTE, self._describe(self._number + 1))
            except BaseException:
                inner.finish(commit=False)
                raise
            inner.finish(commit=True)
            self._number += 1
            self._unknown = None
        finally:
            self._writer = None
            self._lock.release()

    def _commit(self, changes: Changes) -> None:
        """Have the server take the changes as its next commit. Raises Unavailable, and `_unknown` then says what is not known."""
        deadline = self._get_deadline()
        while True:
            try:
                self._send(changes)
                return
            except _Broken:
                self._disconnect()
            self._unknown = changes
            before = self._number
            self._settle(deadline, changes)
            if self._number > before:
                # It was done; the mirror's transaction is still open, so it is counted by who called.
                self._number = before
                return

    def _send(self, changes: Changes) -> None:
        gone = [key for key, value in changes.items() if value is None]
        come = {key: value for key, value in changes.items() if value is not None}
        arguments = (self._epoch, self._number, gone, list(come), list(come.values()))
        if not self._run(_COMMIT, arguments):
            raise self._lose()

    def _settle(self, deadline: float, own: Changes | None = None) -> None:
        """Return with a connection that has the place, and knowing what the server has. `own`: changes of a transaction that is
        still open, which its owner commits itself."""
        if self._lost is not None:
            raise self._lost
        if self._connection is None:
            self._reconnect(deadline)
        changes = self._unknown
        if changes is None:
            return
        ((found,),) = self._ask("SELECT number FROM alluxio_like_place", deadline)
        if found not in (self._number, self._number + 1):
            raise self._lose(_LOST_COMMITS)
        if found == self._number + 1 and changes is not own:
            self._take_late(changes)
        self._number = found
        self._unknown = None

    def _take_late(self, changes: Changes) -> None:
        """Have the mirror take what the server committed while nobody could tell."""
        inner = self._get_mirror().begin_write()
        try:
            for key, value in changes.items():
                if value is None:
                    inner.delete(key)
                else:
                    inner.put(key, value)
            inner.put_note(_NOTE, self._describe(self._number + 1))
        except BaseException:
            inner.finish(commit=False)
            raise
        inner.finish(commit=True)
        self._on_late()

    def keep(self) -> None:
        """Look whether this process still has its place; raises Conflict if another has it, Unavailable if none can tell."""
        with self._lock:
            # One try: who writes has more patience.
            deadline = time.monotonic()
            self._settle(deadline)
            ((epoch,),) = self._ask("SELECT epoch FROM alluxio_like_place", deadline)
            if epoch != self._epoch:
                raise self._lose()
            if not self._has_lock:
                ((self._has_lock,),) = self._ask(_LOCK, deadline)

    def flush(self) -> None:
        # What was committed is durable; what matters here is that the writes before have ended.
        with self._lock:
            self._get_mirror()

    def read_ahead(self, keys: Sequence[bytes]) -> Begun:
        return self._get_mirror().read_ahead(keys)

    def read_through(self, may_go_on: Callable[[], bool]) -> None:
        self._get_mirror().read_through(may_go_on)

    def get_size_bytes(self) -> int:
        """Those of the mirror; the server needs two to three times as much."""
        return self._get_mirror().get_size_bytes()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            mirror, self._mirror = self._mirror, None
            self._disconnect()
            if mirror is not None:
                mirror.close()

    def _get_mirror(self) -> LmdbStore:
        if self._mirror is None:
            raise errors.Internal("the key-value store is closed", subject=self._where)
        return self._mirror

    def _describe(self, number: int) -> bytes:
        """What the mirror notes of what it mirrors."""
        return f"{self._store_id} {number}".encode()

    # -- the place -----------------------------------------------------------------------------------------------------

    def _start(self, patience_s: float) -> None:
        self._connection = self._connect(time.monotonic() + min(self._timeout_s, CONNECT_S))
        until = time.monotonic() + patience_s
        deadline = time.monotonic() + self._timeout_s + patience_s
        if not self._ask("SELECT 1 WHERE to_regclass('alluxio_like_place') IS NOT NULL", deadline):
            self._ask(_TABLES, deadline, results=False)
        ((number,),) = self._ask("SELECT format FROM alluxio_like_place", deadline)
        if number > FORMAT:
            raise errors.FormatTooNew(
                f"written by a newer release (format {number}; this one reads up to {FORMAT}); use that release",
                subject=self._where,
            )
        while not self._ask(_LOCK, deadline)[0][0]:
            if time.monotonic() >= until:
                ((holder,),) = self._ask("SELECT holder FROM alluxio_like_place", deadline)
                raise errors.Conflict(f"another master ({holder}) uses the database {self._where}: stop it", subject=self._where)
            time.sleep(RETRY_S)
        self._has_lock = True
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        ((self._epoch, self._number, self._store_id),) = self._ask(_TAKE, deadline, (holder,))

    def _reconnect(self, deadline: float) -> None:
        """A new connection in the same place. Raises Unavailable, Conflict."""
        self._connection = self._connect(deadline)
        self._has_lock = False
        try:
            # It waits for the row if a commit of the connection before is still under way, and fences what arrives later.
            rows = self._ask(_TAKE_AGAIN, deadline, (self._epoch, self._store_id))
            if not rows:
                raise self._lose()
            ((self._epoch, number, _),) = rows
            if self._unknown is None and number != self._number:
                raise self._lose(_LOST_COMMITS)
            ((self._has_lock,),) = self._ask(_LOCK, deadline)
        except BaseException:
            self._disconnect()
            raise
        log.info("connected to the metadata's database again", extra={"database": self._where})

    def _lose(self, why: str = "another master took over the metadata; this one must stop") -> errors.AlluxioLikeError:
        self._lost = errors.Conflict(why, subject=self._where)
        self._disconnect()
        return self._lost

    # -- the connection ------------------------------------------------------------------------------------------------

    def _get_deadline(self) -> float:
        """When a write that begins now gives up: all that wait for a server that is away share one timeout."""
        now = time.monotonic()
        return max(now, (self._down_since if self._down_since is not None else now) + self._timeout_s)

    def _connect(self, deadline: float) -> Any:
        """A new connection; tried until the deadline, once at least."""
        import psycopg

        while True:
            left = deadline - time.monotonic()
            try:
                connection = psycopg.connect(**{**self._settings, "connect_timeout": max(2, min(int(left), 10))}, autocommit=True)
                connection.prepare_threshold = 1
                self._connection = connection
                self._run(_SESSION_SETTINGS, results=False)
                self._run(f"SET statement_timeout = {int(self._timeout_s * 1000)}", results=False)
            except errors.AlluxioLikeError:
                self._disconnect()
                raise
            except (psycopg.Error, _Broken) as error:
                self._disconnect()
                found = _translate(error, self._where)
                if self._down_since is None:
                    self._down_since = time.monotonic()
                    log.warning("the metadata's database is away", extra={"database": self._where, "error": str(found)})
                if time.monotonic() + RETRY_S >= deadline:
                    raise found from None
                time.sleep(RETRY_S)
            else:
                self._down_since = None
                return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _ask(self, query: str, deadline: float, arguments: Sequence[Any] = (), *, results: bool = True) -> list[tuple[Any, ...]]:
        """`_run` for what changes no pairs: a break is Unavailable."""
        try:
            return self._run(query, arguments, results=results, timeout_s=max(2.0, deadline - time.monotonic()))
        except _Broken as error:
            self._disconnect()
            raise errors.Unavailable("the connection to the metadata's database broke", subject=self._where) from error

    def _run(
        self, query: str, arguments: Sequence[Any] = (), *, results: bool = True, timeout_s: float | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of one query. Raises `_Broken`, or what the server answered."""
        import psycopg

        connection = self._connection
        try:
            with _Watch(connection, timeout_s or self._timeout_s), connection.cursor(binary=bool(arguments)) as cursor:
                cursor.execute(query, arguments or None)
                return cursor.fetchall() if results else []
        except psycopg.Error as error:
            if connection.closed or error.sqlstate is None or error.sqlstate.startswith(("08", "57P")):
                raise _Broken from error
            raise _translate(error, self._where) from None

    # -- the mirror ----------------------------------------------------------------------------------------------------

    def _open_mirror(self, path: Path) -> LmdbStore:
        try:
            mirror = LmdbStore(path, notes=True)
        except errors.Corrupt:
            mirror = None
        if mirror is not None:
            if mirror.get_note(_NOTE) == self._describe(self._number):
                return mirror
            mirror.close()
        if path.exists():
            log.info("the local copy of the metadata is not the database's; it is made anew", extra={"directory": str(path)})
            shutil.rmtree(path)
        mirror = LmdbStore(path, notes=True)
        try:
            self._fill(mirror)
        except BaseException:
            mirror.close()
            raise
        return mirror

    def _fill(self, mirror: LmdbStore) -> None:
        """All pairs of the server, in the order of their keys."""
        import psycopg

        begun, count = time.monotonic(), 0
        query = "COPY (SELECT key, value FROM alluxio_like_pairs ORDER BY key) TO STDOUT (FORMAT binary)"
        try:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = 0")
                with _Watch(self._connection, 10 * self._timeout_s) as watch, cursor.copy(query) as copy:
                    copy.set_types(["bytea", "bytea"])
                    pairs: list[tuple[bytes, bytes]] = []
                    for pair in copy.rows():
                        pairs.append(pair)
                        if len(pairs) == _FILL_ROWS:
                            watch.extend()
                            count += len(pairs)
                            _put(mirror, pairs)
                            pairs = []
                    count += len(pairs)
                    _put(mirror, pairs)
        except psycopg.Error as error:
            raise _translate(error, self._where) from None
        inner = mirror.begin_write()
        inner.put_note(_NOTE, self._describe(self._number))
        inner.finish(commit=True)
        log.info("copied the metadata", extra={"pairs": count, "seconds": round(time.monotonic() - begun, 1)})


class _Watch:
    """Cuts a connection that is used for longer than `timeout_s`: libpq itself waits for an answer for ever."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._over = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self.extend()
        return self

    def extend(self) -> None:
        """Begin the time anew."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._timeout_s, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        with self._lock:
            if not self._over and not self._connection.closed:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
                    end.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
        assert self._timer is not None
        self._timer.cancel()


def _put(mirror: LmdbStore, pairs: list[tuple[bytes, bytes]]) -> None:
    with mirror.write() as txn:
        txn.put_many(pairs)


def _parse(url: str) -> dict[str, Any]:
    """A libpq URL as its settings. What is wrong with it is not repeated: it may hold a password."""
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise errors.ConfigError(
            "metadata in PostgreSQL needs psycopg: pip install 'alluxio-like[postgresql]'", subject="postgresql://"
        ) from None
    try:
        settings = conninfo_to_dict(url)
    except psycopg.Error:
        raise errors.ConfigError(
            "not a PostgreSQL URL: write postgresql://USER@HOST/DATABASE?sslmode=verify-full, the password in ~/.pgpass",
            subject="postgresql://",
        ) from None
    return {**_CLIENT_SETTINGS, **settings}


def _translate(error: Exception, where: str) -> errors.AlluxioLikeError:
    """The server's error as one of ours. libpq gives no code for a connection that did not come about: that is Unavailable, with
    its words (which never hold the password)."""
    state = getattr(error, "sqlstate", None) or ""
    cause = error.__cause__ if isinstance(error, _Broken) and error.__cause__ is not None else error
    lines = str(cause).strip().splitlines() or ["the connection ended"]
    line = lines[0]
    if not state:
        return errors.Unavailable(f"the metadata's database is away: {line}", subject=where)
    for prefix, kind, what in _MEANINGS:
        if state.startswith(prefix):
            return kind(f"{what}: {line}", subject=where)
    return errors.Internal(f"the metadata's database: {line} ({state})", subject=where)


_MEANINGS: tuple[tuple[str, type[errors.AlluxioLikeError], str], ...] = (
    ("28", errors.AccessDenied, "the metadata's database refuses the login"),
    ("42501", errors.AccessDenied, "the metadata's database does not let us write"),
    ("25006", errors.AccessDenied, "the metadata's database does not let us write"),
    ("3D", errors.ConfigError, "the metadata's database is not there"),
    ("53300", errors.Unavailable, "the metadata's database has no connection left"),
    ("53", errors.NoSpace, "the metadata's database has no room left"),
    ("08", errors.Unavailable, "the metadata's database is away"),
    ("57", errors.Unavailable, "the metadata's database is away"),
)
"""From the beginning of a SQLSTATE."""
