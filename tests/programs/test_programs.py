"""Programs that people run on a file system, as they are: version control, installers, archives, databases, builds, formats of
training data, and the ways in which training programs hand files to each other."""

import fcntl
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import safetensors
from safetensors.numpy import save_file

from tests.posix.system import opened
from tests.posix.table import table
from tests.programs.conftest import Run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(600)]


def make_tree(directory: Path, files: int = 120) -> None:
    """A small source tree: files of many sizes, programs, links of both kinds, odd times, an empty directory."""
    for i in range(files):
        path = directory / f"package{i % 7}" / f"module{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((f"line {i}\n" * (i * i % 900)).encode())
        path.chmod(0o755 if i % 10 == 0 else 0o644)
        os.utime(path, ns=(10**18 + i, 10**18 + i * 1001))
    (directory / "link").symlink_to("package1/module1.txt")
    os.link(directory / "package1/module1.txt", directory / "hard")
    (directory / "empty").mkdir()
    (directory / "sparse").write_bytes(b"")
    os.truncate(directory / "sparse", 3 << 20)


def describe(directory: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that copies have to have."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        about = path.lstat()
        what: object = None
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = path.read_bytes()
        times = about.st_mtime_ns if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(directory))] = (about.st_mode, about.st_size if path.is_file() else None, times, what)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree on a local disk."""
    made = tmp_path / "tree"
    made.mkdir()
    make_tree(made)
    return made


# -- version control -------------------------------------------------------------------------------------------------------------

GIT_WHO = {f"GIT_{who}_{what}": "ann@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def test_git(place: Path, run: Run, tree: Path) -> None:
    origin = place / "origin"
    shutil.copytree(tree, origin, symlinks=True)

    def git(*arguments: str, cwd: Path = origin) -> str:
        return run("git", "-c", "safe.directory=*", "-c", "gc.auto=0", *arguments, cwd=cwd, env=GIT_WHO)

    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "all")
    for i in range(5):
        (origin / "package1" / f"new{i}").write_text(f"{i}\n" * 100)
        git("add", "-A")
        git("commit", "-q", "-m", f"change {i}")
    git("clone", "-q", "origin", "clone", cwd=place)
    clone = place / "clone"
    assert git("rev-parse", "HEAD", cwd=clone) == git("rev-parse", "HEAD")
    git("checkout", "-q", "-b", "other", cwd=clone)
    git("mv", "package1", "moved", cwd=clone)
    git("commit", "-q", "-a", "-m", "moved", cwd=clone)
    git("gc", "-q", "--prune=now", cwd=clone)
    git("fsck", "--strict", cwd=clone)
    git("push", "-q", "origin", "other", cwd=clone)
    git("merge", "-q", "other")
    assert git("status", "--porcelain") == ""
    git("worktree", "add", "-q", "../second", "HEAD~1")
    git("stash", "list")
    git("gc", "-q")
    git("fsck", "--strict")
    assert (origin / "moved" / "new4").read_text() == "4\n" * 100
    assert not (origin / ".git" / "index.lock").exists()


# -- installers ------------------------------------------------------------------------------------------------------------------


def make_wheel(directory: Path) -> Path:
    """A wheel of a small package with a program."""
    path = directory / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for i in range(60):
            wheel.writestr(f"small/part{i}.py", f"value = {i}\n")
        wheel.writestr("small/__init__.py", "from small.part7 import value\ndef main():\n    print('small says', value)\n")
        info = "small-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\nsmall = small:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def install_and_run(place: Path, run: Run, wheel: Path, pip: list[str | Path]) -> None:
    """Install a package into the environment that lies in the place, run its program, install it anew, and take it away."""
    quiet = ("-q", "--no-index", "--disable-pip-version-check", "--no-cache-dir")
    run(*pip, "install", *quiet, wheel)
    assert run(place / "environment/bin/small") == "small says 7\n"
    assert run(*pip, "check").strip() == "No broken requirements found."
    run(*pip, "install", *quiet, "--force-reinstall", wheel)
    assert run(place / "environment/bin/small") == "small says 7\n"
    run(*pip, "uninstall", "-q", "-y", "small")
    assert not (place / "environment/bin/small").exists()


def test_a_virtual_environment(place: Path, run: Run, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "environment")
    install_and_run(place, run, make_wheel(tmp_path), [place / "environment/bin/python", "-m", "pip"])


def test_a_package_in_a_small_environment(place: Path, run: Run, tmp_path: Path) -> None:
    """The same without the two thousand files of pip itself: that of the tests' own environment installs there."""
    run(sys.executable, "-m", "venv", "--without-pip", "environment")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", place / "environment/bin/python"]
    install_and_run(place, run, make_wheel(tmp_path), pip)


