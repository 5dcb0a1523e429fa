"""Locks by inode: one task at a time for each, many at once without waiting, and nothing left of them."""

import asyncio

import pytest

from alluxio_like.types import InodeId
from alluxio_like.worker.inode_locks import InodeLocks

A, B, C = InodeId(1), InodeId(2), InodeId(3)


async def test_those_that_somebody_has_or_waits_for_are_not_free() -> None:
    locks = InodeLocks()
    async with locks.hold(A):
        assert locks.is_held(A)
        async with locks.hold_free([A, B, B, C]) as free:
            assert free == {B, C}
            async with locks.hold_free([A, B, C]) as none:
                assert none == set()
        assert not locks.is_held(B)
    async with locks.hold_free([A, B, C]) as free:
        assert free == {A, B, C}
    assert not locks._locks


async def test_who_wants_one_gets_it_after_who_has_many() -> None:
    locks = InodeLocks()
    order: list[str] = []

    async def want(name: str, inodes: list[InodeId]) -> None:
        async with locks.hold_some(inodes) as held:
            assert inodes[0] in held
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    async with locks.hold_free([A, B]):
        # Two that want the same, each beginning with another one: neither waits for a lock while having one.
        wanting = [asyncio.create_task(want("first", [A, B])), asyncio.create_task(want("second", [B, A]))]
        await asyncio.sleep(0.01)
        assert not order
    async with asyncio.timeout(5):
        await asyncio.gather(*wanting)
    assert sorted(order) == ["first", "first", "second", "second"]
    assert not locks._locks


async def test_what_fails_lets_go() -> None:
    locks = InodeLocks()
    with pytest.raises(ZeroDivisionError):
        async with locks.hold_some([A, B, C]):
            raise ZeroDivisionError
    assert not locks._locks
