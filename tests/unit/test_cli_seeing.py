"""Rows of `top` from two looks into the books, and the rules of `why`."""

from typing import Any

import pytest

from alluxio_like.cli.advice import Facts, advise
from alluxio_like.cli.mounted import LocalMount, ask_books
from alluxio_like.cli.rates import CAUSES, Row, compute
from alluxio_like.cli.top import format_lines
from alluxio_like.cli.why import count_free, merge
from alluxio_like.errors import Unavailable
from alluxio_like.types import Worker, WorkerId


def make_tally(**changed: Any) -> dict[str, Any]:
    waits = {cause: float(changed.pop(cause, 0.0)) for cause in CAUSES}
    return {
        "opens": {"passthrough": changed.pop("passed", 0), "cached": changed.pop("cached", 0), "direct": 0},
        "read_bytes": 0,
        "waited_bytes": 0,
        "passthrough_bytes": 0,
        "brought_bytes": 0,
        "hit_ratio": None,
        "waits_s": waits,
        "open_wait_s": 0.0,
        "metadata_waits": 0,
        "unseen_disk_bytes": 0,
        **changed,
    }


def make_job(pid: int, name: str = "python", **changed: Any) -> dict[str, Any]:
    return {
        **make_tally(**changed), "pid": pid, "birth": 1, "name": name, "command": name, "group": "pod x", "parent": 1,
        "uid": 0, "ended": False, "open": 0, "first_s": 0.0, "last_s": 0.0, "worst": [],
    }  # fmt: skip


def make_books(clock_s: float, jobs: list[dict[str, Any]], total: dict[str, Any], files: Any = ()) -> dict[str, Any]:
    return {"clock_s": clock_s, "jobs": jobs, "total": total, "files": list(files), "other_jobs": make_tally()}


def make_file(inode: int, first_s: float, **changed: Any) -> dict[str, Any]:
    return {**make_tally(**changed), "inode": inode, "key": f"train/{inode}", "first_s": first_s, "mount_id": 1, "size": 5}


# top


def test_rates_are_what_came_in_between() -> None:
    before = make_books(10, [make_job(1, passthrough_bytes=1000, passed=5)], make_tally(passthrough_bytes=1000, passed=5))
    after = make_books(
        12,
        [make_job(1, passthrough_bytes=5000, passed=9, store=1.0), make_job(2, read_bytes=600, waited_bytes=300)],
        make_tally(passthrough_bytes=5000, passed=9, read_bytes=600, waited_bytes=300, store=1.0),
    )
    rates = compute(before, after)
    first, second = rates.jobs
    assert (first.pid, first.bytes_per_s, first.files_per_s, first.mode, first.hit_ratio) == (1, 2000, 2, "pass", 1.0)
    assert (first.wait_s / first.seconds, first.show_causes()) == (0.5, "store 100%")
    assert (second.pid, second.bytes_per_s, second.mode, second.hit_ratio) == (2, 300, "read", 0.5)
    assert rates.total.bytes_per_s == 2300


def test_what_was_forgotten_in_between_has_no_past_that_counts() -> None:
    before = make_books(0, [make_job(1, read_bytes=10**12), make_job(2)], make_tally(read_bytes=10**12))
    after = make_books(1, [make_job(2, read_bytes=50)], make_tally(read_bytes=10**12 + 80))
    after["other_jobs"] = make_tally(read_bytes=10**12 + 30)
    assert {row.label: row.read_bytes for row in compute(before, after).jobs} == {"python": 50, "others": 30}


def test_a_file_that_was_not_shown_before_is_left_out_if_it_is_old() -> None:
    before = make_books(100, [], make_tally())
    after = make_books(101, [], make_tally(), [make_file(1, 5.0, read_bytes=10**9), make_file(2, 100.5, read_bytes=7)])
    assert [(row.label, row.read_bytes) for row in compute(before, after).files] == [("train/2", 7)]


def test_rows_can_be_commands_or_groups() -> None:
    before = make_books(0, [], make_tally())
    jobs = [make_job(1, "train", read_bytes=10), make_job(2, "train", read_bytes=20), make_job(3, "eval", read_bytes=5)]
    after = make_books(1, jobs, make_tally(read_bytes=35))
    assert [(row.label, row.processes, row.read_bytes) for row in compute(before, after, "command").jobs] == [
        ("train", 2, 30),
        ("eval", 1, 5),
    ]
    assert [(row.label, row.processes) for row in compute(before, after, "group").jobs] == [("pod x", 3)]