# -- copies and archives ---------------------------------------------------------------------------------------------------------


def test_tar(place: Path, run: Run, tree: Path) -> None:
    expected = describe(tree)
    run("tar", "-C", tree, "--format=posix", "-cf", place / "all.tar", ".")
    (place / "out").mkdir()
    run("tar", "-C", place / "out", "-xpf", place / "all.tar")
    assert describe(place / "out") == expected
    assert (place / "out/hard").stat().st_ino == (place / "out/package1/module1.txt").stat().st_ino
    run("tar", "-C", place / "out", "--format=posix", "-czSf", place / "again.tar.gz", ".")
    run("tar", "-C", place / "out", "-df", place / "again.tar.gz")
    with tarfile.open(place / "all.tar", "a") as archive:
        archive.add(tree / "hard", "appended")
    assert "appended" in run("tar", "-tf", place / "all.tar").split()


def test_rsync(place: Path, run: Run, tree: Path) -> None:
    run("rsync", "-aHSX", f"{tree}/", place / "copy")
    assert describe(place / "copy") == describe(tree)
    assert run("rsync", "-aHS", "--itemize-changes", f"{tree}/", place / "copy") == ""
    (tree / "package2/module2.txt").write_text("changed")
    (tree / "package3/module3.txt").unlink()
    run("rsync", "-aHS", "--delete", "--checksum", f"{tree}/", place / "copy")
    assert describe(place / "copy") == describe(tree)
    run("rsync", "-aHS", "--inplace", "--append-verify", f"{tree}/", place / "second")
    assert describe(place / "second") == describe(tree)


def test_cp_and_rm(place: Path, run: Run, tree: Path) -> None:
    run("cp", "-a", tree, "copy")
    assert describe(place / "copy") == describe(tree)
    run("cp", "-a", "--sparse=always", "copy", "second")
    run("mv", "copy", "moved")
    run("diff", "-r", "--no-dereference", "moved", "second")
    run("find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+")
    run("chmod", "-R", "u=rwX,go=", "second")
    run("sed", "-i", "s/line/LINE/", "moved/package1/module8.txt")
    assert (place / "moved/package1/module8.txt").read_text().startswith("LINE 8\n")
    run("rm", "-r", "moved", "second")
    assert os.listdir(place) == []


# -- databases -------------------------------------------------------------------------------------------------------------------


@table("journal", [("delete",), ("truncate",), ("persist",), ("wal",)])
def test_sqlite(place: Path, run: Run, journal: str) -> None:
    path = place / "data.db"
    with sqlite3.connect(path) as database:
        assert database.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal
        database.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, who TEXT, data BLOB)")
    database.close()
    program = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for i in range(25):
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO numbers (who, data) VALUES (?, randomblob(3000))", (sys.argv[2],))
    database.execute("COMMIT" if i % 5 else "ROLLBACK")
