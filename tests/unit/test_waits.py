"""Sharing waited time out: nothing is lost, nothing is counted twice; and what workers say of it over the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like.rpc import convert_worker, data_wire
from alluxio_like.rpc.messages import Filled
from alluxio_like.rpc.v1 import worker_pb2
from alluxio_like.waits import NONE, Cause, Seconds, SharedWaits, Stopwatch, Waits, share_out, subtract

TIMES = st.floats(0, 1000)


def make(**parts: float) -> Seconds:
    waits = Waits()
    for name, seconds in parts.items():
        waits.add(Cause[name], seconds)
    return waits.get()


def test_a_stopwatch_tells_what_was_spent_in_between() -> None:
    watch = Stopwatch(Cause.QUEUE, 10.0)
    watch.enter(Cause.STORE, 11.0)
    before = watch.read(12.0)
    watch.enter(Cause.FILL, 14.0)
    assert before == make(QUEUE=1, STORE=1)
    assert subtract(watch.read(14.5), before) == make(STORE=2, FILL=0.5)


@given(TIMES, st.tuples(*[TIMES] * 6), st.sampled_from(Cause))
def test_shares_add_up_to_what_was_waited(waited_s: float, told: Seconds, rest: Cause) -> None:
    shares = share_out(waited_s, told, rest)
    assert sum(shares) == pytest.approx(waited_s)
    assert all(share >= 0 for share in shares)
    assert all(share <= part + 1e-9 for cause, (share, part) in enumerate(zip(shares, told, strict=True)) if cause != rest)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=20))
def test_time_in_which_several_wait_counts_once(spans: list[tuple[float, float]]) -> None:
    waits = SharedWaits()
    events = sorted([(start, 0) for start, _ in spans] + [(start + length, 1) for start, length in spans])
    union, count, since = 0.0, 0, 0.0
    for now, kind in events:
        union += now - since if count else 0.0
        since = now
        if kind == 0:
            waits.begin(now)
            count += 1
        else:
            waits.end(now, NONE, Cause.OTHER)
            count -= 1
    assert sum(waits.get()) == pytest.approx(union)


def test_what_a_worker_says_survives_the_wire() -> None:
    seconds = make(STORE=1.5, PEER=0.25, FILL=0.125, QUEUE=2)
    assert convert_worker.to_filled(convert_worker.fill_reply(Filled(waited=seconds))).waited == seconds
    assert convert_worker.decode_read_reply(convert_worker.encode_read_reply(seconds)) == seconds
    assert convert_worker.to_filled(worker_pb2.FillReply()).waited == NONE, "an older worker says nothing"
    assert bytes(worker_pb2.ReadReply.FromString(convert_worker.encode_read_reply(seconds)).data) == b"", "for an older client"


def test_nonsense_from_the_wire_is_nothing() -> None:
    assert convert_worker.to_waited(worker_pb2.Waited(store_s=-1, queue_s=float("nan"))) == NONE


def test_what_another_worker_waited_for_is_shared_out() -> None:
    watch = Stopwatch(Cause.PEER, 0.0)
    watch.share(make(STORE=3), 4.0)
    assert watch.read(4.5) == make(STORE=3, PEER=1.5)


def test_a_wait_on_a_data_socket_survives_the_wire() -> None:
    seconds = make(STORE=1.5, QUEUE=0.5)
    packed = data_wire.pack_waited(7, seconds)
    reply = data_wire.parse_reply(packed[: data_wire.REPLY_BYTES])
    assert (reply.kind, reply.request_id, reply.last) == (data_wire.Kind.WAITED, 7, False)
    assert data_wire.parse_waited(packed[data_wire.REPLY_BYTES :]) == seconds