def test_lines_fit_80_columns() -> None:
    job = make_job(4194304, "a-very-long-command-name", passthrough_bytes=98_765_432_100, passed=123456, metadata=3, queue=9)
    after = make_books(1, [job], make_tally(passthrough_bytes=98_765_432_100, passed=123456, metadata=3, queue=9))
    after["files"] = [{**make_file(1, 1.0, read_bytes=5, metadata=1), "key": "x" * 300 + "\n"}]
    mount = LocalMount("/mnt/data", "kernel with passthrough", "http://127.0.0.1:1")
    lines = format_lines([mount], {"/mnt/data": compute(make_books(0, [], make_tally()), after)}, {})
    assert max(map(len, lines)) <= 80, lines
    assert any("~98,765" in line and "queue 75% metadata 25%" in line for line in lines)
    assert Row("x").show_causes() == ""


def test_a_mount_that_cannot_be_asked_is_said() -> None:
    mount = LocalMount("/mnt/data", problem="its daemon is gone")
    assert format_lines([mount], {}, {})[0] == "/mnt/data  (its daemon is gone)"
    with pytest.raises(Unavailable, match="its daemon is gone"):
        ask_books(mount)


# why


def test_a_launcher_is_the_sum_of_its_children() -> None:
    children = [make_job(2, read_bytes=100, waited_bytes=50, store=1), make_job(3, read_bytes=300, passed=2, store=2, queue=1)]
    merged = merge(1, children)
    assert (merged["pid"], merged["children"], merged["read_bytes"], merged["opens"]["passthrough"]) == (1, 2, 400, 2)
    assert (merged["waits_s"]["store"], merged["waits_s"]["queue"]) == (3, 1)
    assert merged["hit_ratio"] == 0.875


def test_what_is_free_is_what_others_leave_of_it() -> None:
    roomy = Worker(WorkerId("a"), "h:1", "h", "", capacity_bytes=100, used_bytes=30)
    crowded = Worker(WorkerId("b"), "h:2", "h", "", capacity_bytes=100, used_bytes=30, usable_bytes=40)
    over = Worker(WorkerId("c"), "h:3", "h", "", capacity_bytes=100, used_bytes=30, usable_bytes=20)
    dead = Worker(WorkerId("d"), "h:4", "h", "", capacity_bytes=100, live=False)
    assert count_free([roomy, crowded, over, dead]) == 80


FACTS = Facts(mountpoint="/mnt", path="/data/train", missing_bytes=12 * 10**9, free_bytes=40 * 10**9, host="node7")


@pytest.mark.parametrize(
    ("changed", "facts", "evidence", "advice"),
    [
        ({"store": 69, "queue": 1}, FACTS, "99 % of the wait (69.0 s) was for the store", "(needs 12 GB, 40 GB free: it fits)"),
        ({"store": 9}, Facts(path="/d", missing_bytes=9, free_bytes=1), "for the store", "it does not fit"),
        ({"store": 9}, Facts(path="/d", missing_bytes=0, stored_whole=True), "for the store", "is cached by now"),
        ({"store": 9}, Facts(mountpoint="/mnt"), "for the store", "cache load /mnt/PATH"),
        ({"peer": 9}, FACTS, "not on this machine", "cache load --hosts node7 /data/train"),
        ({"fill": 9}, FACTS, "cache disk", "--cache-dir"),
        ({"metadata": 9, "metadata_waits": 1234}, FACTS, "1,234 requests", "--sync-interval"),
        ({"queue": 9}, Facts(limited_buckets=("s3://b",)), "s3://b asks for less", "prefixes"),
        ({"queue": 9}, Facts(loads_running=2), "beside 2 running load(s)", "loads end"),
        ({"queue": 9}, FACTS, "for a turn at the worker", "fetch_concurrency"),
        ({"other": 9}, FACTS, "nothing that was told", "alluxio-like workers"),
        ({"cached": 50, "passed": 50, "read_bytes": 10**9}, FACTS, "50 of 100 opens, 1 GB", "--open-wait"),
        ({"cached": 9, "read_bytes": 9}, Facts(why_not=("overlayfs",)), "overlayfs", "doctor"),
        ({"unseen_disk_bytes": 10**9}, FACTS, "io_uring", "not in the figures"),
    ],
)  # fmt: skip
def test_advice_says_what_was_seen_and_what_would_help(changed: dict[str, Any], facts: Facts, evidence: str, advice: str) -> None:
    (found,) = advise(make_job(1, **changed), facts)
    assert evidence in found.evidence
    assert advice in found.help


def test_what_matters_most_comes_first_and_trifles_not_at_all() -> None:
    found = advise(make_job(1, store=30, metadata=60, queue=5, fill=0.01), FACTS)
    assert ["metadata" if "names" in one.evidence else "store" for one in found] == ["metadata", "store"]
    assert advise(make_job(1, store=0.05, passed=10), FACTS) == []
