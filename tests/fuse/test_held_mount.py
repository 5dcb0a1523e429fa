"""The real daemon under a holder (a tree in memory): restarts and replacements under programs that read."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse import mountpoint as places
from tests.fuse.held_mounts import HeldMount, Statting, block_daemons, is_orphan, show, wait_until
from tests.fuse.test_mount_recalls import has_epoch, nested_mount
from tests.posix.system import opened
from tests.servers.net import find_ports
from tests.servers.processes import freeze

pytestmark = pytest.mark.mount

DAEMON = Path(__file__).with_name("held_memory_daemon.py")
SIZE = (3 << 20) + 77
KILLS = 200 if os.environ.get("ALLUXIO_LIKE_TEST_SOAK") else 10

Hold = Callable[..., HeldMount]

READER = """
import os, random, sys, time
root, end, kind = sys.argv[1:4]
rng = random.Random(int(sys.argv[4]))
size = (3 << 20) + 77
content = b"".join((size + n).to_bytes(8, "big") for n in range(size // 8 + 1))[:size]
errors, worst, rounds = 0, 0.0, 0
held = os.open(root + "/big", os.O_RDONLY)
names = sorted(os.listdir(root + "/many"))
print("reading", flush=True)
while not os.path.exists(end):
    start = time.monotonic()
    try:
        if kind == "read":
            at = rng.randrange(size)
            piece = os.pread(held, 200_000, at)
            assert piece and piece == content[at : at + len(piece)]
            with open(root + "/big", "rb") as stream:
                stream.seek(at)
                assert stream.read(200_000) == content[at : at + 200_000]
            with open(root + "/many/" + rng.choice(names), "rb") as stream:
                assert stream.read() == b"x" * 10
        elif kind == "stat":
            assert os.stat(root + "/many/" + rng.choice(names)).st_size == 10
            assert os.stat(root + "/big").st_size == size
            assert not os.path.exists(root + "/many/none" + str(rounds))
        else:
            assert sorted(os.listdir(root + "/many")) == names
            assert "big" in os.listdir(root)
    except OSError as error:
        errors += 1
        print(kind, error, file=sys.stderr)
    worst = max(worst, time.monotonic() - start)
    rounds += 1
    time.sleep(0.002)
print(rounds, errors, round(worst, 3))
"""


class Load:
    """Programs that read, stat and list, verifying all of it, while this is entered."""

    def __init__(self, mount: HeldMount) -> None:
        self.mount = mount
        self.results: dict[str, tuple[int, int, float]] = {}

    def __enter__(self) -> "Load":
        self.end = self.mount.directory / "end"
        self.programs = {}
        for number, kind in enumerate(("read", "stat", "list")):
            with open(self.mount.directory / "readers", "ab") as errors:
                command = [sys.executable, "-c", READER, str(self.mount.path), str(self.end), kind, str(number)]
                self.programs[kind] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        for program in self.programs.values():
            assert program.stdout is not None
            assert program.stdout.readline() == "reading\n"
        return self

    def __exit__(self, *error: object) -> None:
        self.end.touch()
        for kind, program in self.programs.items():
            try:
                output, _ = program.communicate(timeout=60)
            finally:
                program.kill()
                program.wait(60)
            if output:
                rounds, errors, worst = output.split()
                self.results[kind] = (int(rounds), int(errors), float(worst))
        self.end.unlink()
        if error[0] is None:
            assert len(self.results) == len(self.programs), (self.mount.directory / "readers").read_text()[-3000:]

    def show(self, what: str) -> None:
        for kind, (rounds, errors, worst) in self.results.items():
            show(f"{what}: {kind} {rounds} rounds, {errors} errors, longest pause {worst} s")


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """A function that mounts the real daemon by a holder; `plan` goes to the holder, `tree` to the tree, the rest is
    FuseConfig's."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    mounts: list[HeldMount] = []

    def make(*, plan: dict[str, Any] | None = None, tree: dict[str, Any] | None = None, **config: Any) -> HeldMount:
        directory = tmp_path / f"m{len(mounts)}"
        (directory / "whole").mkdir(parents=True)
        given = {"big_files": {"/big": SIZE}, "many": {"/many": 200}, "whole_dir": str(directory / "whole"), **(tree or {})}
        mounts.append(
            HeldMount(directory, DAEMON, {"mountpoint": str(directory / "mnt"), "tree": given, **config}, **(plan or {}))
        )
        mounts[-1].wait_ready(limit_s=120)
        return mounts[-1]

    yield make
    for mount in mounts:
        mount.clean()


WAYS: dict[str, dict[str, Any]] = {
    "passthrough": {},
    "reads": {"passthrough": "off"},
    "without resend": {"passthrough": "off", "resend": False},
}


def make_plan(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("passthrough", "resend") if key in config}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.timeout(60 + 10 * KILLS)
def test_killed_daemons_under_load(hold: Hold, way: str) -> None:
    """Programs see a pause and no error; without resend only what was being served at that moment fails."""
    config = WAYS[way]
    mount = hold(plan=make_plan(config), **config)
    rng = random.Random(7)
    with Load(mount) as load:
        for generation in range(2, 2 + KILLS):
            time.sleep(rng.random() * 0.3)
            mount.kill_daemon()
            mount.wait_ready(generation)
    load.show(f"{way}, {KILLS} kills")
    for _, errors, _ in load.results.values():
        assert errors == 0 if way != "without resend" else errors <= KILLS
    assert mount.facts()["restarts"] == KILLS


@pytest.mark.parametrize("way", ["passthrough", "reads"])
def test_replacement_under_load(hold: Hold, way: str) -> None:
    mount = hold(plan=make_plan(WAYS[way]), **WAYS[way])
    with Load(mount) as load:
        for generation in range(2, 5):
            answer = mount.replace()
            assert answer["kind"] == "replaced", answer
            assert answer["generation"] == generation
    load.show(f"{way}, 3 replacements")
    assert [errors for _, errors, _ in load.results.values()] == [0, 0, 0]
    assert mount.facts()["restarts"] == 0


def test_who_leaves_takes_back_what_it_told_the_kernel(hold: Hold) -> None:
    """Its lease ends with it, and nobody else knows yet what the kernel may rely on."""
    if not has_epoch():
        pytest.skip("this kernel cannot be told of all names at once")
    mount = hold(plan={"give_up_s": 600.0}, tree={"valid_s": 3600.0})
    assert (mount.path / "big").stat().st_size == SIZE
    pid = mount.facts()["daemon_pid"]
    # (The kernel keeps a name that is in use, also where somebody else has it drop what it remembers.)
    with opened(mount.path / "big", os.O_PATH), block_daemons(mount):
        # While it stands still the kernel answers by itself.
        freeze(pid)
        assert (mount.path / "big").stat().st_size == SIZE
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the daemon's end")
        with Statting(mount.path / "big") as statting:
            where = Path(f"/proc/self/task/{statting.thread.native_id}/wchan")
            wait_until(lambda: statting.outcome is not None or "request_wait" in where.read_text(), "the kernel asks")
            assert statting.outcome is None
            Path(mount.config["blocked_by"]).unlink()
            assert statting.wait() == 0
            Path(mount.config["blocked_by"]).touch()
    mount.wait_ready(2)


def test_what_others_mounted_below_outlives_daemons(hold: Hold) -> None:
    mount = hold(plan={"give_up_s": 600.0}, tree={"valid_s": 3600.0})
    names = sorted(os.listdir(mount.path / "many"))
    with nested_mount(mount.path / "many", elsewhere=False) as see:
        mount.kill_daemon()
        mount.wait_ready(1)
        assert (mount.path / "big").stat().st_size == SIZE
        assert see() == ["inside"]
        mount.replace()
        mount.wait_ready(2)
        assert (mount.path / "big").stat().st_size == SIZE
        assert see() == ["inside"]
    assert sorted(os.listdir(mount.path / "many")) == names


def test_mappings_and_handles_outlive_daemons(hold: Hold) -> None:
    mount = hold()
    size = SIZE
    content = b"".join((size + number).to_bytes(8, "big") for number in range(size // 8 + 1))[:size]
    with open(mount.path / "big", "rb") as held, mmap.mmap(held.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for generation in range(2, 5):
            mount.kill_daemon()
            assert mapped[generation * 4096 : generation * 4096 + 100] == content[generation * 4096 : generation * 4096 + 100]
            mount.wait_ready(generation)
            with open(mount.path / "big", "rb") as other:
                assert os.pread(other.fileno(), 1000, 1 << 20) == content[1 << 20 : (1 << 20) + 1000]
            assert os.pread(held.fileno(), 1000, 2 << 20) == content[2 << 20 : (2 << 20) + 1000]
            with (
                open(f"/proc/self/fd/{held.fileno()}", "rb") if not is_passing(mount) else open(mount.path / "big", "rb") as again
            ):
                assert again.read(10) == content[:10]
    wait_until(lambda: get_metric(mount, "fuse_open_nodes") == 0, "everything closed")


def test_without_passthrough_opens_go_on_where_an_earlier_daemon_looked_names_up(hold: Hold) -> None:
    """Else an open that comes between two daemons' deaths would be sent to look its name up twice, and fail."""
    config = WAYS["reads"]
    mount = hold(plan=make_plan(config), **config)
    os.stat(mount.path / "big")
    mount.kill_daemon()
    mount.wait_ready(2)
    assert len((mount.path / "big").read_bytes()) == SIZE
    assert get_metric(mount, "fuse_moves_total") == 0


def is_passing(mount: HeldMount) -> bool:
    return os.getxattr(mount.path, "user.alluxio_like.session") == b"kernel with passthrough"


def get_metric(mount: HeldMount, name: str) -> float:
    # A daemon that follows another tells its address once it has it.
    address = wait_until(lambda: mount.facts()["http_address"], "its address")
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f"alluxio_like_{name} ")]
    return float(line.split()[1])


def test_the_address_of_the_metrics_changes_hands(hold: Hold) -> None:
    (port,) = find_ports(1)
    mount = hold(http_bind=f"127.0.0.1:{port}")
    assert mount.facts()["http_address"] == f"127.0.0.1:{port}"
    assert get_metric(mount, "fuse_generation") == 1
    assert mount.replace()["kind"] == "replaced"
    mount.wait_ready(2)
    wait_until(lambda: mount.facts()["http_address"], "the address again")
    assert get_metric(mount, "fuse_generation") == 2
    mount.kill_daemon()
    mount.wait_ready(3)
    wait_until(lambda: mount.facts()["http_address"], "the address again")
    assert get_metric(mount, "fuse_generation") == 3
    assert get_metric(mount, "fuse_restarts") == 1


def test_a_daemon_without_a_holder_serves_until_unmounted(hold: Hold) -> None:
    mount = hold()
    mount.process.kill()
    mount.process.wait(60)
    wait_until(lambda: is_orphan(mount), "the daemon alone")
    assert len((mount.path / "big").read_bytes()) == SIZE
    assert "the mount's holder has died" in mount.log.read_text()
    mount.start(adopt=True)
    mount.wait_ready(1)
    mount.process.kill()
    mount.process.wait(60)
    wait_until(lambda: is_orphan(mount), "the daemon alone again")
    places.detach(mount.path)
    wait_until(lambda: not mount.daemons(), "the daemon's end")


def test_signals_to_the_holder_end_it_also_while_reads_wait(hold: Hold) -> None:
    mount = hold(tree={"never_now": True})
    with Statting(mount.path / "many"):
        pass
    stopper = threading.Timer(0.2, mount.process.send_signal, [signal.SIGTERM])
    stopper.start()
    try:
        while mount.process.poll() is None:
            try:
                (mount.path / "big").read_bytes()
            except OSError:
                break
    finally:
        stopper.join()
    assert mount.process.wait(60) == 0
    assert not mount.mounted
    assert json.loads(json.dumps(mount.config))["mountpoint"] == str(mount.path)
