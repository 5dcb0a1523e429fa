"""A holder whose daemons are started elsewhere and come by themselves: who serves, who follows, and what an end means."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse import control
from tests.fuse.held_daemon import CONTENT
from tests.fuse.held_mounts import ROOT, HeldMount, Load, is_orphan, wait_until

pytestmark = pytest.mark.mount

DAEMON = Path(__file__).with_name("held_daemon.py")


class JoinedMount(HeldMount):
    """A holder, and daemons that the test starts."""

    def __init__(self, directory: Path, **plan: Any) -> None:
        self.joined: list[subprocess.Popen[bytes]] = []
        super().__init__(directory, DAEMON, {}, joined=True, **plan)

    def join(self, since: int, **config: Any) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            command = [sys.executable, str(DAEMON), "--join", self.socket, str(since), json.dumps(config)]
            self.joined.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log))
        return self.joined[-1]

    def said(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log.read_text().count(text) >= times, text)

    def clean(self) -> None:
        for daemon in self.joined:
            daemon.kill()
            daemon.wait(60)
        super().clean()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., JoinedMount]]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    numbers, mounts = itertools.count(), []

    def make(**plan: Any) -> JoinedMount:
        mounts.append(JoinedMount(tmp_path / f"m{next(numbers)}", **plan))
        return mounts[-1]

    yield make
    for mount in mounts:
        mount.clean()


Hold = Callable[..., JoinedMount]


def test_the_mount_waits_for_a_daemon_that_can_serve(hold: Hold) -> None:
    """One that cannot ends nothing."""
    mount = hold()
    wait_until(lambda: "pid" in mount.facts(), "the holder listening")
    assert mount.join(1, fail="no master").wait(60) == 3
    mount.said("has joined")
    assert mount.process.poll() is None
    assert not mount.mounted
    daemon = mount.join(2)
    facts = mount.wait_ready(2)
    assert facts["daemon_pid"] == daemon.pid
    assert (mount.path / "f").read_bytes() == CONTENT
    assert mount.ask({"kind": "status"})["state"] == "serving"


def test_a_later_daemon_takes_over_and_an_earlier_one_does_not(hold: Hold) -> None:
    mount = hold()
    first = mount.join(10)
    mount.wait_ready(1)
    mount.join(5)
    mount.said("has joined", 2)
    assert mount.generation == 1
    with Load(mount) as load:
        later = mount.join(11, config="of its own")
        assert mount.wait_ready(2)["daemon_pid"] == later.pid
        first.wait(60)
    assert [errors for _, errors, _ in load.results] == [0, 0]
    assert mount.ask({"kind": "status"})["config"] == {"config": "of its own"}
    assert mount.replace()["kind"] == "refused"


def test_a_later_one_that_fails_leaves_the_earlier_serving(hold: Hold) -> None:
    mount = hold()
    daemon = mount.join(1)
    mount.wait_ready(1)
    with Load(mount) as load:
        assert mount.join(2, fail="a broken release").wait(60) == 3
        mount.said("the daemon was not replaced: a broken release")
    assert [errors for _, errors, _ in load.results] == [0, 0]
    assert mount.facts()["daemon_pid"] == daemon.pid


@pytest.mark.parametrize("who_waits", ["before", "after"])
def test_a_killed_daemon_is_followed(hold: Hold, who_waits: str) -> None:
    mount = hold()
    mount.join(1)
    mount.wait_ready(1)
    if who_waits == "before":
        mount.join(1)
        mount.said("has joined", 2)
    with Load(mount) as load:
        mount.kill_daemon()
        if who_waits == "after":
            mount.said("no daemon has joined that could serve")
            mount.join(1)
        mount.wait_ready(2)
    assert [errors for _, errors, _ in load.results] == [0, 0]


def test_a_killed_holder_is_followed_by_another(hold: Hold) -> None:
    """What waited for the first one goes to the second; the daemon that serves is not taken for an older one."""
    mount = hold()
    daemon = mount.join(7)
    mount.wait_ready(1)
    with Load(mount) as load:
        mount.process.kill()
        mount.process.wait(60)
        wait_until(lambda: is_orphan(mount), "the daemon waiting for another holder")
        mount.start(adopt=True)
        mount.wait_ready(1)
        wait_until(lambda: mount.facts().get("daemon_pid") == daemon.pid, "who serves being there before another comes")
        mount.join(7)
        mount.said("has joined", 2)
        assert mount.facts()["daemon_pid"] == daemon.pid
        mount.kill_daemon()
        mount.wait_ready(2)
    assert [errors for _, errors, _ in load.results] == [0, 0]


def test_told_to_stop_with_its_daemons_it_unmounts(hold: Hold) -> None:
    mount = hold()
    mount.join(1)
    mount.join(1)
    mount.wait_ready(1)
    mount.said("has joined", 2)
    mount.process.send_signal(signal.SIGTERM)
    mount.said("told to stop")
    assert mount.mounted
    for daemon in mount.joined:
        daemon.send_signal(signal.SIGTERM)
    assert mount.process.wait(60) == 0
    assert not mount.mounted
    assert not os.path.exists(mount.socket)


def test_told_to_stop_alone_it_leaves_the_mount_to_the_next(hold: Hold) -> None:
    mount = hold(leave_after_s=0.2)
    mount.join(1)
    mount.wait_ready(1)
    with Load(mount) as load:
        assert mount.stop() == 0
        wait_until(lambda: is_orphan(mount), "the daemon waiting for another holder")
        assert mount.mounted
        mount.start(adopt=True)
        mount.wait_ready(1)
    assert [errors for _, errors, _ in load.results] == [0, 0]


def test_told_to_stop_before_there_is_a_mount_it_ends(hold: Hold) -> None:
    mount = hold()
    wait_until(lambda: "pid" in mount.facts(), "the holder listening")
    begun = time.monotonic()
    assert mount.stop() == 0
    assert time.monotonic() - begun < 30


def test_one_of_another_version_is_refused(hold: Hold) -> None:
    mount = hold()
    wait_until(lambda: "pid" in mount.facts(), "the holder listening")
    answer = mount.ask({"kind": "join", "version": control.VERSION + 1, "since_ns": 1, "config": {}})
    assert answer["kind"] == "refused"
    assert "version" in answer["reason"]


def test_others_take_no_daemons(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    mount = HeldMount(tmp_path / "m", DAEMON, {})
    try:
        mount.wait_ready()
        assert "no daemons join" in mount.ask({"kind": "join", "version": control.VERSION})["reason"]
    finally:
        mount.clean()
