"""How numbers, tables and progress look.

Owns text only; what is shown is computed elsewhere. Not thread-safe: used by one command.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from alluxio_like.rpc.messages import Job

PLAIN_INTERVAL_S = 5.0
"""How often progress is said where there is no terminal."""


def show_size(size: float) -> str:
    """Bytes in decimal units, three digits: 1.23 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 1000 or unit == "PB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"


def show_seconds(seconds: float) -> str:
    """1.2 s, 4:05, 1:02:03; a dash for what is not known (negative)."""
    if seconds < 0:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_percent(part: float, whole: float) -> str:
    """part of whole; all of nothing is 100 %. Never rounds up to 100 %."""
    if whole <= 0 or part >= whole:
        return "100 %"
    return f"{min(99.9, 100 * part / whole):.1f} %"


def count_files(number: int, what: str = "") -> str:
    """1 file, 2,000 files; `what` stands between."""
    return f"{number:,} {what}{'file' if number == 1 else 'files'}"


def show_name(name: str) -> str:
    """A name on one line: what would break it or move the cursor is escaped; bytes that are not UTF-8 too."""
    return "".join(
        c if c.isprintable() else c.encode("utf-8", "surrogateescape").decode("latin-1").encode("unicode_escape").decode()
        for c in name
    )


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> None:
    """A plain table, columns aligned to the right except those in `left`; fit for other programs to cut."""
    if not rows:
        return
    lines = [list(titles), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


class LoadProgress:
    """Shows a load job as it goes: a bar on a terminal, else a line every few seconds. Writes to standard error."""

    def __init__(self, *, quiet: bool = False, console: "Console | None" = None) -> None:
        from rich.console import Console

        self._quiet = quiet
        self._console = console if console is not None else Console(stderr=True)
        self._last_line = 0.0
        self._bar = self._make_bar() if self._console.is_terminal and not quiet else None
        if self._bar:
            self._task = self._bar.add_task("load", total=None, files="", rate="", eta="", failures="")

    def _make_bar(self) -> "Progress":
        from rich.progress import BarColumn, Progress, TextColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[files]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[eta]}"),
            TextColumn("[red]{task.fields[failures]}"),
            console=self._console,
            transient=False,
        )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, job: "Job") -> None:
        """Show a job's state."""
        if self._quiet:
            return
        if self._bar:
            self._bar.update(
                self._task,
                description=f"{_STATES.get(job.state.name, job.state.name.lower())}",
                total=job.total_bytes or None,
                completed=job.done_bytes,
                files=describe_counts(job),
                rate=f"{show_size(job.rate_bytes_s)}/s",
                eta=f"{show_seconds(job.eta_s)} left" if job.eta_s >= 0 and not job.state.ended else "",
                failures=f"{job.failed_files:,} failed" if job.failed_files else "",
            )
        elif time.monotonic() - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            print(
                f"{job.job_id}: {_STATES.get(job.state.name, '')} {describe_counts(job)}, {show_size(job.rate_bytes_s)}/s",
                file=sys.stderr,
            )

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self._quiet:
            self._console.print(line, markup=False, highlight=False)


_STATES = {
    "PLANNING": "planning",
    "RUNNING": "loading",
    "CHECKING": "checking",
    "DONE": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
}


def describe_counts(job: "Job") -> str:
    """Files and bytes of a job, as far as they are known."""
    more = "" if job.listing_done else "+"
    if job.spec.dry_run:
        return f"dry run: {job.total_files:,}{more} files  {show_size(job.total_bytes)}{more}"
    return f"{job.done_files:,}/{job.total_files:,}{more} files  {show_size(job.done_bytes)}/{show_size(job.total_bytes)}{more}"
