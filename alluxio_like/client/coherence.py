"""The client's lease: kept alive by one stream to the master, on which the master takes back what is not so any more.

Owns the stream, the lease's time and the order of things: a recall is applied before it is confirmed; and where the master
knows nothing of our lease (it was started anew, or we were cut off for longer than the lease), everything is forgotten before
anything is covered again. What is remembered is metadata.py's.

A client that takes the place of others that are no more has the master end their leases, which would run out unused otherwise.
It says so only once its listener knows that all is to be asked for again, whoever told it, and once locks are this client's.

The lease counts from when the message was sent that renewed it, on a clock that goes on while the machine sleeps; so it runs
out here before it does at the master. Rule of concurrency: one event loop; the tasks here are the only ones that change the
state.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.channel import RpcChannel
from alluxio_like.rpc.coherence import CoherenceStub
from alluxio_like.rpc.messages import WatchMessage, WatchReply
from alluxio_like.types import EVERYWHERE, Recall

_log = logging.getLogger(__name__)

RENEWALS = 4
"""In one lease time: three of them may be lost."""
_FIRST_LEASE_S = 1.0
"""How long a lease is taken to be before the master has said so."""
MARGIN = 0.02
"""Of the lease, for clocks that run at other speeds."""
SILENCE_S = 6.0
"""A stream on which no renewal was answered for so long is broken. A guess."""
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0
_BYE_S = 0.5

Listener = Callable[[Sequence[Recall]], Awaitable[None] | None]


def _read_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseKeeper:
    """One client's lease. `forget` is called with what is taken back, and does not wait.

    `strict`: when the lease runs out everything is forgotten, by the listener too.
    """

    def __init__(
        self,
        channel: RpcChannel,
        forget: Callable[[Sequence[Recall]], None],
        note_epoch: Callable[[int], None],
        metrics: Metrics | None,
        *,
        strict: bool = False,
        now: Callable[[], float] = _read_clock,
    ) -> None:
        self._channel = channel
        self._forget = forget
        self._note_epoch = note_epoch
        self._metrics = metrics
        self._strict = strict
        self._now = now
        self._stub = CoherenceStub(channel)
        self.lease_id = uuid.uuid4().hex
        """What the master knows this lease by, for as long as we live."""
        self._run = 0
        self._sessions = 0
        """How often the lease began anew; sequence numbers begin with it."""
        self._expires_s = float("-inf")
        self._was_live = False
        self._lease_s = _FIRST_LEASE_S
        self._confirmed = 0
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._outgoing: asyncio.Queue[WatchMessage | None] | None = None
        self._number = 0
        self._sent_s: dict[int, float] = {}
        self._telling: asyncio.Queue[tuple[int, asyncio.Future[None] | None]] = asyncio.Queue()
        self._told: set[asyncio.Future[None]] = set()
        self._succeeds: tuple[str, ...] = ()
        self._succeeded_until_s: float | None = None
        """Until when the leases of `_succeeds` may be ended, and are not known to be; None: they may not yet."""
        self.on_begun: Callable[[], asyncio.Future[None] | None] = lambda: None
        """Called when the lease has begun, or begun anew; what follows from that goes on in what it returns."""

    def is_live(self) -> bool:
        """Whether the lease covers what is remembered."""
        return self._now() < self._expires_s

    def start(self, listener: Listener | None, succeeds: Sequence[str] = ()) -> None:
        """Begin; once, on the event loop. `succeeds`: leases of clients that are no more and in whose place this one is; to be
        given only where the listener, told that everything is taken back, takes back what those were told, too."""
        if self._tasks:
            return
        self._listener = listener
        self._succeeds = tuple(succeeds)
        self._tasks = [
            asyncio.create_task(self._keep(), name="lease"),
            asyncio.create_task(self._renew(), name="renew lease"),
            asyncio.create_task(self._confirm(), name="confirm recalls"),
        ]

    @property
    def session(self) -> str:
        """What a change of ours is told apart by, at the master; empty as long as there is no lease."""
        return self._channel.lease

    def forget_here(self, recalls: Sequence[Recall]) -> None:
        """As if the master had taken it back."""
        self._forget(recalls)
        telling = None if self._listener is None else self._listener(recalls)
        if telling is not None:
            self._keep_telling(telling)

    def _keep_telling(self, telling: Awaitable[None]) -> "asyncio.Future[None]":
        """It goes on by itself, also when nobody waits for it any more."""
        told = asyncio.ensure_future(telling)
        self._told.add(told)
        told.add_done_callback(self._told.discard)
        return told

    async def close(self) -> None:
        """Give the lease back, if that can be said at once. May be called twice."""
        tasks, self._tasks = self._tasks, []
        if self._outgoing is not None and self.is_live():
            self._send(bye=True)
            # The master ends the stream then.
            await asyncio.wait(tasks[:1], timeout=_BYE_S)
        self._expires_s = float("-inf")
        self._channel.lease = ""
        told = list(self._told)
        for task in (*tasks, *told):
            task.cancel()
        await asyncio.gather(*tasks, *told, return_exceptions=True)

    # The stream

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._tasks:
            begun_s = time.monotonic()
            try:
                await self._serve_stream()
            except (AlluxioLikeError, TimeoutError) as error:
                _log.debug("the lease's stream ended: %s", error)
            finally:
                self._outgoing = None
            lasted = time.monotonic() - begun_s > SILENCE_S
            pause_s = _FIRST_PAUSE_S if lasted else min(2 * pause_s, _MAX_PAUSE_S)
            if self._tasks:
                await asyncio.sleep(pause_s * (0.5 + random.random() / 2))

    async def _serve_stream(self) -> None:
        outgoing: asyncio.Queue[WatchMessage | None] = asyncio.Queue()
        self._outgoing = outgoing
        self._number = 0
        self._sent_s.clear()
        self._send(hello=True)

        async def messages() -> AsyncIterator[WatchMessage]:
            while (message := await outgoing.get()) is not None:
                yield message

        try:
            async with aclosing(self._stub.watch(messages())) as replies:
                await self._listen(replies)
        finally:
            # Else gRPC leaves whoever takes messages from there waiting for ever.
            outgoing.put_nowait(None)

    async def _listen(self, replies: AsyncGenerator[WatchReply]) -> None:
        first = True
        while True:
            async with asyncio.timeout(SILENCE_S):
                reply = await anext(replies, None)
            if reply is None:
                return
            self._take(reply, first=first)
            first = False

    def _take(self, reply: WatchReply, *, first: bool) -> None:
        begins = first and (reply.fresh or reply.run != self._run)
        told = self._begin(reply.run) if begins else None
        sent_s = self._sent_s.get(reply.number)
        if sent_s is not None:
            self._expires_s = max(self._expires_s, sent_s + reply.lease_s * (1 - MARGIN))
            if first:
                self._lease_s = reply.lease_s
            self._sent_s = {number: at for number, at in self._sent_s.items() if number > reply.number}
            self._channel.lease = self.lease_id
            self._note_state()
        if reply.recalls:
            self._apply(reply.recalls, reply.sequence)
        self._note_epoch(reply.cluster_epoch)
        if begins:
            attached = self.on_begun()
            if self._succeeds and self._succeeded_until_s is None:
                self._tasks.append(asyncio.create_task(self._succeed(told, attached), name="succeed leases"))

    async def _succeed(self, *waits: "asyncio.Future[None] | None") -> None:
        """Nobody relies on what the clients before were told, once these are done: have their leases ended."""
        session, left = self._sessions, [one for one in waits if one is not None]
        if left:
            await asyncio.wait(left)
        if session != self._sessions or any(one.cancelled() or one.exception() is not None for one in left):
            return
        # Said with each message, for as long as those leases could last by themselves: one may be lost, or come too early.
        self._succeeded_until_s = self._now() + self._lease_s
        if self._outgoing is not None:
            self._send()

    def _list_succeeded(self) -> tuple[str, ...]:
        until_s = self._succeeded_until_s
        return () if until_s is None or self._now() >= until_s else self._succeeds

    def _begin(self, run: int) -> "asyncio.Future[None] | None":
        """The master knows nothing of what we were told before; done when the listener has taken it all back."""
        if self._run:
            _log.info("the lease begins anew: nothing of before is relied on")
        self._expires_s = float("-inf")
        self._run = run
        self._sessions += 1
        self._confirmed = 0
        while not self._telling.empty():
            self._telling.get_nowait()
        return self._apply((Recall(EVERYWHERE, all_names=True),), 0)

    def _apply(self, recalls: Sequence[Recall], sequence: int) -> "asyncio.Future[None] | None":
        self._forget(recalls)
        if self._metrics is not None:
            self._metrics.names_recalled.inc(len(recalls))
        telling = None if self._listener is None else self._listener(recalls)
        told = None if telling is None else self._keep_telling(telling)
        self._telling.put_nowait((sequence, told))
        return told

    async def _confirm(self) -> None:
        """Say of each recall, in their order, that it is known here, once it is."""
        while True:
            sequence, told = await self._telling.get()
            session = self._sessions
            if told is not None:
                await asyncio.wait([told])
            if session == self._sessions and sequence > self._confirmed:
                self._confirmed = sequence
                if self._outgoing is not None and self._telling.empty():
                    self._send()

    async def _renew(self) -> None:
        while True:
            pause_s = self._lease_s / RENEWALS
            left_s = self._expires_s - self._now()
            await asyncio.sleep(left_s + 0.01 if 0 < left_s < pause_s else pause_s)
            self._note_state()
            if self._outgoing is not None:
                self._send()

    def _send(self, *, hello: bool = False, bye: bool = False) -> None:
        outgoing = self._outgoing
        assert outgoing is not None
        self._number += 1
        # Before it is on its way: the lease ends a little too early rather than too late.
        self._sent_s[self._number] = self._now()
        succeeded = self._list_succeeded()
        if hello:
            outgoing.put_nowait(WatchMessage(self._number, self._confirmed, self.lease_id, self._run, succeeded=succeeded))
        else:
            outgoing.put_nowait(WatchMessage(self._number, self._confirmed, bye=bye, succeeded=succeeded))

    def _note_state(self) -> None:
        live = self.is_live()
        if live == self._was_live:
            return
        self._was_live = live
        if self._metrics is not None:
            self._metrics.lease_held.set(live)
            if not live:
                self._metrics.lease_losses.inc()
        if not live:
            _log.warning("the master's lease has run out: what is remembered may be old")
            if self._strict:
                self._apply((Recall(EVERYWHERE, all_names=True),), 0)