"""
    with ThreadPoolExecutor(3) as writers:
        list(writers.map(lambda who: run(sys.executable, "-c", program, path, who), ["a", "b", "c"]))
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT who, count(*) FROM numbers GROUP BY who ORDER BY who").fetchall() == [
            ("a", 20), ("b", 20), ("c", 20),
        ]  # fmt: skip
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM numbers WHERE n % 2")
    database.execute("VACUUM")
    database.close()
    assert run("sqlite3", path, "PRAGMA integrity_check; SELECT count(*) FROM numbers").split() == ["ok", "30"]


# -- a build ---------------------------------------------------------------------------------------------------------------------


def test_building_a_program(place: Path, run: Run) -> None:
    units = 12
    for i in range(units):
        (place / f"unit{i}.c").write_text(f'#include "all.h"\nint unit{i}(void) {{ return {i}; }}\n')
    (place / "all.h").write_text("".join(f"int unit{i}(void);\n" for i in range(units)))
    calls = " + ".join(f"unit{i}()" for i in range(units))
    main = f'int main(void) {{ printf("%d\\n", {calls}); }}\n'
    (place / "main.c").write_text(f'#include <stdio.h>\n#include "all.h"\n{main}')
    objects = " ".join(f"unit{i}.o" for i in range(units))
    rules = {
        "program: main.o libunits.a": "$(CC) -o $@ $^",
        f"libunits.a: {objects}": "ar rcs $@ $^",
        "%.o: %.c all.h": "$(CC) -c -o $@ $<",
    }
    (place / "Makefile").write_text("".join(f"{goal}\n\t{command}\n" for goal, command in rules.items()))
    run("make", "-s", "-j2", "CC=gcc")
    assert run(place / "program").strip() == str(sum(range(units)))
    assert "up to date" in run("make", "CC=gcc")
    (place / "unit3.c").write_text('#include "all.h"\nint unit3(void) { return 1000; }\n')
    assert run("make", "CC=gcc").count("gcc -c") == 1  # times are what make goes by
    assert run(place / "program").strip() == str(sum(range(units)) + 997)


# -- training data and checkpoints -----------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """By mmap, as loaders do."""
    with safetensors.safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict


def make_tensors(seed: int, count: int = 6) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"layer{i}": random.random((64 + i, 1000), dtype=np.float32) for i in range(count)}


def test_safetensors_by_mmap(place: Path) -> None:
    path = place / "model.safetensors"
    save_file(make_tensors(1), path)
    with safetensors.safe_open(path, "np") as mapped:
        assert np.array_equal(mapped.get_tensor("layer0"), make_tensors(1)["layer0"])
        save_file(make_tensors(2), place / "new")
        os.rename(place / "new", path)
        # The mapping is of what was replaced.
        assert all(np.array_equal(mapped.get_tensor(name), tensor) for name, tensor in make_tensors(1).items())
    assert all(np.array_equal(read_safetensors(path)[name], tensor) for name, tensor in make_tensors(2).items())


def test_arrow_and_parquet(place: Path) -> None:
    table_ = pa.table({"number": list(range(20_000)), "text": [f"row {i}" for i in range(20_000)]})
    with pa.OSFile(str(place / "data.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table_.schema) as writer:
        writer.write_table(table_, max_chunksize=1000)
    with pa.memory_map(str(place / "data.arrow")) as source:
        assert pyarrow.ipc.open_file(source).read_all() == table_
    pyarrow.parquet.write_table(table_, place / "data.parquet", row_group_size=3000)
    assert pyarrow.parquet.read_table(place / "data.parquet", memory_map=True) == table_
    assert pyarrow.parquet.read_table(place / "data.parquet", columns=["number"])["number"].to_pylist()[-1] == 19_999


def test_numpy_maps_that_are_written(place: Path) -> None:
    made = np.lib.format.open_memmap(place / "array.npy", "w+", np.int64, (300, 1000))
    made[:] = np.arange(300_000).reshape(300, 1000)
    made.flush()
    del made
    again = np.load(place / "array.npy", mmap_mode="r+")
    again[5] = -1
    del again
    found = np.load(place / "array.npy")
    assert (found[5] == -1).all()
    assert found[299, 999] == 299_999


def test_a_checkpoint_of_several_ranks(place: Path, run: Run) -> None:
    """As distributed checkpoints are saved: each rank writes files beside the others, the first renames the whole into place."""
    program = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from safetensors.numpy import save_file
from tests.programs.test_programs import make_tensors
directory, rank = Path(sys.argv[1]), int(sys.argv[2])
for i in range(3):
    save_file(make_tensors(rank * 10 + i, 2), directory / f".__{rank}_{i}.tmp")
    with open(directory / f".__{rank}_{i}.tmp", "rb+") as file:
        os.fsync(file.fileno())
    os.rename(directory / f".__{rank}_{i}.tmp", directory / f"__{rank}_{i}.distcp")
"""
    for step in range(3):
        making = place / f"step{step}.tmp"
        making.mkdir()
        with ThreadPoolExecutor(2) as ranks:
            root = Path(__file__).parents[2]
            list(ranks.map(lambda rank, at=making, root=root: run(sys.executable, "-c", program, at, rank, root), range(2)))
        (making / ".metadata").write_text("whole")
        os.rename(making, place / f"step{step}")
        (place / "latest.tmp").symlink_to(f"step{step}")
        os.rename(place / "latest.tmp", place / "latest")
        if step:
            shutil.rmtree(place / f"step{step - 1}")
        assert sorted(os.listdir(place / "latest")) == [
            ".metadata",
            *(f"__{rank}_{i}.distcp" for rank in range(2) for i in range(3)),
        ]
        for rank in range(2):
            found = read_safetensors(place / "latest" / f"__{rank}_2.distcp")
            assert np.array_equal(found["layer1"], make_tensors(rank * 10 + 2, 2)["layer1"])
    assert sorted(os.listdir(place)) == ["latest", "step2"]


