"""Set-id programs on a mount: they mean nothing, unless whoever mounts says so."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from alluxio_like.fuse.mountinfo import find_top_line
from tests.cluster.writing import mounted_again, start_written
from tests.posix.system import ANN, BOB, User, acting
from tests.servers.processes import become

pytestmark = [pytest.mark.mount, pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session")]


def run_as(user: User, program: Path, *arguments: str) -> str:
    done = subprocess.run([*become(user.uid, user.gid), program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_set_id_programs_work_where_the_mount_says_so(workplace: Path) -> None:
    workplace.chmod(0o755)
    (workplace / "store").mkdir()
    with (
        start_written(workplace, f"file://{workplace}/store", {}) as stack,
        mounted_again(stack, workplace, options=["-o", "suid"]) as second,
    ):
        usual, asked = stack.mountpoint / "data", second / "data"
        shutil.copy("/usr/bin/id", usual / "id")
        os.chown(usual / "id", ANN.uid, ANN.gid)
        (usual / "id").chmod(0o6755)
        for what, owners, callers in (("-u", ANN.uid, BOB.uid), ("-g", ANN.gid, BOB.gid)):
            assert run_as(BOB, asked / "id", what) == str(owners)
            assert run_as(BOB, usual / "id", what) == str(callers)
            assert run_as(BOB, asked / "id", f"-r{what[1]}") == str(callers)
        # Who writes takes the bits away, there too.
        (usual / "id").chmod(0o6777)
        with acting(BOB), (asked / "id").open("ab") as file:
            file.write(b"\0")
        assert run_as(BOB, asked / "id", "-u") == str(BOB.uid)
        os.mknod(usual / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for place in (usual, asked):
            with pytest.raises(PermissionError):
                (place / "null").open("rb")
        top = find_top_line(str(second))
        assert top is not None
        assert "nodev" in top.options
        assert "nosuid" not in top.options


def test_what_cannot_be_had_is_refused(workplace: Path) -> None:
    (workplace / "store").mkdir()
    with start_written(workplace, f"file://{workplace}/store", {}) as stack:
        place = str(workplace / "other")
        devices = stack.try_command("alluxio-like", "fuse", place, "-o", "dev")
        assert (devices.returncode, find_top_line(place)) == (2, None)
        assert "only suid and nosuid" in devices.stderr
        # As a user without rights: the session that root does not need.
        unprivileged = stack.try_command("alluxio-like", "fuse", place, "-o", "suid", "--session", "pyfuse3")
        assert (unprivileged.returncode, find_top_line(place)) == (2, None)
        assert "mount as root" in unprivileged.stderr
