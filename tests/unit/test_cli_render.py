"""Numbers, names and progress as a person reads them."""

import dataclasses
import io

import pytest
from rich.console import Console

from alluxio_like.cli.render import (
    LoadProgress,
    count_files,
    describe_counts,
    print_table,
    show_name,
    show_percent,
    show_seconds,
    show_size,
)
from alluxio_like.rpc.messages import Job, JobState, LoadSpec
from alluxio_like.types import JobId


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (110_000, "110 kB"), (1_234_000_000, "1.23 GB"), (999_900_000, "1000 MB")],
)
def test_sizes(size: float, text: str) -> None:
    assert show_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(-1, "-"), (1.25, "1.2 s"), (245, "4:05"), (3723, "1:02:03")])
def test_times(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_one_file_is_no_plural() -> None:
    assert [count_files(number, "whole ") for number in (0, 1, 2000)] == ["0 whole files", "1 whole file", "2,000 whole files"]


def test_percent_never_rounds_up_to_all() -> None:
    assert show_percent(999_999, 1_000_000) == "99.9 %"
    assert show_percent(0, 0) == show_percent(5, 5) == "100 %"


def test_names_stay_on_their_line() -> None:
    assert show_name("a\nb") == "a\\nb"
    assert show_name("\udcff\x1b[2J") == "\\xff\\x1b[2J"
    assert show_name("größe 数") == "größe 数"


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["A", "N"], [["x", "1"], ["long", "100"]])
    assert capsys.readouterr().out == "A       N\nx       1\nlong  100\n"


def make_job(state: JobState) -> Job:
    return Job(
        JobId("load-1"), state, total_files=10, total_bytes=2_000_000, done_files=5, done_bytes=1_000_000,
        failed_files=1, rate_bytes_s=5e5, eta_s=2.0, listing_done=True,
    )  # fmt: skip


def test_progress_on_a_terminal_shows_files_bytes_rate_time_and_failures() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160, color_system=None)
    with LoadProgress(console=console) as progress:
        progress.update(make_job(JobState.RUNNING))
    text = stream.getvalue()
    for part in ("loading", "5/10 files", "1 MB/2 MB", "500 kB/s", "2.0 s left", "1 failed"):
        assert part in text


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress(console=Console(file=io.StringIO(), force_terminal=False)) as progress:
        progress.update(make_job(JobState.RUNNING))
        progress.update(make_job(JobState.RUNNING))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "5/10 files" in lines[0]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with LoadProgress(quiet=True) as progress:
        progress.update(make_job(JobState.RUNNING))
        progress.say("x")
    assert capsys.readouterr().err == ""


def test_a_dry_run_does_not_look_like_a_load() -> None:
    job = dataclasses.replace(make_job(JobState.DONE), spec=LoadSpec(dry_run=True))
    assert describe_counts(job) == "dry run: 10 files  2 MB"
