"""What is the PostgreSQL engine's own: its place as the only writer, connections that break, its mirror."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from alluxio_like import errors
from alluxio_like.kv.open import open_store
from alluxio_like.kv.postgresql import PostgresqlStore
from tests.servers.cutting_proxy import CuttingProxy
from tests.servers.postgresql import PostgresqlServer

COMMIT = b"alluxio_like_pairs"
"""Part of the statement that commits, when it is sent for the first time of a connection."""


@pytest.fixture
def proxy(postgresql_server: PostgresqlServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(postgresql_server.port) as proxy:
        yield proxy


@pytest.fixture
def url(postgresql_server: PostgresqlServer) -> str:
    return postgresql_server.get_url(schema=postgresql_server.make_schema())


@pytest.fixture
def via_proxy(url: str, postgresql_server: PostgresqlServer, proxy: CuttingProxy) -> str:
    return url.replace(f":{postgresql_server.port}/", f":{proxy.port}/")


def put(store: PostgresqlStore, key: bytes, value: bytes = b"x") -> None:
    with store.write() as txn:
        txn.put(key, value)


def read_all(store: PostgresqlStore) -> dict[bytes, bytes]:
    with store.read() as txn:
        return dict(txn.scan(b"\0", b"\xff" * 600))


def read_server(url: str) -> dict[bytes, bytes]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute("SELECT key, value FROM alluxio_like_pairs").fetchall())


def is_mirror_kept(caplog: pytest.LogCaptureFixture) -> bool:
    return not any("copied" in record.message for record in caplog.records)


def test_another_machine_goes_on_with_everything(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = PostgresqlStore(url, tmp_path / "first")
    pairs = {b"k%05d" % number: os.urandom(number % 50) for number in range(3000)}
    with store.write() as txn:
        txn.put_many(list(pairs.items()))
    with store.write() as txn:
        txn.delete(b"k00007")
    del pairs[b"k00007"]
    store.close()
    caplog.clear()
    store = PostgresqlStore(url, tmp_path / "first")
    assert is_mirror_kept(caplog)
    assert read_all(store) == pairs
    put(store, b"later")
    store.close()
    shutil.rmtree(tmp_path / "first")
    store = PostgresqlStore(url, tmp_path / "second")
    assert not is_mirror_kept(caplog)
    assert read_all(store) == {**pairs, b"later": b"x"} == read_server(url)
    store.close()


def test_an_old_or_damaged_mirror_is_made_anew(url: str, tmp_path: Path) -> None:
    for name in ("old", "new"):
        store = PostgresqlStore(url, tmp_path / name)
        put(store, name.encode())
        store.close()
    store = PostgresqlStore(url, tmp_path / "old")
    assert set(read_all(store)) == {b"old", b"new"}
    store.close()
    (tmp_path / "old" / "data.mdb").write_bytes(b"something else" * 1000)
    store = PostgresqlStore(url, tmp_path / "old")
    assert set(read_all(store)) == {b"old", b"new"}
    store.close()


def test_a_second_master_is_told_who_has_it(url: str, tmp_path: Path) -> None:
    store = PostgresqlStore(url, tmp_path / "first")
    with pytest.raises(errors.Conflict, match=f"process {os.getpid()} on "):
        PostgresqlStore(url, tmp_path / "second", patience_s=0.3)
    put(store, b"still")
    store.close()
    PostgresqlStore(url, tmp_path / "second").close()


@pytest.mark.parametrize("how", ["after", "before"])
def test_cut_at_commit(via_proxy: str, url: str, proxy: CuttingProxy, tmp_path: Path, how: str) -> None:
    """The connection breaks within the commit, whose answer is lost: it is there once, however it was."""
    late: list[bool] = []
    store = PostgresqlStore(via_proxy, tmp_path, on_late=lambda: late.append(True))
    proxy.cut_when(COMMIT, how)
    with store.write() as txn:
        txn.put(b"count", b"%d" % (int(txn.get(b"count") or b"0") + 1))
    assert proxy.cuts == 1
    put(store, b"after")
    assert read_all(store) == read_server(url) == {b"count": b"1", b"after": b"x"}
    assert not late
    store.close()


@pytest.mark.parametrize("how", ["after", "before"])
def test_unknown_until_the_server_is_back(via_proxy: str, url: str, proxy: CuttingProxy, tmp_path: Path, how: str) -> None:
    """Nobody can tell in time: Unavailable. Nothing of it is read before the answer is known, which is before the next write."""
    late: list[bool] = []
    store = PostgresqlStore(via_proxy, tmp_path, timeout_s=3.0, on_late=lambda: late.append(True))
    put(store, b"before")
    proxy.refuse(True)
    proxy.cut_when(b"count", how)
    begun = time.monotonic()
    with pytest.raises(errors.Unavailable), store.write() as txn:
        txn.put(b"count", b"1")
    with pytest.raises(errors.Unavailable):
        put(store, b"more")
    assert time.monotonic() - begun < 60
    assert read_all(store) == {b"before": b"x"}
    proxy.refuse(False)
    with store.write() as txn:
        txn.put(b"count", b"%d" % (int(txn.get(b"count") or b"0") + 1))
    done = how == "after"
    assert read_all(store) == read_server(url) == {b"before": b"x", b"count": b"2" if done else b"1"}
    assert late == [True] * done
    store.close()


def test_a_statement_that_arrives_late_changes_nothing(via_proxy: str, url: str, proxy: CuttingProxy, tmp_path: Path) -> None:
    """The network keeps a commit while the master connects anew; delivered afterwards, it is refused."""
    store = PostgresqlStore(via_proxy, tmp_path)
    put(store, b"first")
    proxy.cut_when(b"second", "keep")
    put(store, b"second", b"1")
    put(store, b"second", b"2")
    proxy.release()
    proxy.kept[0][0].settimeout(60)
    assert proxy.kept[0][0].recv(1000)
    put(store, b"third")
    assert read_all(store) == read_server(url) == {b"first": b"x", b"second": b"2", b"third": b"x"}
    store.close()


def test_a_master_that_lost_its_place_never_commits_again(via_proxy: str, url: str, proxy: CuttingProxy, tmp_path: Path) -> None:
    """Cut off, with its session gone on the server, it is followed by another; then its connection is whole again."""
    old = PostgresqlStore(via_proxy, tmp_path / "old", timeout_s=3.0)
    put(old, b"first")
    proxy.refuse(True)
    proxy.cut_when(b"lost", "before")
    with pytest.raises(errors.Unavailable):
        put(old, b"lost")
    new = PostgresqlStore(url, tmp_path / "new")
    put(new, b"second")
    proxy.refuse(False)
    with pytest.raises(errors.Conflict, match="took over"):
        put(old, b"third")
    with pytest.raises(errors.Conflict, match="took over"):
        old.keep()
    put(new, b"fourth")
    assert read_all(new) == read_server(url) == {b"first": b"x", b"second": b"x", b"fourth": b"x"}
    # What it knew can still be read: nobody who reads is told of an error that is the operator's.
    assert read_all(old) == {b"first": b"x"}
    old.close()
    new.close()


def test_a_living_connection_does_not_help_who_lost_the_place(url: str, tmp_path: Path) -> None:
    """Another takes the row (here by force, as after a lock that a pooler lost): the next commit and `keep` both find out."""
    stores = [PostgresqlStore(url, tmp_path / "a")]
    put(stores[0], b"first")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE alluxio_like_place SET epoch = epoch + 1")
        with pytest.raises(errors.Conflict, match="took over"):
            put(stores[0], b"second")
        stores[0].close()
        stores.append(PostgresqlStore(url, tmp_path / "b"))
        connection.execute("UPDATE alluxio_like_place SET epoch = epoch + 1")
        with pytest.raises(errors.Conflict, match="took over"):
            stores[1].keep()
        stores[1].close()
    assert read_server(url) == {b"first": b"x"}


def test_server_restarts_and_crashes(postgresql_server: PostgresqlServer, url: str, tmp_path: Path) -> None:
    store = PostgresqlStore(url, tmp_path)
    put(store, b"a")
    for number, key in ((signal.SIGINT, b"b"), (signal.SIGQUIT, b"c")):
        postgresql_server.stop(number)
        assert b"a" in read_all(store)
        writer = threading.Thread(target=put, args=(store, key))
        writer.start()
        # Not in the thread: the server dies with the one that started it.
        postgresql_server.start()
        writer.join(60)
    store.keep()
    assert set(read_all(store)) == set(read_server(url)) == {b"a", b"b", b"c"}
    store.close()


def test_a_server_that_stands_still_is_given_up(postgresql_server: PostgresqlServer, url: str, tmp_path: Path) -> None:
    """It takes bytes and answers nothing: bounded all the same, and found out once it goes on."""
    store = PostgresqlStore(url, tmp_path, timeout_s=3.0)
    put(store, b"a")
    postgresql_server.signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(errors.Unavailable):
            put(store, b"b")
        with pytest.raises(errors.Unavailable):
            store.keep()
        assert time.monotonic() - begun < 60
        assert set(read_all(store)) == {b"a"}
    finally:
        postgresql_server.signal(signal.SIGCONT)
    with store.write() as txn:
        known = txn.get(b"b")
        txn.put(b"c", b"x")
    assert read_all(store) == read_server(url)
    assert (known is not None) == (b"b" in read_all(store))
    store.close()


def test_a_database_that_went_back_is_not_written(postgresql_server: PostgresqlServer, url: str, tmp_path: Path) -> None:
    """As after a failover to a replica that was behind: the master stops, and the next start takes what is there."""
    store = PostgresqlStore(url, tmp_path)
    put(store, b"a")
    put(store, b"b")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM alluxio_like_pairs WHERE key = 'b'")
        connection.execute("UPDATE alluxio_like_place SET number = number - 1")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'alluxio-like'")
    with pytest.raises(errors.Conflict, match="lost what it had committed"):
        put(store, b"c")
    store.close()
    store = PostgresqlStore(url, tmp_path)
    assert read_all(store) == {b"a": b"x"}
    store.close()


def test_full_mirror_disk_is_made_good(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has committed and the local copy cannot: it catches up before the next write."""
    late: list[bool] = []
    store = PostgresqlStore(url, tmp_path, on_late=lambda: late.append(True))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise errors.NoSpace("no space left for metadata")

        patch.setattr("alluxio_like.kv.lmdb.LmdbTransaction.put_note", fail)
        with pytest.raises(errors.NoSpace):
            put(store, b"a")
    assert read_all(store) == {}
    put(store, b"b")
    assert read_all(store) == read_server(url) == {b"a": b"x", b"b": b"x"}
    assert late == [True]
    store.close()


