"""Jobs: the table of states, the record, the ledger, what fits, patterns."""

import random

import pytest

from alluxio_like import errors
from alluxio_like.master.core.jobs import (
    TRANSITIONS,
    Batch,
    Counts,
    Cursor,
    FitPlan,
    JobEvent,
    JobRecord,
    JobState,
    Ledger,
    LoadSpec,
    compile_glob,
)
from alluxio_like.types import JobId, WorkerId


def make_record(state: JobState = JobState.PLANNING) -> JobRecord:
    return JobRecord(JobId("j1"), LoadSpec(replicas=2, hosts=("a",)), 17, ("/a", "/\udcff"), 2, state=state)


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize("event", list(JobEvent))
def test_only_the_tables_transitions_happen(state: JobState, event: JobEvent) -> None:
    record = make_record(state)
    if (state, event) in TRANSITIONS:
        record.advance(event, 5, "why")
        assert record.state is TRANSITIONS[state, event]
        assert (record.ended_ns == 5) == record.state.ended
    else:
        record.history.append((1, "planned", "RUNNING"))
        with pytest.raises(errors.Internal, match="planned -> RUNNING"):
            record.advance(event, 5)
        assert record.state is state


def test_every_state_that_has_not_ended_can_be_cancelled_and_broken() -> None:
    for state in JobState:
        assert ((state, JobEvent.CANCEL) in TRANSITIONS) == (not state.ended)
        assert ((state, JobEvent.BROKEN) in TRANSITIONS) == (not state.ended)


def test_a_record_comes_back_as_it_was_stored() -> None:
    record = make_record()
    record.advance(JobEvent.PLANNED, 9)
    record.load_cursor = Cursor(3, ((1, b"\x00\xff"), (99, b"")))
    record.usable = {WorkerId("w"): 5}
    record.counts = Counts(done_files=4, done_bytes=1 << 60)
    assert JobRecord.decode(record.encode()) == record


def test_the_ledger_gives_out_batches_in_order_once_nothing_before_them_is_open() -> None:
    rng = random.Random(4)
    ledger = Ledger()
    batches: list[Batch] = []
    taken: list[Batch] = []
    for number in range(200):
        batch = ledger.open(Cursor(number))
        batch.counts.done_files = 1
        batches.append(batch)
        if rng.random() < 0.6:
            waiting = [b for b in batches if not b.closed]
            ledger.close(rng.choice(waiting))
        taken += ledger.take()
        assert [b.number for b in taken] == list(range(len(taken)))
        assert all(b.closed for b in taken)
        assert ledger.get_open_counts().done_files + len(taken) == len(batches)
    for batch in batches:
        if not batch.closed:
            ledger.close(batch)
    taken += ledger.take()
    assert taken == batches
    assert len(ledger) == 0


def test_fit_counts_each_worker_by_itself() -> None:
    a, b = WorkerId("a"), WorkerId("b")
    plan = FitPlan({a: 100, b: 50})
    assert plan.add({a: 60, b: 40}, only_if_fits=True)
    assert not plan.add({b: 20}, only_if_fits=True)
    assert plan.add({a: 40}, only_if_fits=True)
    assert plan.fits()
    plan.add({b: 20}, only_if_fits=False)
    assert not plan.fits()
    assert plan.get_excess() == {b: 10}
    assert not plan.fits({WorkerId("unknown"): 1})


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("", "a/b.jpg", True),
        ("*.jpg", "a/b.jpg", True),
        ("*.jpg", "a/b.jpgx", False),
        ("a/*.jpg", "a/b.jpg", True),
        ("a/*.jpg", "a/c/b.jpg", False),
        ("a/**/*.jpg", "a/b.jpg", True),
        ("a/**/*.jpg", "a/c/d/b.jpg", True),
        ("**/b.*", "b.jpg", True),
        ("a/**", "a/c/d", True),
        ("/x/y", "x/y", True),
        ("[ab].?", "a.x", True),
        ("[!ab].?", "a.x", False),
        ("[!ab].?", "c.x", True),
        ("a+b(c)", "a+b(c)", True),
        ("*", ".hidden\n", True),
    ],
)
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert compile_glob(pattern)(path.rpartition("/")[2], path) is matches


def test_a_broken_glob_is_said_so() -> None:
    with pytest.raises(errors.InvalidArgument, match="bracket"):
        compile_glob("[ab")
