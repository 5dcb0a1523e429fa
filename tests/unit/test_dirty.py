"""What may wait for its upload: as much as goes to the store in the time there is to drain, at the speed that uploads go."""

import asyncio
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages_writing import WriteMode
from alluxio_like.ufs.memory import Fault
from alluxio_like.worker.dirty import MEMORY_BYTES, DrainCap, Pace
from tests.unit.draft_parts import running_drafts
from tests.unit.worker_parts import make_data, wait_until

MIB = 1 << 20


def test_the_guess_holds_until_something_is_measured() -> None:
    pace = Pace(50 * MIB)
    assert pace.bytes_per_s == pytest.approx(50 * MIB)
    for number in range(100):
        pace.note(8 * MIB, number, number + 1.0)
    assert pace.bytes_per_s == pytest.approx(8 * MIB, rel=0.1)


def test_a_change_of_speed_is_followed_and_a_trickle_is_not() -> None:
    pace = Pace(100 * MIB)
    for number in range(64):
        pace.note(32 * MIB, number, number + 0.25)
    assert pace.bytes_per_s == pytest.approx(128 * MIB, rel=0.05)
    for number in range(100):
        pace.note(4096, 100.0 + number, 100.05 + number)
    assert pace.bytes_per_s > 30 * MIB
    for number in range(2 * MEMORY_BYTES // (32 * MIB)):
        pace.note(32 * MIB, 1000 + 4 * number, 1004 + 4 * number)
    assert pace.bytes_per_s == pytest.approx(8 * MIB, rel=0.2)


def test_requests_at_once_share_their_time_and_pauses_do_not_count() -> None:
    pace = Pace(64 * MIB)
    for number in range(64):
        pace.note(8 * MIB, 100.0 * (number // 4), 100.0 * (number // 4) + 2.0)
    assert pace.bytes_per_s == pytest.approx(16 * MIB, rel=0.1)


def test_all_is_counted_anew_only_when_the_sum_of_what_came_is_too_much() -> None:
    counts: list[int] = []
    left = 0

    def measure() -> int:
        counts.append(left)
        return left

    cap = DrainCap(Pace(100.0), 10.0, measure, Metrics())
    assert cap.limit_bytes == 1000
    assert not any(cap.is_passed_with(100) for _ in range(10))
    assert counts == []
    # Most of it has gone meanwhile.
    left = 200
    assert not cap.is_passed_with(100)
    assert counts == [200]
    left = 1001
    assert cap.is_passed_with(900)


def test_without_a_bound_nothing_is_too_much() -> None:
    cap = DrainCap(Pace(1.0), None, lambda: 1 << 60, Metrics())
    assert cap.limit_bytes is None
    assert not cap.is_passed_with(1 << 50)


async def test_a_close_waits_for_its_own_upload_where_too_much_is_waiting(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, mode=WriteMode.BACK, drain_s=10.0, guess_bytes_s=100.0) as one:
        gate = asyncio.Event()
        one.ufs.fail("PUT", Fault(None, until=gate), always=True)
        await one.write(one.changes.create(5, "a"), make_data(700))
        assert one.cap.count() == 700
        closing = asyncio.create_task(one.write(one.changes.create(6, "b"), make_data(600)))
        await wait_until(lambda: one.parts.metrics.capped_closes._value.get() == 1, "it waits")
        await wait_until(lambda: one.ufs.count_requests()["PUT"] == 2, "its upload")
        assert not closing.done()
        gate.set()
        await closing
        assert one.ufs.get("b") == make_data(600)


async def test_where_the_store_takes_nothing_closes_fail_only_once_too_much_is_waiting(tmp_path: Path) -> None:
    """And what they wrote is kept and goes later, as with write=through."""
    async with running_drafts(tmp_path, mode=WriteMode.BACK, drain_s=10.0, guess_bytes_s=100.0, io_timeout_s=2.5) as one:
        one.ufs.fail("PUT", errors.StoreUnavailable("broken"), always=True)
        await one.write(one.changes.create(5, "a"), make_data(700))
        with pytest.raises(errors.StoreUnavailable):
            await one.write(one.changes.create(6, "b"), make_data(600))
        assert one.cap.count() == 1300
        one.ufs.heal()

        def is_done() -> bool:
            one.uploader.look()
            return one.cap.count() == 0

        await wait_until(is_done, "both are uploaded")
        assert (one.ufs.get("a"), one.ufs.get("b")) == (make_data(700), make_data(600))
        await one.write(one.changes.create(7, "c"), make_data(900))


async def test_a_file_that_is_written_again_does_not_wait_to_settle(tmp_path: Path) -> None:
    """Above the bound, whoever waits for an upload does not wait for the pause that spares uploads."""
    async with running_drafts(tmp_path, mode=WriteMode.BACK, drain_s=0.0) as one:
        ref = one.changes.create(5, "a")
        for number in range(3):
            ref = await one.write(ref, make_data(100 + number))
            assert one.ufs.get("a") == make_data(100 + number)


async def test_what_uploads_take_is_measured(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, guess_bytes_s=1.0) as one:
        await one.write(one.changes.create(5, "a"), make_data(2 * MIB))
        # 16 MiB in as many seconds were guessed; two more have taken no time to speak of.
        assert one.uploader._pace.bytes_per_s > 1.1
