"""The command `top`: who reads on this machine's mounts, how fast, and what for they wait.

Owns its tables. One command a process.
"""

import sys
import time
from typing import Annotated, Any

import typer

from alluxio_like.cli.common import JsonOption, load_client_config, print_json
from alluxio_like.cli.mounted import Books, LocalMount, ask_books, list_local_mounts
from alluxio_like.cli.rates import Rates, Row, compute
from alluxio_like.cli.render import show_name
from alluxio_like.errors import AlluxioLikeError, InvalidArgument, NotFound, Unavailable

_JOBS = 12
_FILES = 8
_HEAD = f"{'PID':>7} {'COMMAND':<15} {'MB/s':>7} {'FILES/s':>7} {'HIT':>5} {'HOW':<5} {'WAIT':>5} WAITS FOR"
_NOTE = "~ read by the kernel itself: estimated from /proc/PID/io.   WAIT: seconds waited in each second, by all threads."


def top(
    once: Annotated[bool, typer.Option("--once", help="Look once, over one interval, and end.")] = False,
    by: Annotated[str, typer.Option("--by", metavar="pid|command|group", help="What makes a row; group: pod or cgroup.")] = "pid",
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="How long each look is.")] = "2s",
    mount: Annotated[str, typer.Option("--mount", metavar="PATH", help="Only this mount.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Who reads on the mounts of this machine: bytes, files, hits and waiting, by job and by file.

    \b
    Examples:
      alluxio-like top
      alluxio-like top --by command
      alluxio-like top --once --json --interval 5s
    """
    from alluxio_like.config import parse_duration

    if by not in {"pid", "command", "group"}:
        raise InvalidArgument(f"--by {by}: pid, command or group", subject=by)
    seconds = parse_duration(interval)
    if not 0 < seconds <= 3600:
        raise InvalidArgument(f"--interval {interval}: more than nothing, at most an hour", subject=interval)
    mounts = choose_mounts(mount)
    if as_json:
        _print_json(mounts, seconds, by, once=once)
    elif once or not sys.stdout.isatty():
        _print_text(mounts, seconds, by, once=once)
    else:
        _show_live(mounts, seconds, by)


def choose_mounts(path: str = "") -> list[LocalMount]:
    """The mounts of this machine, or the one at or above a path. Raises NotFound."""
    from alluxio_like.cli.finding import to_local
    from alluxio_like.cli.mounted import find_mount

    mounts = list_local_mounts()
    if path:
        found = find_mount(to_local(path), mounts)
        if found is None:
            raise NotFound("not on a mount of this machine", subject=path)
        return [found]
    if not mounts:
        raise NotFound("there is no mount on this machine: make one with 'alluxio-like up' or 'alluxio-like fuse'")
    return mounts


class Watch:
    """Looks into the books of some mounts again and again."""

    def __init__(self, mounts: list[LocalMount], by: str) -> None:
        self._mounts = mounts
        self._by = by
        self._ca = load_client_config().tls.ca
        self._before: dict[str, Books] = {}
        self.problems: dict[str, str] = {}
        self.look()

    def look(self) -> dict[str, Rates]:
        """What happened since the last look, by mountpoint. Raises Unavailable when no mount can be asked."""
        rates = {}
        for mount in self._mounts:
            try:
                books = ask_books(mount, ca=self._ca)
            except AlluxioLikeError as error:
                self.problems[mount.mountpoint] = error.message
                self._before.pop(mount.mountpoint, None)
                continue
            self.problems.pop(mount.mountpoint, None)
            before = self._before.get(mount.mountpoint)
            # A daemon that was started anew counts from nothing again.
            if before is not None and before["pid"] == books["pid"]:
                rates[mount.mountpoint] = compute(before, books, self._by)
            self._before[mount.mountpoint] = books
        if len(self.problems) == len(self._mounts):
            raise Unavailable("; ".join(self.problems.values()))
        return rates


def _print_json(mounts: list[LocalMount], seconds: float, by: str, *, once: bool) -> None:
    watch = Watch(mounts, by)
    while True:
        time.sleep(seconds)
        found = watch.look()
        print_json(
            [
                {
                    "mountpoint": mount.mountpoint,
                    "session": mount.session,
                    "problem": watch.problems.get(mount.mountpoint, ""),
                    **_to_plain(found.get(mount.mountpoint)),
                }
                for mount in mounts
            ]
        )
        if once:
            return


def _to_plain(rates: Rates | None) -> dict[str, Any]:
    if rates is None:
        return {}
    return {
        "total": rates.total.to_plain(),
        "jobs": [row.to_plain() for row in rates.jobs],
        "files": [row.to_plain() for row in rates.files],
        "waiting": rates.waiting,
    }


def _print_text(mounts: list[LocalMount], seconds: float, by: str, *, once: bool) -> None:
    watch = Watch(mounts, by)
    while True:
        time.sleep(seconds)
        print("\n".join(format_lines(mounts, watch.look(), watch.problems)), flush=True)
        if once:
            return


def _show_live(mounts: list[LocalMount], seconds: float, by: str) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    watch = Watch(mounts, by)
    console = Console(highlight=False)
    text = Text("looking ...")
    with Live(text, console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(seconds)
            lines = format_lines(mounts, watch.look(), watch.problems)
            live.update(Text("\n".join(line[: console.width] for line in lines), no_wrap=True), refresh=True)


def format_lines(mounts: list[LocalMount], found: dict[str, Rates], problems: dict[str, str]) -> list[str]:
    """What a terminal of 80 columns shows."""
    lines: list[str] = []
    for mount in mounts:
        rates = found.get(mount.mountpoint)
        if lines:
            lines.append("")
        lines.append(f"{show_name(mount.mountpoint)}  ({problems.get(mount.mountpoint) or mount.problem or mount.session})")
        if rates is None:
            continue
        total = rates.total
        lines.append(
            f"{_show_rate(total)} MB/s, {total.files_per_s:,.0f} files/s, {_show_hit(total)} at hand,"
            f" {total.wait_s / total.seconds:.2f} s waited in each second"
        )
        if rates.waiting:
            longest = rates.waiting[0]
            lines.append(
                f"{len(rates.waiting)} request(s) waiting now, the longest for {longest['seconds']:.1f} s:"
                f" {longest['what']}, pid {longest['pid']}"
            )
        lines += ["", _HEAD, *[_format_row(row) for row in rates.jobs[:_JOBS]]]
        if rates.files:
            lines += ["", f"{'FILE':<39} {'MB/s':>7} {'HIT':>5} {'HOW':<5} {'WAIT':>5} WAITS FOR"]
            lines += [_format_file(row) for row in rates.files[:_FILES]]
    return [*lines, "", *_NOTE.split("   ")]


def _show_rate(row: Row) -> str:
    rate = row.bytes_per_s / 1e6
    return f"{'~' if row.passthrough_bytes else ''}{rate:,.{1 if rate < 1000 else 0}f}"


def _show_hit(row: Row) -> str:
    return "-" if row.hit_ratio is None else f"{100 * row.hit_ratio:.0f}%"


def _format_row(row: Row) -> str:
    name = show_name(row.label) if row.processes == 1 else f"{row.processes}x {show_name(row.label)}"
    pid = str(row.pid) if row.pid > 0 else "-"
    return (
        f"{pid:>7} {name[:15]:<15} {_show_rate(row):>7} {row.files_per_s:>7,.0f} {_show_hit(row):>5} {row.mode:<5}"
        f" {row.wait_s / row.seconds:>5.2f} {row.show_causes()}"
    ).rstrip()


def _format_file(row: Row) -> str:
    name = show_name(row.label)
    name = name if len(name) <= 39 else f"…{name[-38:]}"
    return (
        f"{name:<39} {_show_rate(row):>7} {_show_hit(row):>5} {row.mode:<5} {row.wait_s / row.seconds:>5.2f} {row.show_causes()}"
    ).rstrip()
