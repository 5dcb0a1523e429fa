"""The books of a mount: both sides have the same sum whatever happens, they stay bounded, and estimates are as they should be."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alluxio_like.fuse.accounts import FileInfo, JobAccount, JobInfo, Mode, Open, Tally
from alluxio_like.fuse.books import Ledger, Limits
from alluxio_like.waits import NONE, Cause, Seconds, Waits

LIMITS = Limits(recent_jobs=3, worst_jobs=2, recent_files=3, worst_files=2, files_of_a_job=2)
LARGE = 100 << 20


def make_job(pid: int = 100, ticks: int = 7) -> JobInfo:
    return JobInfo(pid, ticks, f"job{pid}")


def make_file(inode: int = 1, size: int = 1000) -> FileInfo:
    return FileInfo(inode, size, f"f{inode}")


def make_waits(**parts: float) -> Seconds:
    waits = Waits()
    for name, seconds in parts.items():
        waits.add(Cause[name], seconds)
    return waits.get()


def sum_up(tallies: "list[Tally]") -> list[float]:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    exact = [*total.opens, total.read_bytes, total.waited_bytes, total.passed_bytes, total.brought_bytes, total.metadata_waits]
    return [*exact, *[round(s, 6) for s in total.waits], round(total.open_wait_s, 6)]


def check_sums(ledger: Ledger) -> None:
    jobs = sum_up([*(job.tally for job in ledger.jobs), ledger.other_jobs.tally])
    files = sum_up([*(file.tally for file in ledger.files), ledger.other_files.tally, ledger.names.tally])
    assert jobs == pytest.approx(files)
    assert jobs == pytest.approx(sum_up([ledger.get_total()]))


def get_job(ledger: Ledger, pid: int = 100) -> JobAccount:
    return next(job for job in ledger.jobs if job.info.pid == pid)


# Any sequence of events


@dataclass
class Handle:
    opened: Open
    reads: int = 0
    waited: int = 0
    waits: Seconds = NONE


PIDS = st.integers(0, 8)
INODES = st.integers(1, 9)
SECONDS = st.sampled_from([0.0, 0.25, 2.0])
EVENTS = st.one_of(
    st.tuples(st.just("open"), PIDS, INODES, st.sampled_from(Mode), SECONDS),
    st.tuples(st.just("read"), st.integers(0, 20), st.integers(0, 5000), st.booleans(), SECONDS),
    st.tuples(st.just("close"), st.integers(0, 20)),
    st.tuples(st.just("names"), PIDS, SECONDS),
    st.tuples(st.just("sample"), PIDS, st.one_of(st.none(), st.integers(0, 10**9))),
    st.tuples(st.just("end"), PIDS),
)


@settings(max_examples=120)
@given(st.lists(EVENTS, max_size=60))
def test_both_sides_have_the_same_sum_and_stay_bounded(events: list[tuple]) -> None:  # type: ignore[type-arg]
    ledger = Ledger(LIMITS)
    handles: list[Handle] = []
    chars: dict[int, int] = {}
    opens = reads = 0
    for now_s, (what, *rest) in enumerate(events):
        match what:
            case "open":
                pid, inode, mode, seconds = rest
                # Every third file is large.
                file = make_file(inode, LARGE if inode % 3 == 0 else inode * 1000)
                waited = make_waits(STORE=seconds) if seconds else NONE
                handles.append(Handle(ledger.open(make_job(pid), file, mode, now_s, waited=waited, brought=bool(seconds))))
                opens += 1
            case "read" if handles:
                handle = handles[rest[0] % len(handles)]
                handle.reads += rest[1]
                handle.waited += rest[1] if rest[2] else 0
                handle.waits = make_waits(PEER=handle.waits[Cause.PEER] + rest[3])
                ledger.update(handle.opened, handle.reads, handle.waited, handle.waits)
                reads += rest[1]
            case "close" if handles:
                ledger.close(handles.pop(rest[0] % len(handles)).opened, now_s)
            case "names":
                ledger.note_metadata(make_job(rest[0]), rest[1], now_s)
            case "sample":
                for job in ledger.jobs:
                    if job.info.pid == rest[0]:
                        chars[rest[0]] = chars.get(rest[0], 0) + (rest[1] or 0)
                        new = ledger.sample(job, None if rest[1] is None else chars[rest[0]], 0, now_s)
                        assert new.total >= sum(new.by_file.values()) >= 0
            case "end":
                for job in ledger.jobs:
                    job.gone = job.gone or job.info.pid == rest[0]
                ledger.forget_old(now_s + 10_000)
        check_sums(ledger)
        assert len(ledger.jobs) <= 5
        assert len(ledger.files) <= 5
        assert all(len(job.worst) <= 2 for job in ledger.jobs)
    total = ledger.get_total()
    assert sum(total.opens) == opens
    assert total.read_bytes == reads


def test_of_what_a_job_waited_for_the_lighter_half_is_forgotten_when_there_is_too_much() -> None:
    ledger = Ledger(Limits(files_of_a_job=4))
    for inode, waited_s in ((1, 0.5), (2, 0.1), (3, 0.2), (4, 0.9), (5, 0.3)):
        opened = ledger.open(make_job(), make_file(inode), Mode.CACHED, 1.0)
        ledger.update(opened, 10, 10, make_waits(PEER=waited_s))
    assert {file.info.inode for file in get_job(ledger).worst if file.info is not None} == {1, 4, 5}
    check_sums(ledger)


def test_what_a_job_waited_for_is_seldom_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed = 0

    def weigh(tally: Tally) -> float:
        nonlocal weighed
        weighed += 1
        return sum(tally.waits)

    monkeypatch.setattr(Tally, "wait_s", property(weigh))
    ledger = Ledger(Limits())
    for inode in range(1, 2001):
        opened = ledger.open(make_job(), make_file(inode), Mode.CACHED, 1.0)
        ledger.update(opened, 10, 10, make_waits(PEER=0.001))
        ledger.close(opened, 1.0)
    assert weighed < 5 * 2000, "at each file all others would be"


# What the kernel reads by itself


def test_what_a_process_read_past_us_goes_to_the_files_it_had_open() -> None:
    ledger = Ledger()
    ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    assert not ledger.sample(job, 5000, 0, 0.1).total, "the first sample says where to count from"
    assert ledger.sample(job, 5000 + 3 * LARGE, 0, 1.1).total == 3 * LARGE, "a file may be read more than once"
    assert job.tally.passed_bytes == 3 * LARGE
    assert job.rate == pytest.approx(3 * LARGE)


def test_small_files_count_once_and_large_ones_share_the_rest_by_time() -> None:
    ledger = Ledger()
    ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    small = [ledger.open(make_job(), make_file(10 + n, 1000), Mode.PASSTHROUGH, 0.1) for n in range(5)]
    for one in small:
        ledger.close(one, 0.2)
    late = ledger.open(make_job(), make_file(2, LARGE), Mode.PASSTHROUGH, 0.75)
    booked = ledger.sample(job, 5000 + 1_000_000, 0, 1.0)
    by_inode = {file.info.inode: count for file, count in booked.by_file.items() if file.info}
    assert [one.file.tally.passed_bytes for one in small] == [1000] * 5
    assert booked.total == 1_005_000
    assert by_inode[1] == 800_000
    assert by_inode[late.file.info.inode if late.file.info else 0] == 200_000


def test_what_was_read_before_the_close_goes_to_a_file_read_more_than_once() -> None:
    ledger = Ledger()
    opened = ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    ledger.sample(job, 2 * LARGE, 0, 1.0)
    ledger.close(opened, 1.5)
    assert ledger.sample(job, 3 * LARGE, 0, 1.6).total == LARGE
    assert job.tally.passed_bytes == 3 * LARGE


def test_small_files_get_no_more_than_was_read() -> None:
    ledger = Ledger()
    first = ledger.open(make_job(), make_file(1, 1000), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    ledger.open(make_job(), make_file(2, 3000), Mode.PASSTHROUGH, 0.0)
    assert ledger.sample(job, 400, 0, 1.0).total == 400
    ledger.close(first, 1.5)
    # What they did not get is still owed.
    assert ledger.sample(job, 400 + 3600, 0, 2.0).total == 3600


def test_a_small_file_that_stays_open_may_be_read_again() -> None:
    ledger = Ledger()
    ledger.open(make_job(), make_file(1, 1000), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.5)
    ledger.sample(job, 1000, 0, 1.5)
    assert ledger.sample(job, 9000, 0, 2.5).total == 8000


def test_bytes_given_by_reads_are_not_counted_twice() -> None:
    ledger = Ledger()
    ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    beside = ledger.open(make_job(), make_file(2, LARGE), Mode.CACHED, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    ledger.update(beside, 4000, 0, NONE)
    assert ledger.sample(job, 10_000, 0, 1.0).total == 6000
    assert job.tally.all_bytes == 10_000


def test_a_process_that_is_gone_has_read_small_files_once_and_large_ones_as_before() -> None:
    ledger = Ledger()
    large = ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    ledger.sample(job, 1_000_000, 0, 1.0)
    ledger.close(ledger.open(make_job(), make_file(2, 500), Mode.PASSTHROUGH, 1.1), 1.2)
    ledger.close(large, 1.5)
    assert ledger.sample(job, None, 0, 2.0).total == 500 + 500_000


def test_a_process_that_was_never_seen_has_read_each_file_once() -> None:
    ledger = Ledger()
    ledger.close(ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0), 0.1)
    ledger.sample(get_job(ledger), None, 0, 1.0)
    ledger.close(ledger.open(make_job(0, 0), make_file(2, 700), Mode.PASSTHROUGH, 0.0), 0.1)
    assert ledger.get_total().passed_bytes == LARGE + 700


def test_what_is_closed_while_a_process_is_looked_at_is_settled_by_the_next_look() -> None:
    """It was looked at at 1.0, and the answer comes when a file that was opened and read since is closed."""
    ledger = Ledger()
    first = ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    ledger.close(first, 0.5)
    ledger.close(ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 1.1), 1.2)
    assert ledger.sample(job, LARGE, 0, 1.0).total == LARGE
    assert job.wants_sample
    assert ledger.sample(job, 2 * LARGE, 0, 1.3).total == LARGE
    assert not job.wants_sample


@pytest.mark.parametrize("read_by_then", [0, 300, 1000, 1700, 2000])
def test_small_files_that_are_closed_while_a_process_is_looked_at_are_not_taken_back(read_by_then: int) -> None:
    ledger = Ledger()
    ledger.open(make_job(), make_file(9, 0), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    for n in range(2):
        ledger.close(ledger.open(make_job(), make_file(n, 1000), Mode.PASSTHROUGH, 0.9), 1.1)
    booked = ledger.sample(job, read_by_then, 0, 1.0).total
    assert job.tally.passed_bytes == 2000
    assert booked + ledger.sample(job, 2000, 0, 2.0).total == 2000
    assert job.tally.passed_bytes == 2000
    check_sums(ledger)


def test_what_is_closed_while_a_process_is_looked_at_for_the_first_time_is_counted_once() -> None:
    ledger = Ledger()
    for inode, size in ((1, LARGE), (2, 1000)):
        ledger.close(ledger.open(make_job(), make_file(inode, size), Mode.PASSTHROUGH, 0.0), 1.1)
    job = get_job(ledger)
    assert not ledger.sample(job, 0, 0, 1.0).total
    assert ledger.sample(job, LARGE + 1000, 0, 2.0).total == LARGE + 1000
    assert job.tally.passed_bytes == LARGE + 1000


def test_a_process_that_is_gone_has_read_a_large_file_once_more_at_most() -> None:
    """Its close was seen late: this daemon had to wait."""
    ledger = Ledger()
    opened = ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    ledger.sample(job, LARGE // 2, 0, 0.001)
    ledger.close(opened, 3.0)
    assert ledger.sample(job, None, 0, 3.0).total == LARGE


def test_what_comes_from_disks_otherwise_is_kept_apart() -> None:
    ledger = Ledger()
    ledger.open(make_job(), make_file(1, LARGE), Mode.PASSTHROUGH, 0.0)
    job = get_job(ledger)
    ledger.sample(job, 0, 0, 0.0)
    assert not ledger.sample(job, 0, 40_000_000, 1.0).total
    assert (job.tally.passed_bytes, job.unseen_bytes) == (0, 40_000_000)


def test_a_number_that_is_used_again_is_another_job() -> None:
    ledger = Ledger()
    ledger.open(make_job(5, 1), make_file(), Mode.CACHED, 0.0)
    ledger.open(make_job(5, 2), make_file(), Mode.CACHED, 1.0)
    assert [sum(job.tally.opens) for job in ledger.jobs] == [1, 1]


# What is remembered


def test_whoever_waited_is_remembered_longer_than_whoever_was_quick() -> None:
    ledger = Ledger(LIMITS)
    slow = ledger.open(make_job(1), make_file(1), Mode.CACHED, 0.0)
    ledger.update(slow, 10, 10, make_waits(STORE=30))
    ledger.close(slow, 1.0)
    for number in range(2, 50):
        ledger.close(ledger.open(make_job(number), make_file(number), Mode.CACHED, number), number)
    assert 1 in {job.info.pid for job in ledger.jobs}
    assert ledger.lookup_file(1) is not None
    check_sums(ledger)


def test_a_handle_of_a_forgotten_job_still_counts() -> None:
    ledger = Ledger(LIMITS)
    handles = [ledger.open(make_job(number), make_file(number), Mode.CACHED, number) for number in range(1, 30)]
    for handle in handles:
        ledger.update(handle, 100, 0, make_waits(PEER=1))
        ledger.close(handle, 100.0)
    assert ledger.get_total().read_bytes == 2900
    check_sums(ledger)


def test_the_hit_ratio_leaves_out_what_was_waited_for() -> None:
    ledger = Ledger()
    brought = ledger.open(make_job(), make_file(1, 1000), Mode.PASSTHROUGH, 0.0, waited=make_waits(STORE=1), brought=True)
    assert brought.job.tally.get_hit_ratio() is None
    ledger.sample(brought.job, 0, 0, 0.0)
    ledger.sample(brought.job, 1000, 0, 1.0)
    read = ledger.open(make_job(), make_file(2, 9000), Mode.CACHED, 0.0)
    ledger.update(read, 9000, 4000, NONE)
    assert brought.job.tally.get_hit_ratio() == pytest.approx(0.5)
