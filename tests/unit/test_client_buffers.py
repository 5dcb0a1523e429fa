"""Memory that is used again once nobody sees it."""

from alluxio_like.client.buffers import BUFFER_BYTES, Buffers

MIB = 1 << 20


def test_memory_is_used_again_when_the_last_view_of_it_has_gone() -> None:
    buffers = Buffers()
    first = buffers.take(BUFFER_BYTES)
    first[:4] = b"mine"
    piece = first[1:3]
    del first
    second = buffers.take(BUFFER_BYTES)
    second[:4] = b"else"
    assert piece == b"in", "a slice of it is still seen"
    assert buffers.count == 2
    del piece
    third = buffers.take(2 * MIB)
    assert len(third) == 2 * MIB
    assert third[:4] == b"mine", "the first memory again"
    assert buffers.count == 2


def test_what_nobody_sees_goes_back_to_the_system() -> None:
    buffers = Buffers()
    seen = buffers.take(BUFFER_BYTES)
    for _ in range(3):
        buffers.take(BUFFER_BYTES)
    assert buffers.count == 2
    buffers.trim()
    assert buffers.count == 1
    seen[:] = bytes(len(seen))
    del seen
    buffers.trim()
    assert buffers.count == 0


def test_no_more_is_kept_than_one_reader_runs_ahead() -> None:
    buffers = Buffers()
    held = [buffers.take(BUFFER_BYTES) for _ in range(40)]
    for number, view in enumerate(held):
        view[:1] = bytes([number])
    assert [view[0] for view in held] == list(range(40))
    assert buffers.count == 16


def test_other_sizes_are_not_kept() -> None:
    buffers = Buffers()
    assert len(buffers.take(100)) == 100
    assert len(buffers.take(BUFFER_BYTES + 1)) == BUFFER_BYTES + 1
    assert buffers.count == 0
