"""A whole tree as Arrow batches, from a real master over real directories."""

import os
import time
from pathlib import Path

import pytest

from alluxio_like import connect, errors
from alluxio_like.client.sync import TreeListing
from tests.servers.stack import start_stack

ODD = "not\udcffutf-8"


def read(listing: TreeListing) -> dict[bytes, tuple[int, int, bytes]]:
    """By path: kind, size, etag."""
    found = {}
    for batch in listing:
        batch.validate(full=True)
        # Without pandas Python has no type for nanoseconds.
        for row in batch.drop_columns(["mtime"]).to_pylist():
            path = row["directory"].rstrip(b"/") + b"/" + row["name"]
            assert path not in found
            found[path] = (row["kind"], row["size"], row["etag"])
    return found


def test_a_tree_and_what_changed_of_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(2500):
        place = source / f"d{number % 5}" / ("below" if number % 2 else ".")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05}").write_bytes(b"x" * (number % 300))
    (source / "empty").mkdir()
    (source / "d1" / ODD).write_bytes(b"odd")
    old = time.time() - 100
    for path in [*source.rglob("*")]:
        os.utime(path, (old, old))
    with (
        start_stack(tmp_path, {"/data": f"file://{source}"}, {}, "--workers", "1", "--sync-interval", "1h") as stack,
        connect(stack.master) as client,
    ):
        read(client.list_tree("/data"))
        listing = client.list_tree("/data")
        found = read(listing)
        assert len(found) == 2500 + 1 + 5 + 5 + 1
        for path in source.rglob("*"):
            kind, size, _ = found[b"/data/" + os.fsencode(path.relative_to(source))]
            assert (kind == 2) == path.is_dir()
            assert path.is_dir() or size == path.stat().st_size
        assert all(etag for kind, _, etag in found.values() if kind == 1)
        entry = client.stat("/data/d1/below/00001")
        batch = next(iter(client.list_tree("/data/d1/below")))
        assert batch.column("inode")[0].as_py() == entry.attr.inode
        assert batch.column("mtime").cast("int64")[0].as_py() == entry.attr.mtime_ns
        assert listing.mark
        again = client.list_tree("/data", unless=listing)
        assert (read(again), again.unchanged, again.mark) == ({}, True, listing.mark)
        (source / "d2" / "new").write_bytes(b"123")
        client.sync_path("/data/d2")
        changed = client.list_tree("/data", unless=again)
        found[b"/data/d2/new"] = (1, 3, b"")
        assert read(changed).keys() == found.keys()
        assert not changed.unchanged
        for path, error in (("/data/absent", errors.NotFound), ("/data/d2/new", errors.NotADirectory)):
            with pytest.raises(error):
                read(client.list_tree(path))
