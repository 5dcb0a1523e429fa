"""The holder alone, over a small daemon: restarts, replacement, refusal, and every way it can end."""

import contextlib
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse import control
from alluxio_like.fuse import mountpoint as places
from tests.fuse.held_daemon import CONTENT
from tests.fuse.held_mounts import HeldMount, Load, Statting, block_daemons, is_orphan, kept_open, show, wait_until
from tests.fuse.test_mount_recalls import has_epoch
from tests.servers.processes import freeze

pytestmark = pytest.mark.mount

DAEMON = Path(__file__).with_name("held_daemon.py")
Hold = Callable[..., HeldMount]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """A function that mounts by a holder; `plan` goes to the holder, the rest to the daemon."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    mounts: list[HeldMount] = []

    def make(*, plan: dict[str, Any] | None = None, ready: bool = True, **config: Any) -> HeldMount:
        mounts.append(HeldMount(tmp_path / f"m{len(mounts)}", DAEMON, config, **(plan or {})))
        if ready:
            mounts[-1].wait_ready()
        return mounts[-1]

    yield make
    for mount in mounts:
        mount.clean()


def test_a_mount_is_held_and_ends(hold: Hold) -> None:
    mount = hold()
    facts = mount.facts()
    assert facts["pid"] == mount.process.pid != facts["daemon_pid"]
    assert facts["generation"] == 1
    assert facts["mountpoint"] == str(mount.path)
    assert (mount.path / "f").read_bytes() == CONTENT
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    rss_kb = int(status.partition("VmRSS:")[2].split()[0])
    show(f"the holder's resident memory: {rss_kb / 1024:.1f} MiB")
    assert rss_kb < 20 * 1024
    assert mount.ask({"kind": "status"})["state"] == "serving"
    assert os.stat(mount.socket).st_mode & 0o777 == 0o600
    assert mount.stop() == 0
    assert not mount.mounted
    assert not mount.ready_file.exists()
    assert not os.path.exists(mount.socket)


@pytest.mark.parametrize("resend", [True, False])
def test_killed_daemons_under_load(hold: Hold, resend: bool) -> None:
    """With resend nobody sees an error; without it only what was being served at that moment fails, and soon."""
    mount = hold(plan={"resend": resend})
    with Load(mount) as load:
        for generation in range(2, 12):
            time.sleep(0.1)
            mount.kill_daemon()
            mount.wait_ready(generation)
    for count, errors, worst in load.results:
        show(f"resend {resend}: {count} rounds over 10 kills, {errors} errors, longest pause {worst} s")
        assert worst < 60
        assert errors == 0 if resend else errors <= 10
    facts = mount.facts()
    assert facts["restarts"] == 10


def test_the_next_daemon_hears_of_the_leases_of_those_that_ended(hold: Hold) -> None:
    mount = hold()
    assert mount.facts()["leases"] == []
    mount.kill_daemon()
    assert mount.wait_ready(2)["leases"] == ["of 1"]
    assert mount.replace()["kind"] == "replaced"
    assert mount.wait_ready(3)["leases"] == ["of 1"], "the second one lived when the third was told"
    mount.kill_daemon()
    # (The second one may be leaving still.)
    assert {"of 1", "of 3"} <= set(mount.wait_ready(4)["leases"])


def test_another_holder_knows_the_lease_of_the_daemon_that_it_takes_over(hold: Hold) -> None:
    mount = hold()
    mount.process.kill()
    mount.process.wait(60)
    wait_until(lambda: is_orphan(mount), "the daemon says that its holder has died")
    mount.start(adopt=True)
    mount.wait_ready(1)
    mount.kill_daemon()
    assert mount.wait_ready(2)["leases"] == ["of 1"]


def test_what_was_read_and_not_answered_is_served_by_the_next(hold: Hold) -> None:
    mount = hold(stuck_until=2)
    with Statting(mount.path / "stuck") as statting:
        statting.wait_taken(mount)
        mount.kill_daemon()
        assert statting.wait() == 0


def test_without_resend_what_was_being_served_fails_at_once(hold: Hold) -> None:
    mount = hold(stuck_until=99, plan={"resend": False})
    with Statting(mount.path / "stuck") as statting:
        statting.wait_taken(mount)
        start = time.monotonic()
        mount.kill_daemon()
        assert statting.wait() == errno.ECONNABORTED
        show(f"failed after {time.monotonic() - start:.2f} s")
    mount.wait_ready(2)
    assert (mount.path / "f").read_bytes() == CONTENT


def test_passthrough_handles_do_not_notice_and_backings_are_given_back(hold: Hold, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"12345" * 1000)
    mount = hold(backing=str(backing))
    if not mount.ask({"kind": "status"})["handshake"]["flags"] & 1 << 37:
        pytest.skip("this kernel has no passthrough")
    with open(mount.path / "p", "rb") as held:
        mount.kill_daemon()
        assert held.read(5) == b"12345"
        mount.wait_ready(2)
        with open(mount.path / "p", "rb") as other:
            assert other.read() == backing.read_bytes()
            assert held.read(5) == b"12345"

    def is_free() -> bool:
        with open(backing, "r+b") as stream:
            try:
                fcntl.fcntl(stream.fileno(), fcntl.F_SETLEASE, fcntl.F_WRLCK)
            except OSError:
                return False
            return True

    # What the killed daemon had registered is given back after a while.
    wait_until(is_free, "the backing files given back")


@pytest.mark.parametrize("resend", [True, False])
def test_without_a_daemon_requests_fail_after_a_while_and_a_later_one_takes_over(hold: Hold, resend: bool) -> None:
    mount = hold(stuck_until=99, plan={"resend": resend, "give_up_s": 1.0})
    with Statting(mount.path / "stuck") as statting:
        statting.wait_taken(mount)
        with block_daemons(mount):
            mount.kill_daemon()
            assert statting.wait() == (errno.EIO if resend else errno.ECONNABORTED)
            with pytest.raises(OSError, match=r"Input/output error"):
                wait_until(lambda: os.stat(mount.path / "f") and False, "an error")
            assert mount.ask({"kind": "status"})["state"] == "refusing"
            assert mount.replace(fail="as the test asked")["reason"] == "as the test asked"
        mount.wait_ready(2)
    assert (mount.path / "f").read_bytes() == CONTENT
    assert mount.facts()["restarts"] == 1


@pytest.mark.skipif(not has_epoch(), reason="the kernel cannot be told of all names at once")
def test_names_are_not_relied_on_once_requests_are_refused(hold: Hold) -> None:
    """What is refused may have been done: a name was used on that a rename had given to another file."""
    mount = hold(plan={"give_up_s": 1.0})
    os.stat(mount.path / "kept")
    with block_daemons(mount):
        freeze(mount.process.pid)  # so that it does not give up before the test has looked
        mount.kill_daemon()
        os.stat(mount.path / "kept")
        mount.process.send_signal(signal.SIGCONT)
        wait_until(lambda: mount.ask({"kind": "status"})["state"] == "refusing", "giving up")
        with pytest.raises(OSError, match=r"Input/output error"):
            os.stat(mount.path / "kept")
    mount.wait_ready(2)
    os.stat(mount.path / "kept")


def test_a_close_that_no_daemon_has_sealed_fails(hold: Hold) -> None:
    """Else what was written is taken for kept, and reads as it was before until its worker is back."""
    mount = hold(plan={"give_up_s": 1.0})
    written = os.open(mount.path / "kept", os.O_RDONLY)
    read = os.open(mount.path / "f", os.O_RDONLY)
    with block_daemons(mount):
        mount.kill_daemon()
        wait_until(lambda: mount.ask({"kind": "status"})["state"] == "refusing", "giving up")
        with pytest.raises(OSError, match=r"Input/output error"):
            os.close(written)
        os.close(read)
    mount.wait_ready(2, 30)
    os.close(os.open(mount.path / "kept", os.O_RDONLY))


def test_a_holder_that_can_start_no_process_goes_on_trying(hold: Hold) -> None:
    mount = hold(plan={"give_up_s": 0.5, "standby": False})
    limits = resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, (6, limits[1]))
    try:
        mount.kill_daemon()
        wait_until(lambda: "requests are answered with an error" in mount.log.read_text(), "giving up")
        with pytest.raises(OSError, match=r"Input/output error"):
            os.stat(mount.path / "f")
    finally:
        resource.prlimit(mount.process.pid, resource.RLIMIT_NOFILE, limits)
    mount.wait_ready(2)


def test_a_daemon_that_fails_at_first_leaves_nothing(hold: Hold) -> None:
    mount = hold(fail="as the test asked", ready=False)
    assert mount.process.wait(60) == 3
    assert not mount.mounted


def test_a_daemon_that_is_stopped_is_killed_and_replaced(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = hold()
    mount.freeze_daemon()
    with Statting(mount.path / "f") as statting:
        assert statting.wait() == 0
    mount.wait_ready(2)
    assert mount.generation == 2
    assert "it does not answer" in mount.log.read_text()


def test_replacement_under_load(hold: Hold) -> None:
    mount = hold(slow_s=0.5)
    with Load(mount) as load:
        for generation in range(2, 7):
            with Statting(mount.path / "slow") as statting:
                statting.wait_taken(mount)
                assert mount.replace()["generation"] == generation
                assert statting.wait() == 0
            assert mount.generation == generation
    for count, errors, worst in load.results:
        show(f"{count} rounds over 5 replacements, {errors} errors, longest pause {worst} s")
        assert errors == 0
    assert mount.facts()["restarts"] == 0


def test_a_replacement_that_fails_changes_nothing(hold: Hold) -> None:
    mount = hold(plan={"start_timeout_s": 10.0})
    answer = mount.replace(fail="it was told to")
    assert answer == {"kind": "refused", "reason": "it was told to"}
    assert mount.replace(never_ready=True)["reason"] == "it was not ready after 10 s"
    missing = mount.launch({})._replace(argv=["/nonexistent/python"])
    assert mount.ask({"kind": "replace", **missing._asdict()})["kind"] == "refused"
    assert mount.ask({"kind": "replace", "argv": []})["kind"] == "refused"
    assert mount.ask({"kind": "sing"})["kind"] == "refused"
    assert mount.generation == 1
    assert mount.replace()["kind"] == "replaced"
    mount.kill_daemon()
    mount.wait_ready(5)
    assert mount.generation >= 5


def test_the_old_daemon_finishes_what_takes_long_while_the_new_one_serves(hold: Hold, tmp_path: Path) -> None:
    waited_for = tmp_path / "done"
    mount = hold(slow_until=str(waited_for))
    with Statting(mount.path / "slow") as statting:
        statting.wait_taken(mount)
        assert mount.replace(slow_until="", slow_s=0)["kind"] == "replaced"
        assert statting.outcome is None
        assert mount.generation == 2
        waited_for.touch()
        assert statting.wait() == 0


def test_an_old_daemon_that_does_not_drain_is_killed(hold: Hold) -> None:
    mount = hold(deaf=True, stuck_until=2)
    with Statting(mount.path / "stuck") as statting:
        statting.wait_taken(mount)
        assert mount.replace(deaf=False)["kind"] == "replaced"
        assert statting.wait() == 0


def test_requests_that_kill_each_daemon_are_answered_with_an_error(hold: Hold) -> None:
    mount = hold(crash_on="f")
    with Statting(mount.path / "f") as statting:
        assert statting.wait() == errno.ECONNABORTED
    assert mount.generation >= 5


@pytest.mark.parametrize("state", ["serving", "stopped", "refusing", "starting"])
def test_unmounting_works_in_each_state(hold: Hold, state: str) -> None:
    mount = hold(plan={"give_up_s": 0.5 if state == "refusing" else 60})
    if state == "stopped":
        mount.freeze_daemon()
    blocking = block_daemons(mount) if state in ("refusing", "starting") else contextlib.nullcontext()
    with blocking:
        if state in ("refusing", "starting"):
            mount.kill_daemon()
            wait_until(lambda: mount.ask({"kind": "status"})["state"] == state, state)
        places.detach(mount.path)
        assert mount.process.wait(60) == 0
    wait_until(lambda: not mount.daemons(), "the daemon's end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("state", ["serving", "stopped", "starting"])
def test_signals_end_everything(hold: Hold, state: str, number: int) -> None:
    mount = hold(plan={"give_up_s": 60})
    with kept_open(mount.path / "f"):
        if state == "stopped":
            mount.freeze_daemon()
        with block_daemons(mount) if state == "starting" else contextlib.nullcontext():
            if state == "starting":
                mount.kill_daemon()
                wait_until(lambda: mount.ask({"kind": "status"})["state"] == state, state)
            assert mount.stop(number, 50) == 0
    assert not mount.mounted


def test_it_ends_with_its_supervisor(hold: Hold) -> None:
    mount = hold()
    os.close(mount.lifeline_write)
    mount.lifeline_write = os.dup(mount.lifeline)
    assert mount.process.wait(60) == 0


def test_a_killed_reader_ends(hold: Hold) -> None:
    """Also while no daemon answers: the process is gone as soon as its request is."""
    mount = hold(stuck_until=99, plan={"give_up_s": 1.0})
    reader = subprocess.Popen([sys.executable, "-c", "import os, sys; os.stat(sys.argv[1])", str(mount.path / "stuck")])
    wait_until(lambda: "request_wait" in Path(f"/proc/{reader.pid}/wchan").read_text(), "the reader's wait")
    with block_daemons(mount):
        mount.kill_daemon()
        reader.kill()
        assert reader.wait(60) == -signal.SIGKILL


def test_a_killed_holder_is_survived_and_another_takes_over(hold: Hold) -> None:
    mount = hold()
    daemon = mount.facts()["daemon_pid"]
    with Load(mount) as load:
        mount.process.kill()
        mount.process.wait(60)
        wait_until(lambda: is_orphan(mount), "the daemon waiting for another holder")
        mount.start(adopt=True)
        facts = mount.wait_ready(1)
        assert facts["daemon_pid"] == daemon
        mount.kill_daemon()
        mount.wait_ready(2)
    assert [errors for _, errors, _ in load.results] == [0, 0]
    assert mount.replace()["kind"] == "replaced"


def test_an_orphan_serves_until_unmounted(hold: Hold) -> None:
    mount = hold()
    mount.process.kill()
    mount.process.wait(60)
    wait_until(lambda: is_orphan(mount), "the daemon alone")
    assert (mount.path / "f").read_bytes() == CONTENT
    assert mount.replace()["kind"] == "refused"
    places.detach(mount.path)
    wait_until(lambda: not mount.daemons(), "the daemon's end")


def test_strangers_are_not_heard(hold: Hold) -> None:
    mount = hold()
    os.chmod(mount.socket, 0o666)
    os.chmod(mount.directory, 0o755)
    code = """if True:
        import os, socket, sys
        os.setuid(65534)
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.settimeout(5)
        try:
            s.connect(sys.argv[1])
            s.send(b'{"kind":"status"}')
            print(len(s.recv(100)))
        except OSError as error:
            print('refused')
    """
    name = mount.socket
    parent = Path(name)
    while parent != parent.parent:
        parent = parent.parent
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() in ("0", "refused")
    assert mount.ask({"kind": "status"})["state"] == "serving"


def test_rubbish_from_a_client_ends_only_that_client(hold: Hold) -> None:
    mount = hold()
    for rubbish in (b"x", b"[]", b"\xff" * 1000, b'{"kind":' + b"1" * 5000 + b"}"):
        sock = control.connect(mount.socket, 60)
        assert sock is not None
        with sock:
            sock.send(rubbish)
            with contextlib.suppress(OSError):
                sock.recv(1000)
    assert mount.ask({"kind": "status"})["state"] == "serving"
