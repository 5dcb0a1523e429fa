"""The pool for blocking calls: bounded, cancellable, never waited for without a bound; and what it lends to threads."""

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from botocore.credentials import Credentials, RefreshableCredentials

from alluxio_like import errors
from alluxio_like.ufs.s3_credentials import CredentialProvider
from alluxio_like.ufs.threads import BlockingPool, Lent


async def test_values_and_errors_come_back() -> None:
    pool = BlockingPool("test", 2)

    def fail() -> None:
        raise KeyError("mine")

    def time_out() -> None:
        raise TimeoutError("the call's own")

    assert await pool.run(lambda: 5, timeout_s=60) == 5
    with pytest.raises(KeyError):
        await pool.run(fail, timeout_s=60)
    with pytest.raises(TimeoutError, match="own"):
        await pool.run(time_out, timeout_s=60)
    pool.close()
    with pytest.raises(errors.StoreUnavailable):
        await pool.run(lambda: 5, timeout_s=60)


async def test_a_hanging_call_is_not_waited_for() -> None:
    pool = BlockingPool("test", 1)
    release = threading.Event()
    began: list[int] = []
    start_s = time.monotonic()
    with pytest.raises(errors.StoreUnavailable):
        await pool.run(release.wait, timeout_s=0.1)
    with pytest.raises(errors.StoreUnavailable):  # in line behind it, and never begun
        await pool.run(lambda: began.append(1), timeout_s=0.1)
    assert time.monotonic() - start_s < 20
    release.set()
    assert await pool.run(lambda: list(began), timeout_s=60) == []
    pool.close()


async def test_no_more_threads_than_allowed() -> None:
    pool = BlockingPool("test", 3)
    lock = threading.Lock()
    running = [0, 0]

    def call() -> None:
        with lock:
            running[0] += 1
            running[1] = max(running)
        time.sleep(0.005)
        with lock:
            running[0] -= 1

    await asyncio.gather(*[pool.run(call, timeout_s=60) for _ in range(30)])
    assert 1 <= running[1] <= 3
    pool.close()


async def test_what_is_lent_is_closed_once_and_never_under_its_user() -> None:
    closed: list[int] = []
    lent = Lent[int](closed.append)
    pool = BlockingPool("test", 1)
    using, release = threading.Event(), threading.Event()

    def use() -> None:
        with lent.use(lambda: 7):
            using.set()
            release.wait(60)
            assert not closed

    task = asyncio.create_task(pool.run(use, timeout_s=60))
    while not using.is_set():
        await asyncio.sleep(0.001)
    lent.abandon()
    assert not closed
    release.set()
    await task
    assert closed == [7]
    lent.abandon()
    with pytest.raises(errors.Cancelled), lent.use(lambda: 8):
        pass
    assert closed == [7]
    pool.close()


async def test_credentials_tell_their_true_expiry() -> None:
    pool = BlockingPool("test", 1)
    fixed = await CredentialProvider(Credentials("key", "secret", "token"), pool, 5)()
    assert fixed == {"access_key_id": "key", "secret_access_key": "secret", "token": "token", "expires_at": None}
    expiries = [datetime.now(UTC) + timedelta(minutes=5), datetime.now(UTC) + timedelta(hours=2)]

    def refresh() -> dict[str, str]:
        expiry = expiries.pop(0)
        return {"access_key": f"key{len(expiries)}", "secret_key": "s", "token": "t", "expiry_time": expiry.isoformat()}

    first, second = expiries
    provider = CredentialProvider(RefreshableCredentials.create_from_metadata(refresh(), refresh, "test"), pool, 5)
    # Five minutes are too short to be handed out: botocore renews, and what comes out are the new keys with the new expiry.
    renewed = await provider()
    assert (renewed["access_key_id"], renewed["expires_at"]) == ("key0", second)
    assert first < second
    pool.close()