CHILD = """
import sys
from pathlib import Path
from alluxio_like.kv.postgresql import PostgresqlStore
store = PostgresqlStore(sys.argv[1], Path(sys.argv[2]))
number = 0
while True:
    with store.write() as txn:
        for part in range(20):
            txn.put(b"%08d-%02d" % (number, part), b"x" * 500)
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("home", ["kv", "elsewhere"])
def test_keeps_what_was_committed_over_kill_9(url: str, tmp_path: Path, home: str) -> None:
    command = [sys.executable, "-c", CHILD, url, str(tmp_path / "kv")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        last = -1
        for _ in range(20):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        last = max([last, *(int(line) for line in child.stdout.read().split())])
    store = PostgresqlStore(url, tmp_path / home)
    numbers = [int(key[:8]) for key in read_all(store)]
    assert set(numbers) in (set(range(last + 1)), set(range(last + 2)))
    assert len(numbers) == 20 * len(set(numbers))
    assert read_all(store) == read_server(url)
    store.close()


def test_wrong_password_and_no_server_in_one_line(postgresql_server: PostgresqlServer, tmp_path: Path) -> None:
    right = postgresql_server.get_url()
    wrong = right.replace(postgresql_server.password, "hunter2secret")
    gone = right.replace(f":{postgresql_server.port}/", ":1/")
    for url in (wrong, gone):
        with pytest.raises(errors.Unavailable) as caught:
            PostgresqlStore(url, tmp_path, timeout_s=1.0)
        text = str(caught.value)
        assert "hunter2secret" not in text
        assert postgresql_server.password not in text
        assert "\n" not in text


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2%zz@h/d", "postgresql://u:hunter2@h/d?nonsense=1", "mysql://u:hunter2@h/d"]
)
def test_a_url_that_is_none_does_not_show_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        open_store(url, mirror=tmp_path)
    assert "hunter2" not in str(caught.value)


def test_newer_format_is_refused_in_one_line(url: str, tmp_path: Path) -> None:
    PostgresqlStore(url, tmp_path).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE alluxio_like_place SET format = 2")
    with pytest.raises(errors.FormatTooNew) as caught:
        PostgresqlStore(url, tmp_path)
    assert "\n" not in str(caught.value)
