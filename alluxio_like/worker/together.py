"""Questions that are asked together: what comes while one call is under way is asked, all of it, by the next.

Owns the gathering alone. One question waits for nothing, so nothing is slower for it; the busier it gets, the more share the
price of a call. Rule of concurrency: one event loop; one call at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """`call` answers some questions (`most` at a time), in their order; an answer that is an exception is raised where it was
    asked for, and what the call itself raises is raised to all of them."""

    def __init__(self, name: str, call: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]], most: int) -> None:
        self._name = name
        self._call = call
        self._most = most
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer to one question. Whoever is cancelled may have asked all the same."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=self._name)
        return await answer

    async def close(self) -> None:
        """End what is under way; whoever still waits is cancelled."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        asked: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._ask_all([one for one in asked if not one[1].done()])
        finally:
            self._running = None
            for _, answer in [*asked, *self._waiting]:
                answer.cancel()
            self._waiting = []

    async def _ask_all(self, asked: Sequence[tuple[Q, "asyncio.Future[A]"]]) -> None:
        if not asked:
            return
        try:
            answers = list(zip(asked, await self._call([question for question, _ in asked]), strict=True))
        except Exception as error:  # noqa: BLE001 (handed to whoever asked)
            answers = [(one, error) for one in asked]
        for (_, future), answer in answers:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
