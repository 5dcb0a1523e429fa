"""Commands about what is written: policies, and having and waiting for it in the store.

Owns options and output; workers upload by themselves, so ending a command that waits ends no upload. One command a process.
"""

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import (
    JsonOption,
    MasterOption,
    PathArgument,
    open_client,
    print_json,
    run_async,
    to_known_path,
)
from alluxio_like.cli.mounts import describe_loss
from alluxio_like.cli.render import count_files, show_name, show_size
from alluxio_like.config import parse_duration
from alluxio_like.errors import InvalidArgument, TimedOut

if TYPE_CHECKING:
    from alluxio_like.client import Client
    from alluxio_like.rpc.messages_writing import Unpersisted

_LOOK_FIRST_S = 0.05
_LOOK_S = 1.0
_SAY_S = 10.0
"""How often a command that waits says what it waits for."""

TimeoutOption = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="Give up after so long, such as 10m, with exit code 1; else never.")
]


def policy(
    path: PathArgument,
    wanted: Annotated[
        str,
        typer.Argument(
            metavar="[through|back[:N]|cache]",
            help="When a close returns: when the store has the file, when N workers have it, or when one has it for good.",
        ),
    ] = "",
    clear: Annotated[bool, typer.Option("--clear", help="Let what holds above it hold here too.")] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """How what is written below a directory gets to the store; with a policy or --clear set it.

    through: a close returns when the store has the file. back:N: when N workers have it; the store gets it soon after. cache:
    when one worker has it, and the store never gets it, unless it is asked for by "alluxio-like fs persist". It holds for what
    is written from then on, down to where another one is set, and goes before the mount's.

    \b
    Examples:
      cache policy /ckpt back:2
      cache policy /ckpt/scratch cache
      cache policy /ckpt/scratch --clear
      cache policy /ckpt
    """
    from alluxio_like.rpc.messages_writing import WritePolicy

    if wanted and clear:
        raise InvalidArgument("a policy or --clear, not both")
    parsed = WritePolicy.parse(wanted) if wanted else None

    async def run() -> None:
        async with open_client(master, path) as client:
            known = await to_known_path(client, path)
            if wanted or clear:
                found = await client.changes.set_write_policy(known, parsed)
            else:
                found = await client.changes.get_write_policy(known)
        if as_json:
            print_json({"path": known, "policy": str(found.policy), "set_at": found.set_at})
            return
        print(f"{show_name(known)}: {found.policy}, set at {show_name(found.set_at)}")
        if warning := describe_loss(str(found.policy)):
            print(warning, file=sys.stderr)

    run_async(run())


def fs_wait(path: PathArgument, timeout: TimeoutOption = "", master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Wait until the store has all that was written, renamed and removed at and below a path.

    Files that the policy `cache` keeps from the store are not waited for: see "alluxio-like fs persist".

    \b
    Examples:
      alluxio-like fs wait /ckpt/step-1000
      alluxio-like fs wait /ckpt --timeout 10m
    """
    deadline = _get_deadline(timeout)

    async def run() -> None:
        async with open_client(master, path) as client:
            known = await to_known_path(client, path)
            found = await _wait(client, known, deadline, with_kept=False, quiet=as_json)
        if as_json:
            print_json(found)
            return
        print(f"{show_name(known)}: the store has all of it")
        if found.kept_files:
            print(f"but for {count_files(found.kept_files)}, {show_size(found.kept_bytes)}, which are only to be cached")

    run_async(run())


def fs_persist(
    path: PathArgument,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when the workers have been told.")] = False,
    timeout: TimeoutOption = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Have the workers upload what is only cached at and below a path, whatever its write policy, and wait until it is stored.

    \b
    Example:
      alluxio-like fs persist /ckpt/scratch/best
    """
    deadline = _get_deadline(timeout)

    async def run() -> None:
        async with open_client(master, path) as client:
            known = await to_known_path(client, path)
            told = await client.changes.persist(known)
            if told.out_of_reach:
                print(
                    f"{count_files(told.out_of_reach)} cannot be uploaded now: no worker that has them is live; see "
                    "`alluxio-like workers`",
                    file=sys.stderr,
                )
            if not no_wait:
                await _wait(client, known, deadline, with_kept=True, quiet=as_json)
        if as_json:
            print_json(told)
            return
        done = "on their way to the store" if no_wait else "in the store"
        print(f"{show_name(known)}: {count_files(told.files)} {done}")

    run_async(run())


def print_unpersisted(found: "Unpersisted") -> None:
    """What the store does not have at and below a path, for `cache status`."""
    if found.files:
        kept = f", of which {count_files(found.kept_files)} are only to be cached" if found.kept_files else ""
        print(f"not in the store: {count_files(found.files)}, {show_size(found.size_bytes)}{kept}")
    if found.steps:
        print(f"the store has to follow: {found.steps:,} deletions and moves in these mounts")
    if found.trouble:
        print(f"the store does not follow, and is tried again: {found.trouble}")
    for beside in found.conflicts:
        print(f"kept beside what others have put in its place: {show_name(beside)}")


def _get_deadline(timeout: str) -> float | None:
    return time.monotonic() + parse_duration(timeout) if timeout else None


async def _wait(client: "Client", path: str, deadline: float | None, *, with_kept: bool, quiet: bool) -> "Unpersisted":
    """Wait until nothing is left to be stored. Raises TimedOut with what is."""
    pause_s, said_s = _LOOK_FIRST_S, time.monotonic()
    while True:
        found = await client.changes.list_unpersisted(path, 1)
        files = found.files - (0 if with_kept else found.kept_files)
        if not files and not found.steps:
            return found
        left = f"{count_files(files)} and {found.steps:,} deletions and moves are not in the store"
        left += f" ({found.trouble})" if found.trouble else ""
        now_s = time.monotonic()
        if deadline is not None and now_s >= deadline:
            raise TimedOut(f"{left}: they go on; wait longer, or see `alluxio-like report`", subject=path)
        if not quiet and now_s - said_s >= _SAY_S:
            said_s = now_s
            print(left, file=sys.stderr)
        await asyncio.sleep(pause_s)
        pause_s = min(_LOOK_S, 2 * pause_s)