def test_a_pointer_that_is_swung_while_others_read(place: Path) -> None:
    for step in range(2):
        (place / f"step{step}").mkdir()
        (place / f"step{step}" / "model").write_bytes(bytes([step]) * 100_000)
    (place / "latest").symlink_to("step0")
    stop = threading.Event()
    problems: list[str] = []
    seen: set[int] = set()

    def read() -> None:
        while not stop.is_set():
            try:
                data = (place / "latest" / "model").read_bytes()
            except OSError as error:
                problems.append(str(error))
                return
            if len(data) != 100_000 or len(set(data)) != 1:
                problems.append(f"torn: {len(data)}, {set(data)}")
                return
            seen.add(data[0])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(100):
        (place / "next").symlink_to(f"step{i % 2}")
        os.rename(place / "next", place / "latest")
    stop.set()
    for reader in readers:
        reader.join(60)
    assert problems == []
    assert seen


def test_a_log_that_is_followed(place: Path, run: Run) -> None:
    """As TensorBoard follows what a training appends."""
    path = place / "events"
    path.touch()
    program = """
import os, sys
lines, data = 0, b""
with open(sys.argv[1], "rb", buffering=0) as file:
    while lines < 500:
        data += file.read(10_000)
        *whole, data = data.split(b"\\n")
        for line in whole:
            assert line == b"event %d" % lines, line
            lines += 1
print("followed", lines)
"""
    with ThreadPoolExecutor(1) as follower:
        following = follower.submit(run, sys.executable, "-c", program, path, timeout_s=60)
        for i in range(500):
            with open(path, "ab", buffering=0) as file:
                file.write(b"event %d\n" % i)
        assert following.result() == "followed 500\n"


