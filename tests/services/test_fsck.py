"""The command `fsck`: what it refuses, what it finds in files, what it mends, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alluxio_like.cache.store import CacheDirSpec, CacheStore, Role
from alluxio_like.cli.main import app
from alluxio_like.clock import SystemClock
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.master.core import records
from alluxio_like.master.home import Home
from alluxio_like.types import FileRef, Fingerprint, InodeId, MountId, VersionId
from tests.unit.test_checking import fill


def run_fsck(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """In a process of its own."""
    command = [sys.executable, "-m", "alluxio_like.cli.main", "fsck", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout or "{}")


def fsck(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    """In this process, which is quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["alluxio-like", "--json"])
        done = CliRunner().invoke(app, ["fsck", "--json", *map(str, arguments)])
    return done.exit_code, json.loads(done.stdout or "{}")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A stopped master's."""
    store = LmdbStore(tmp_path / "home/meta")
    fill(store)
    store.close()
    return tmp_path / "home"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A stopped worker's, with one file of three pages."""
    path = tmp_path / "cache"
    spec = CacheDirSpec(path, 1 << 30, allow_root_disk=True, keep_free_fraction=0.0)
    store = CacheStore.open([spec], cluster_id="c", clock=SystemClock(), boot_id="b")
    ref = FileRef(InodeId(7), VersionId(1), MountId(1), "k", Fingerprint("e", 3 << 20))
    file = store.create(ref, Role.HOME)
    file.write_pages(0, memoryview(os.urandom(3 << 20)))
    store.close()
    return path


def test_what_is_whole_is_clean(home: Path, cache: Path) -> None:
    assert fsck("--home", home, "--cache", cache, "--verify") == (0, {"wrong": [], "leftovers": [], "repaired": 0})


def test_a_running_master_is_looked_at_only_if_asked(home: Path) -> None:
    running = Home.open(home)
    store = LmdbStore(home / "meta")
    try:
        code, answer = run_fsck("--home", home)
        assert code == 8 and "--online" in answer["error"]["message"]
        assert run_fsck("--home", home, "--online")[0] == 0
        with store.write() as txn:
            txn.put(records.KEY_TOTALS, bytes(40))
        code, answer = run_fsck("--home", home, "--online")
        assert code == 4 and answer["wrong"][0]["rule"] == "totals"
    finally:
        store.close()
        running.close()
    assert run_fsck("--home", home, "--repair")[0] == 1
    assert run_fsck("--home", home)[0] == 0


def test_wrong_usage(home: Path, tmp_path: Path) -> None:
    assert fsck()[0] == 16
    assert fsck("--home", home, "--online", "--repair")[0] == 16
    code, answer = fsck("--home", tmp_path / "nothing")
    assert code == 8 and "not the home of a master" in answer["error"]["message"]
    assert not (tmp_path / "nothing").exists()
    code, answer = fsck("--cache", home)
    assert code == 8 and "not a cache directory" in answer["error"]["message"]


def test_a_lost_cache_file_is_forgotten(cache: Path) -> None:
    (file,) = (cache / "files").glob("*/*")
    file.unlink()
    code, answer = fsck("--cache", cache)
    assert code == 4 and answer["wrong"][0]["rule"] == "missing"
    assert fsck("--cache", cache, "--repair")[0] == 1
    assert fsck("--cache", cache)[0] == 0


def test_a_flipped_byte_is_found_where_every_byte_is_read(cache: Path) -> None:
    (file,) = (cache / "files").glob("*/*")
    with file.open("r+b") as out:
        out.seek((1 << 20) + 5)
        byte = out.read(1)
        out.seek((1 << 20) + 5)
        out.write(bytes([byte[0] ^ 1]))
    assert fsck("--cache", cache)[0] == 0
    code, answer = fsck("--cache", cache, "--verify")
    assert code == 4 and [one["rule"] for one in answer["wrong"]] == ["checksum"]
    assert "page 1 of block 0" in answer["wrong"][0]["message"]


def test_a_short_file_is_found(cache: Path) -> None:
    (file,) = (cache / "files").glob("*/*")
    os.truncate(file, 1 << 20)
    code, answer = fsck("--cache", cache)
    assert code == 4 and answer["wrong"][0]["rule"] == "size"


def test_what_a_crash_leaves_is_shown_apart(cache: Path) -> None:
    (cache / "files/00/9-1-0000000000000005").write_bytes(b"x")
    (cache / "drafts/9-0000000000000005").write_bytes(b"x")
    code, answer = fsck("--cache", cache)
    assert code == 0 and not answer["wrong"]
    assert [one["rule"] for one in answer["leftovers"]] == ["swept", "swept"]


def test_what_the_store_lacks_is_with_a_worker(home: Path, cache: Path) -> None:
    """Of the file that was written, its only holder's cache has nothing."""
    identity = json.loads((cache / "identity").read_text())
    (cache / "identity").write_text(json.dumps({**identity, "worker_id": "w1"}))
    code, answer = fsck("--home", home, "--cache", cache)
    assert code == 4 and [one["rule"] for one in answer["wrong"]] == ["lost"]
    (cache / "identity").write_text(json.dumps(identity))
    assert fsck("--home", home, "--cache", cache)[0] == 0, "whose worker was not looked at"
