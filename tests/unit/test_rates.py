"""One rate for each bucket and the whole cluster."""

import pytest

from alluxio_like.master.core.rates import DECREASE, DECREASE_INTERVAL_S, MIN_RATE, RateController
from alluxio_like.types import WorkerId

A, B = WorkerId("a"), WorkerId("b")
BUCKET = "s3://b"


def test_no_limit_before_a_throttle() -> None:
    rates = RateController()
    rates.note(BUCKET, A, 0, 100.0, 0.0)
    assert rates.get_rates(1.0) == {}


def test_the_first_trouble_counts_what_all_workers_used() -> None:
    rates = RateController()
    rates.note(BUCKET, A, 5, 100.0, 0.0)
    rates.note(BUCKET, B, 3, 60.0, 0.5)
    assert rates.get_rates(0.5)[BUCKET] == 160.0 * DECREASE


def test_one_trouble_lowers_once() -> None:
    rates = RateController()
    for tick in range(5):
        rates.note(BUCKET, A, 50, 100.0, tick * 0.5)
    assert rates.get_rates(2.0)[BUCKET] == 100.0 * DECREASE
    rates.note(BUCKET, A, 1, 70.0, DECREASE_INTERVAL_S + 0.1)
    assert 70.0 * DECREASE * 0.99 <= rates.get_rates(DECREASE_INTERVAL_S + 0.1)[BUCKET] <= 75.0 * DECREASE


def test_it_recovers_and_is_lifted_by_itself() -> None:
    rates = RateController()
    rates.note(BUCKET, A, 1, 100.0, 0.0)
    seen = [rates.get_rates(float(now)).get(BUCKET) for now in range(120)]
    limited = [rate for rate in seen if rate is not None]
    assert limited == sorted(limited)
    assert max(limited) >= 100.0
    assert seen[-1] is None


def test_it_never_falls_below_the_floor() -> None:
    rates = RateController()
    for tick in range(100):
        rates.note(BUCKET, A, 10, 1.0, tick * 4.0)
    assert rates.get_rates(400.0)[BUCKET] >= MIN_RATE


def test_shares_add_up_and_follow_use() -> None:
    rates = RateController()
    rates.note(BUCKET, A, 1, 90.0, 0.0)
    rates.note(BUCKET, B, 0, 10.0, 0.1)
    shares = {worker: rates.get_shares(worker, [A, B], 0.2)[BUCKET] for worker in (A, B)}
    assert abs(sum(shares.values()) - rates.get_rates(0.2)[BUCKET]) < 1e-6
    assert shares[A] > 3 * shares[B] > 0


def test_a_first_trouble_is_measured_by_what_all_used_before() -> None:
    rates = RateController()
    rates.note(BUCKET, A, 0, 300.0, 0.0)
    rates.note(BUCKET, B, 0, 100.0, 0.5)
    rates.note(BUCKET, WorkerId("master"), 1, 2.0, 1.0)
    assert rates.get_rates(1.0)[BUCKET] == pytest.approx(402 * DECREASE)
    shares = {name: rates.get_shares(WorkerId(name), [A, B], 1.0)[BUCKET] for name in (A, B, "master")}
    assert sum(shares.values()) == pytest.approx(402 * DECREASE)
    assert shares["master"] < shares[B] < shares[A]
