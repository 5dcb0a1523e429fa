"""How the command `fuse` becomes the holder of a mount, and how it reaches the holder of one that is there.

Owns the step from a checked configuration to the holder's plan: the place, the socket, what is there already. The holder is
fuse/holder.py, into which this process turns (the same pid). One command a process.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from alluxio_like.cli.finding import Record, get_run_dirs, get_start_ticks, list_records, write_record
from alluxio_like.config import FuseConfig
from alluxio_like.errors import Conflict, NotFound, TimedOut
from alluxio_like.fuse import control, holder_main, mountpoint
from alluxio_like.fuse.holder_child import Launch, Plan
from alluxio_like.fuse.mountinfo import find_top_line

_ASK_TIMEOUT_S = 5.0
_REPLACE_TIMEOUT_S = 90.0
"""The holder gives a successor a minute to be ready."""
_LEAVE_S = 10.0
"""What a daemon that was replaced gets beyond io_timeout_s to finish its requests. A guess."""


def resolve_place(place: Path) -> str:
    """A mount point without links on the way to it; asks nothing of what is mounted there."""
    path = os.path.abspath(place)  # noqa: PTH100
    for _ in range(40):
        head, name = os.path.split(path)
        path = os.path.join(os.path.realpath(head), name)  # noqa: PTH118
        try:
            target = os.readlink(path)  # noqa: PTH115
        except OSError:
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120
    return path


def ask_status(place: str) -> dict[str, Any] | None:
    """What the holder of a mount says of it, or its daemon where the holder has died; None where nobody listens."""
    for directory in get_run_dirs():
        if answer := _ask(str(directory / control.get_socket_name(place)), {"kind": "status"}, _ASK_TIMEOUT_S):
            return answer
    return None


def hold(config: FuseConfig, lifeline: int = -1, *, joined: bool = False) -> NoReturn:
    """Turn into the holder of a mount; `joined`: its daemons are started elsewhere. Raises the package's errors when it cannot be
    made; nothing has changed then."""
    place = resolve_place(config.mountpoint)
    there = ask_status(place)
    top = find_top_line(place)
    if there is not None and (top is None or top.device != there.get("device")):
        there = None  # detached from there, and open files keep it
    if there is not None and there.get("state") != "orphan":
        raise Conflict("already mounted there: unmount it first, or take its daemon's place with --replace", subject=place)
    place_made = False
    if there is None:
        checked, place_made = mountpoint.check_place(config.mountpoint)
        place = str(checked)
    run_dir = get_run_dirs()[0]
    list_records()  # and with that, the record of a holder that was killed is gone
    pid = os.getpid()
    record = write_record(
        "fuse", Record(pid, get_start_ticks(pid) or 0, config.client.master, mountpoint=place, path=config.path)
    )
    plan = Plan(
        place=place,
        launch=_make_launch(config),
        socket=str(run_dir / control.get_socket_name(place)),
        allow_other=mountpoint.may_allow_other() if config.allow_other is None else config.allow_other,
        adopt=there is not None,
        place_made=place_made,
        passthrough=config.passthrough,
        read_only=config.read_only,
        locks=config.shares_locks,
        resend=config.resend,
        ready_file=str(config.ready_file or ""),
        record_file=str(record or ""),
        lifeline=lifeline,
        log_format=config.log_format,
        standby=config.standby,
        give_up_s=config.give_up_s,
        leave_s=max(config.io_timeout_s, config.client.io_timeout_s) + _LEAVE_S,
        joined=joined,
        read_ahead_kb=config.read_ahead_kb,
        suid=config.suid,
    )
    _become(plan.to_json())


def join(config: FuseConfig) -> NoReturn:
    """Turn into what keeps daemons going that join the mount's holder, which another command runs."""
    socket_path = str(get_run_dirs()[0] / control.get_socket_name(resolve_place(config.mountpoint)))
    launch = _make_launch(config)
    argv = [*launch.argv, "--join", socket_path, str(time.time_ns())]
    facts = {"launch": launch._replace(argv=argv)._asdict(), "config": launch.config, "count": 1 + config.standby}
    _become(json.dumps(facts), "joiner")


def _become(plan: str, *program: str) -> NoReturn:
    """Turn into holder_main.py: without site-packages and without this process's modules it stays small."""
    descriptor = os.memfd_create("plan", 0)
    os.write(descriptor, plan.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    arguments = [sys.executable, "-I", "-S", str(holder_main.__file__), str(descriptor), *program]
    os.execve(sys.executable, arguments, dict(os.environ))


def replace(config: FuseConfig, place: str) -> dict[str, Any]:
    """Have another daemon, with this configuration, take the place of the one that serves a mount; what serves it then.

    Raises NotFound where there is no such mount, Conflict with the reason when the old one goes on.
    """
    for directory in get_run_dirs():
        answer = _ask(
            str(directory / control.get_socket_name(place)),
            {"kind": "replace", **_make_launch(config)._asdict()},
            _REPLACE_TIMEOUT_S,
        )
        if answer is not None:
            if answer.get("kind") == "replaced":
                return answer
            raise Conflict(f"the daemon was not replaced, the old one goes on: {answer.get('reason')}", subject=place)
    raise NotFound("no mount of ours with a holder is there (the pyfuse3 session has none)", subject=place)


def _ask(path: str, message: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
    sock = control.connect(path, timeout_s)
    if sock is None:
        return None
    with sock:
        if not control.send(sock, message):
            return None
        try:
            received = control.receive(sock)
        except TimeoutError:
            raise TimedOut(f"the mount's holder did not answer within {timeout_s:g} s", subject=path) from None
    return received[0] if received is not None else None


def _make_launch(config: FuseConfig) -> Launch:
    try:
        directory = os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        directory = "/"
    command = [sys.executable, "-P", "-m", "alluxio_like.fuse.daemon"]
    return Launch(command, dict(os.environ), directory, config.model_dump(mode="json"))
