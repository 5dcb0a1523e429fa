"""What is recalled, the kernel asks for again, however long it was to keep it; also while requests wait."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.conftest import Mount, wait_until

pytestmark = pytest.mark.mount

MakeMount = Callable[..., Mount]
LONG = {"valid_s": 600.0, "entry_timeout_s": 600.0}


def has_epoch() -> bool:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 16)


def recall(mount: Mount, path: str | None, **details: Any) -> None:
    """Recall, and wait until the kernel knows."""
    mount.do("recall", path=path, **details)
    wait_until(lambda: all(mount.do("recalled")), "the kernel is told")


def test_a_name_is_kept_until_it_is_recalled(mount: MakeMount) -> None:
    made = mount(**LONG)
    path = made.path / "hello.txt"
    assert path.read_text() == "hello, world\n"
    inode = path.stat().st_ino
    made.do("add_file", path="/hello.txt", text="other")
    assert path.stat().st_ino == inode, "the kernel was to keep it"
    asked = made.do("counts")["lookup"]
    path.stat()
    assert made.do("counts")["lookup"] == asked
    recall(made, "/", names=["hello.txt"])
    assert path.read_text() == "other"
    assert path.stat().st_ino != inode


def test_a_name_that_came_or_went_is_seen_once_it_is_recalled(mount: MakeMount) -> None:
    made = mount(**LONG)
    directory = made.path / "dir"
    assert os.listdir(directory) == ["sub"]
    assert not (directory / "new").exists()
    made.do("add_file", path="/dir/new", text="new")
    assert not (directory / "new").exists()
    recall(made, "/dir", names=["new"])
    assert (directory / "new").read_text() == "new"
    assert sorted(os.listdir(directory)) == ["new", "sub"]
    made.do("remove", path="/dir/new")
    recall(made, "/dir", names=["new"])
    assert not (directory / "new").exists()
    assert os.listdir(directory) == ["sub"]


@pytest.mark.parametrize("where", ["/many", None])
def test_all_names_of_a_directory_and_all_names(mount: MakeMount, where: str | None) -> None:
    made = mount(many={"/many": 300}, **LONG)
    directory = made.path / "many"
    names = sorted(os.listdir(directory))
    with open(directory / names[0], "rb") as kept:
        before = {name: (directory / name).stat().st_ino for name in names}
        for name in names[:50]:
            made.do("add_file", path=f"/many/{name}", text="replaced")
        made.do("add_file", path="/many/zzz", text="added")
        assert {name: (directory / name).stat().st_ino for name in names} == before
        recall(made, where, all_names=True)
        assert sorted(os.listdir(directory)) == [*names, "zzz"]
        changed = [name for name in names if (directory / name).stat().st_ino != before[name]]
        assert changed == names[:50], "also the one that is open"
        assert (directory / names[0]).read_text() == "replaced"
        assert kept.fileno() >= 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_others_mounted_below_stays(mount: MakeMount, session: str, elsewhere: bool) -> None:
    """The kernel takes a mount away with a forgotten name on the way to it, and says nothing to whoever made it."""
    if session == "pyfuse3":
        pytest.skip("only the kernel session can have a name looked up again without its being forgotten")
    made = mount(many={"/many": 300}, big_files={"/dir/sub/deep/file": 10}, **LONG)
    deep = made.path / "dir/sub/deep"
    with nested_mount(deep, elsewhere=elsewhere) as see:
        assert see() == ["inside"]
        wait_until(lambda: made.do("nested") == ["dir/sub/deep"], "the daemon looks at the other namespaces")
        names = sorted(os.listdir(made.path / "many"))
        changes = {None: "/many/zzz", "/": "/new", "/dir": "/dir/new", "/dir/sub": "/dir/sub/new", "/many": "/many/y"}
        for where, changed in changes.items():
            assert not (made.path / changed[1:]).exists()
            made.do("add_file", path=changed, text="added")
            recall(made, where, all_names=True, names=[changed.rpartition("/")[2]])
            assert (made.path / changed[1:]).read_text() == "added"
            assert see() == ["inside"], where
        assert sorted(os.listdir(made.path / "many")) == [*names, "y", "zzz"]
    assert os.listdir(deep) == ["file"]


@contextmanager
def nested_mount(directory: Path, *, elsewhere: bool) -> Iterator[Callable[[], list[str]]]:
    """A tmpfs on a directory, here or in a mount namespace of its own; what lists it as it is seen there."""
    script = 'mount -t tmpfs nested "$0" && touch "$0/inside" && echo there && while read _; do ls "$0" && echo .; done'
    enter = ["unshare", "-m", "--propagation", "private"] if elsewhere else []
    with subprocess.Popen(
        [*enter, "bash", "-c", script, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        assert shell.stdout.readline() == "there\n"
        stdin, stdout = shell.stdin, shell.stdout

        def see() -> list[str]:
            stdin.write("\n")
            return [line.rstrip() for line in iter(stdout.readline, ".\n")]

        yield see
        stdin.close()
        shell.wait(60)
    if not elsewhere:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize("where", ["/many", None])
def test_who_has_a_directory_open_lists_it_anew(mount: MakeMount, where: str | None) -> None:
    made = mount(many={"/many": 30}, **LONG)
    directory = os.open(made.path / "many", os.O_RDONLY)
    try:
        names = sorted(os.listdir(directory))
        made.do("add_file", path="/many/zzz", text="added")
        recall(made, where, all_names=True)
        # listdir left the directory rewound, not closed
        assert sorted(os.listdir(directory)) == [*names, "zzz"]
    finally:
        os.close(directory)


def test_a_recall_while_lookups_and_reads_wait(mount: MakeMount) -> None:
    """Whatever waited is not kept; the loop goes on while the kernel's notification waits for those requests."""
    made = mount(never_now=True, big_files={"/dir/big": 10 << 20}, **LONG)
    big = os.open(made.path / "dir/big", os.O_RDONLY)
    try:
        made.do("stall", what="stall_names")
        made.do("stall", what="stall_reads")
        with ThreadPoolExecutor(4) as pool:
            lookups = [pool.submit(os.path.exists, made.path / "dir" / name) for name in ("a", "b")]
            reading = pool.submit(os.pread, big, 4096, 5 << 20)
            wait_until(lambda: made.do("counts").get("lookup", 0) >= 2, "the lookups wait")
            made.do("recall", path="/dir", names=["a", "b", "sub"])
            made.do("add_file", path="/dir/a", text="a")
            assert (made.path / "hello.txt").name == "hello.txt"
            made.do("lift")
            for lookup in lookups:
                lookup.result(60)
            assert len(reading.result(60)) == 4096
        wait_until(lambda: all(made.do("recalled")), "the kernel is told")
        assert (made.path / "dir/a").read_text() == "a"
        assert not (made.path / "dir/b").exists()
    finally:
        os.close(big)


