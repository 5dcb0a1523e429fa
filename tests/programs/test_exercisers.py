"""Programs that were written to find what is wrong with file systems, as they are: fsx, pjdfstest, fio, stress-ng, dbench.

A short while each in the usual run, long with ALLUXIO_LIKE_TEST_SOAK.
"""

import os
import re
from pathlib import Path

import pytest

from tests.posix.table import table
from tests.posix.target import Target
from tests.programs.conftest import Run
from tests.servers.tools import get_crate, has_cargo

pytestmark = [pytest.mark.mount, pytest.mark.timeout(3600)]

NO_RUST = "it is built by Rust 1.85 or newer, which is not here"
SOAK = bool(os.environ.get("ALLUXIO_LIKE_TEST_SOAK"))

FSX = {
    "defaults": "",
    "everything": """
        flen = 1048576
        [weights]
        close_open = 2
        invalidate = 1
        truncate = 5
        fsync = 1
        fdatasync = 1
        posix_fallocate = 3
        punch_hole = 5
        sendfile = 3
        posix_fadvise = 2
        copy_file_range = 5
    """,
    "aligned": """
        flen = 4194304
        [opsize]
        align = 4096
        max = 262144
        [weights]
        close_open = 1
        punch_hole = 5
        fsync = 1
    """,
    "small and often closed": """
        flen = 65536
        [opsize]
        max = 500
        [weights]
        close_open = 20
        truncate = 10
        copy_file_range = 5
    """,
    "without mappings": """
        flen = 16777216
        [opsize]
        max = 1048576
        [weights]
        mapread = 0
        mapwrite = 0
        close_open = 5
        truncate = 5
    """,
}


@table("settings", [(settings,) for settings in FSX])
@pytest.mark.skipif(not has_cargo(), reason=NO_RUST)
def test_fsx(place: Path, tmp_path: Path, run: Run, settings: str) -> None:
    (tmp_path / "fsx.toml").write_text(FSX[settings])
    for seed in range(1, 20 if SOAK else 3):
        operations = 100_000 if SOAK else 1500
        command = [get_crate("fsx"), "-q", "-f", tmp_path / "fsx.toml", "-P", tmp_path, "-N", operations, "-S", seed]
        assert "A-OK" in run(*command, place / f"file{seed}")


PJDFSTEST = """
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""


@pytest.mark.skipif(not has_cargo(), reason=NO_RUST)
def test_pjdfstest(file_system: Target, place: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "pjdfstest.toml").write_text(PJDFSTEST)
    # (A shell, since what is said of a failure is in the midst of the output.)
    done = run(
        "sh", "-c", '"$@" || :', "sh", get_crate("pjdfstest"), "-c", tmp_path / "pjdfstest.toml", "-p", place, timeout_s=600
    )
    wrong = "\n".join(re.split(r"^.* (?:ok|skipped)$", done, flags=re.MULTILINE))
    failed = set(re.findall(r"^(\S+) +FAILED$", done, re.MULTILINE))
    if file_system.name == "s3":
        # A path can be as long as a key (tests/posix/exceptions.py).
        failed -= {name for name in failed if name.endswith("::enametoolong_path")}
    assert not failed, re.sub(r"\n\s*\n", "\n", wrong)[-4000:]
    assert re.search(r"^Summary: .* 3\d\d passed", done, re.MULTILINE), done[-4000:]


FIO = {
    "sequential": ["--rw=write", "--bs=64k", "--ioengine=psync"],
    "random": ["--rw=randwrite", "--bs=4k", "--ioengine=psync"],
    "random, with syncs": ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fdatasync=32"],
    "direct, 16 at once": ["--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=16", "--direct=1"],
    "mapped": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap"],
    "mixed": ["--rw=randrw", "--bssplit=512/20:4k/50:60k/30", "--bs_unaligned=1", "--ioengine=psync"],
    "four writers of files of their own": ["--rw=write", "--bs=128k", "--ioengine=psync", "--numjobs=4", "--nrfiles=4"],
}


@table("way", [(way,) for way in FIO])
def test_fio(place: Path, run: Run, way: str) -> None:
    checks = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=42", "--output-format=terse"]
    where = ["--name=check", f"--directory={place}", f"--size={'512m' if SOAK else '8m'}", "--end_fsync=1", "--fallocate=none"]
    run("fio", *checks, *where, *FIO[way])


STRESSORS = "access chdir chmod copy-file dentry dirdeep dirmany fallocate fcntl filename fpunch"
if SOAK:
    # (Not fsize: it makes holes of many GiB, all of which a mount would send to its store.)
    STRESSORS += " chown dir dup flock fstat getdent handle hdd iomix link locka lockf lockofd mknod open rename seek"
    STRESSORS += " sendfile splice symlink sync-file touch utime xattr"
SIZES = {"fallocate": "--fallocate-bytes", "hdd": "--hdd-bytes", "iomix": "--iomix-bytes", "seek": "--seek-size"}
"""stress-ng's of its class of file systems that work on files of a directory; and options that say how large those may be."""


@table("stressor", [(stressor,) for stressor in STRESSORS.split()])
def test_stress_ng(place: Path, run: Run, stressor: str) -> None:
    place.chmod(0o777)
    options = ["-t", "30s" if SOAK else "1s", "--verify", "--temp-path", place, "--oom-avoid"]
    size = [SIZES[stressor], "16m"] if stressor in SIZES else []
    run("stress-ng", f"--{stressor}", 2, *size, *options)
    assert os.listdir(place) == []


def test_dbench(place: Path, run: Run) -> None:
    output = run("dbench", "-x", "-t", 120 if SOAK else 5, "-D", place, "-c", "/usr/share/dbench/client.txt", 4)
    assert "Throughput" in output
    # (Without its semaphore, which is no file, its processes only begin less together.)
    assert not [line for line in output.splitlines() if "failed" in line and "barrier semaphore" not in line]
