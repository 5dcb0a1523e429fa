"""Whether a namespace fits in memory, and that it is read through then."""

from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master import warming
from alluxio_like.master.meta_store import MetaStore

MIB = 1 << 20


def make_machine(root: Path, available_mib: int, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:  {available_mib << 10} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "room_mib"),
    [
        ("", {}, 500),
        ("0::/\n", {"memory.max": "max\n"}, 500),
        ("0::/a/b\n", {"a/b/memory.max": f"{200 * MIB}\n", "a/b/memory.stat": f"anon {100 * MIB}\nfile 7\n"}, 95),
        ("0::/a/b\n", {"a/memory.max": f"{100 * MIB}\n", "a/memory.stat": "file 7\n", "a/b/memory.max": "max\n"}, 95),
        ("0::/outside\n", {"memory.max": f"{100 * MIB}\n", "memory.stat": "anon 0\n"}, 95),
        ("0::/\n", {"memory.max": f"{100 * MIB}\n", "memory.stat": f"anon {200 * MIB}\n"}, 0),
        (
            "4:memory:/m\n3:cpu:/\n0::/\n",
            {"memory/m/memory.limit_in_bytes": f"{100 * MIB}\n", "memory/m/memory.stat": f"rss 1\ntotal_rss {20 * MIB}\n"},
            76,
        ),
        ("4:memory:/m\n", {"memory/m/memory.limit_in_bytes": "9223372036854771712\n", "memory/m/memory.stat": ""}, 500),
        ("0::/\n", {"memory.max": f"{100 * MIB}\n"}, 0),
    ],
)
def test_room(tmp_path: Path, groups: str, files: dict[str, str], room_mib: int) -> None:
    assert warming.get_room_bytes(make_machine(tmp_path, 1000, groups, files)) == pytest.approx(room_mib * MIB, abs=1)


def test_no_room_where_nothing_tells(tmp_path: Path) -> None:
    assert warming.get_room_bytes(tmp_path) == 0


class Store(MemoryStore):
    """One that takes room, and counts how often it was read."""

    reads = 0
    fails = False

    def get_size_bytes(self) -> int:
        return 400 * MIB

    def read_through(self, may_go_on: object) -> None:
        self.reads += 1
        if self.fails:
            raise errors.DiskError("it does not answer")


@pytest.mark.parametrize(("available_mib", "reads"), [(700, 0), (900, 1)])
async def test_it_is_read_where_it_fits(tmp_path: Path, available_mib: int, reads: int) -> None:
    store = Store()
    meta = MetaStore(store)
    await warming.warm(meta, root=make_machine(tmp_path, available_mib, "0::/\n", {}))
    assert store.reads == reads
    store.fails = True
    await warming.warm(meta, root=tmp_path)
    await meta.close()