def test_a_cache_of_models_with_locks_and_links(place: Path, run: Run) -> None:
    """The layout and the steps of a HuggingFace cache, from several processes that want the same model."""
    program = """
import fcntl, hashlib, os, sys
from pathlib import Path
root = Path(sys.argv[1])
blobs, snapshot, locks = root / "models--a--b/blobs", root / "models--a--b/snapshots/rev1", root / ".locks/models--a--b"
fetched = 0
for i in range(8):
    data = bytes([i]) * (50_000 + i)
    digest = hashlib.sha256(data).hexdigest()
    for directory in (blobs, snapshot, locks):
        directory.mkdir(parents=True, exist_ok=True)
    with open(locks / f"{digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (blobs / digest).exists():
            with open(blobs / f"{digest}.incomplete", "ab") as file:
                file.write(data)
            os.replace(blobs / f"{digest}.incomplete", blobs / digest)
            fetched += 1
        pointer = snapshot / f"file{i}"
        if not pointer.exists():
            temporary = snapshot / f".tmp-{os.getpid()}"
            os.symlink(os.path.relpath(blobs / digest, snapshot), temporary)
            os.replace(temporary, pointer)
    assert pointer.read_bytes() == data
refs = root / "models--a--b/refs"
refs.mkdir(exist_ok=True)
(refs / "main").write_text("rev1")
print(fetched)
"""
    with ThreadPoolExecutor(4) as processes:
        fetched = list(processes.map(lambda _n: int(run(sys.executable, "-c", program, place)), range(4)))
    assert sum(fetched) == 8
    snapshot = place / "models--a--b/snapshots/rev1"
    assert {path.name: len(path.read_bytes()) for path in snapshot.iterdir()} == {f"file{i}": 50_000 + i for i in range(8)}
    assert all(path.is_symlink() for path in snapshot.iterdir())
    with open(place / ".locks/probe", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_editor_that_saves(place: Path) -> None:
    """Write beside, sync, keep the mode, keep a backup, rename."""
    path = place / "notes"
    path.write_text("0")
    path.chmod(0o640)
    for i in range(1, 20):
        mode = path.stat().st_mode
        with open(place / ".notes.swp", "w") as file:
            file.write(str(i) * i)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode & 0o777)
        (place / "notes~").unlink(missing_ok=True)
        os.link(path, place / "notes~")
        os.rename(place / ".notes.swp", path)
        with opened(place) as fd:
            os.fsync(fd)
        assert path.read_text() == str(i) * i
        assert (place / "notes~").read_text() == str(i - 1) * max(1, i - 1)
        assert path.stat().st_mode == mode


def test_shells_and_their_redirections(place: Path, run: Run) -> None:
    script = """
set -e
mkdir -p a/b/c; cd a/b
for i in $(seq 50); do echo $i >> log; echo $i > c/$i; done
exec 3<> both; echo one >&3; echo two >&3; cat both
( set -o noclobber; echo x > log ) 2>/dev/null && exit 3
wc -l < log; ls c | wc -l; cat c/* | sort -n | tail -1
head -c 100000 /dev/zero > zeros; dd if=zeros of=zeros bs=1000 count=1 seek=200 conv=notrunc status=none; stat -c %s zeros
mkfifo pipe; (echo through > pipe &); cat pipe
rm -r ../../a
"""
    (place / "script").write_text(script)
    assert run("bash", "script").split() == ["one", "two", "50", "50", "50", "201000", "through"]


def test_memory_that_is_shared_by_processes(place: Path) -> None:
    path = place / "counters"
    path.write_bytes(bytes(4096))
    program = """
import fcntl, mmap, struct, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 4096) as shared:
    for i in range(200):
        fcntl.lockf(file, fcntl.LOCK_EX)
        struct.pack_into("<Q", shared, 0, struct.unpack_from("<Q", shared)[0] + 1)
        fcntl.lockf(file, fcntl.LOCK_UN)
"""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", program, path]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert struct.unpack_from("<Q", path.read_bytes())[0] == 600


def test_a_program_that_begins_another_with_its_files_open(place: Path, run: Run) -> None:
    """The kernel closes them amid the exec, and waits for that; whoever asks it for that process meanwhile waits too."""
    script = (
        "import os\n"
        "for number in range(5):\n"
        "    fds = [os.open(f'{number}-{at}', os.O_CREAT | os.O_WRONLY) for at in range(3)]\n"
        "    for fd in fds:\n"
        "        os.write(fd, b'content')\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.execv('/bin/true', ['true'])\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    for fd in fds:\n"
        "        os.close(fd)\n"
    )
    run(sys.executable, "-c", script, timeout_s=60)
    assert sorted(file.read_text() for file in place.iterdir()) == ["content"] * 15