def test_readers_go_on_while_names_are_recalled_again_and_again(mount: MakeMount) -> None:
    made = mount(many={"/many": 50}, **LONG)
    failures: list[BaseException] = []
    ended = threading.Event()

    def read(directory: Path) -> None:
        try:
            while not ended.is_set():
                for name in os.listdir(directory):
                    assert (directory / name).read_bytes() == b"x" * 10
        except BaseException as error:  # noqa: BLE001  told below
            failures.append(error)

    threads = [threading.Thread(target=read, args=(made.path / "many",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(60):
            how = [{"names": [f"sample-{number % 50:07d}.bin"]}, {"all_names": True}][number % 2]
            recall(made, None if number % 10 == 9 else "/many", **({"all_names": True} if number % 10 == 9 else how))
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert not failures


def test_who_works_in_a_directory_keeps_working_in_it(mount: MakeMount, session: str) -> None:
    """Where the kernel can be told of all names at once (Linux 6.16); else the directory is nameless until it is looked up."""
    made = mount(many={"/outer/inner": 3}, **LONG)
    inner = made.path / "outer/inner"
    code = "import os, sys; print(os.listdir('.')[0], flush=True); input(); print(os.getcwd()); print(len(os.listdir('.')))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=inner, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline()
        assert os.listdir(made.path / "outer") == ["inner"]
        recall(made, "/outer", all_names=True)
        if session == "pyfuse3" or not has_epoch():
            inner.stat()
        out, _ = worker.communicate("\n", 60)
    assert out.split() == [str(inner), "3"]


PART = """
import os, sys
with os.scandir(sys.argv[1]) as entries:
    names = [next(entries).name]
    print("begun", flush=True)
    sys.stdin.readline()
    names += [entry.name for entry in entries]
print(len(names), len(set(names)), flush=True)
"""


@pytest.mark.parametrize("session", ["kernel"])
@pytest.mark.parametrize("event", ["recall", "another reader", "time"])
def test_a_listing_that_was_disturbed_while_it_was_read_is_kept_by_the_kernel_later(mount: MakeMount, event: str) -> None:
    """The kernel's copy of it must not be left half made: it would stay so."""
    valid_s = 1.0 if event == "time" else 600.0
    made = mount(valid_s=valid_s, entry_timeout_s=600.0, many={"/many": 3000}, page_entries=1000)
    directory = made.path / "many"
    command = [sys.executable, "-c", PART, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "begun\n"
        if event == "recall":
            recall(made, "/many", names=["sample-0000001.bin"])
        elif event == "another reader":
            assert len(os.listdir(directory)) == 3000
        else:
            wait_until(lambda: made.do("counts")["list_dir"], "a listing")
            time.sleep(1.1)
            assert len(os.listdir(directory)) == 3000
        reader.stdin.write("go\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "3000 3000\n"

    def is_kept() -> bool:
        before = made.do("counts")["list_dir"]
        assert len(os.listdir(directory)) == 3000
        return bool(made.do("counts")["list_dir"] == before)

    # (What may be kept for a second alone a slow machine asks for anew now and then.)
    wait_until(is_kept, "a listing that the kernel does not ask for")


@pytest.mark.parametrize("session", ["kernel"])
def test_an_empty_directory_is_asked_for_again_in_its_time(mount: MakeMount) -> None:
    made = mount(valid_s=0.5, entry_timeout_s=600.0)
    directory = made.path / "dir" / "sub"
    made.do("remove", path="/dir/sub/deep.bin")
    wait_until(lambda: os.listdir(directory) == [], "the directory is empty")
    made.do("add_file", path="/dir/sub/new", text="new")
    wait_until(lambda: os.listdir(directory) == ["new"], "the new name")
