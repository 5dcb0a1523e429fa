"""Uploads in parts: a large version goes to its store in several requests, and over restarts of the worker.

Owns how far an upload is, as it stands in the cache's index, and that none of its parts is left at the store. When one is made,
and what follows, is uploading.py's. Rule of concurrency: one event loop; one upload of an inode at a time.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from alluxio_like import errors
from alluxio_like.cache.drafts import Drafts
from alluxio_like.cache.writing_records import Destination, Stamp, UploadRecord
from alluxio_like.rpc.messages_writing import UploadPlan
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WritableUfs, WriteCapabilities, WriteOptions
from alluxio_like.worker.disk import DiskQueue

_PARTS_AT_ONCE = 4
_REPLAN_S = 2.0
"""After so long the master is asked again before anything becomes visible: the file may have been renamed, written anew, or
removed."""
_REPLAN_SENDING_S = 10.0
"""And so often while parts are sent: what was removed need not be sent to its end (a guess)."""
_TRIES = 5
"""Requests to a store that failed are repeated so often within one upload; the upload itself is repeated for ever."""
_FIRST_PAUSE_S = 0.1


class Superseded(Exception):
    """The draft that held the version has been changed: the next version will be uploaded instead."""


class Replan(Exception):
    """What the master said before does not hold any more."""


@dataclass(slots=True)
class Opened:
    """The bytes of a version; `stamp` is the file's when it was opened."""

    record: UploadRecord
    fd: int
    stamp: Stamp


class Steps(Protocol):
    """What an upload needs of its owner between its requests."""

    def turn(self, op: str, size: int = 0) -> AbstractAsyncContextManager[None]:
        """Within this, one request, which takes so many bytes to the store."""

    async def check(self) -> None:
        """Raises Superseded: the bytes are others by now."""

    async def plan(self) -> UploadPlan | None:
        """Where it goes by now; None: nowhere."""


class PartSender:
    """One per worker. `now_ns` is the time since the epoch, `part_bytes` that of parts where the store wants none longer."""

    def __init__(
        self, drafts: Drafts, disk: DiskQueue, monotonic: Callable[[], float], now_ns: Callable[[], int], part_bytes: int
    ) -> None:
        self._drafts = drafts
        self._disk = disk
        self._monotonic = monotonic
        self._now_ns = now_ns
        self._part_bytes = part_bytes

    async def send(
        self, ufs: WritableUfs, capabilities: WriteCapabilities, opened: Opened, plan: UploadPlan, steps: Steps
    ) -> Fingerprint:
        """Make a version the content of the plan's key; its fingerprint there.

        Raises Superseded and Replan, Conflict (what is there is not what was expected), Store*.
        """
        asked = self._monotonic()
        try:
            record, parts = await self._begin_parts(ufs, capabilities, opened.record, plan)
        except errors.NotFound:
            return await self._find_or_restart(ufs, opened.record)
        opened.record = record
        to = record.destination
        assert to is not None
        upload, options = Upload(to.key, record.upload_id), WriteOptions(record.token, to.metadata)
        missing = [n for n in range(1, -(-record.ref.size // record.part_bytes) + 1) if n not in parts]
        at_once = 1 if capabilities.ordered_parts else _PARTS_AT_ONCE
        try:
            async for part in _run_bounded([self._send_part(ufs, upload, record, opened, n, steps) for n in missing], at_once):
                parts[part.number] = part
                if self._monotonic() - asked > _REPLAN_SENDING_S:
                    await _check_plan(to, steps)
                    asked = self._monotonic()
            await steps.check()
            if self._monotonic() - asked > _REPLAN_S:
                await _check_plan(to, steps)
            async with steps.turn("COMPLETE"):
                ordered = [parts[number] for number in sorted(parts)]
                entry = await ufs.finish_upload(upload, ordered, options, expected=Expected(to.expected))
        except errors.NotFound:
            # The store knows nothing of the upload any more: it was finished, and the answer lost, or somebody aborted it.
            return await self._find_or_restart(ufs, record)
        except errors.Conflict:
            await self._abort(ufs, record)
            raise
        except Superseded:
            await self._abort(ufs, record)
            raise
        return get_fingerprint(entry)

    async def _begin_parts(
        self, ufs: WritableUfs, capabilities: WriteCapabilities, record: UploadRecord, plan: UploadPlan
    ) -> tuple[UploadRecord, dict[int, Part]]:
        """An upload to this destination: the one that was begun before, with the parts that have arrived, else a new one.

        Raises NotFound: the store does not know the one before any more.
        """
        to = Destination(plan.mount_id, plan.key, plan.expected, plan.metadata)
        if record.upload_id and record.destination == to:
            arrived = await ufs.list_parts(Upload(to.key, record.upload_id))
            return record, {part.number: part for part in arrived if _is_whole(part, record)}
        if record.upload_id and record.destination is not None:
            await self._abort(ufs, record)
        elif record.destination is not None:
            await self.abort_unknown(ufs, record)
        least = max(capabilities.min_part_bytes, -(-record.ref.size // capabilities.max_parts))
        part_bytes = min(capabilities.max_part_bytes, max(self._part_bytes, -(-least >> 20) << 20))
        # Written down before and after: an upload that was begun and not written down is found by its key.
        record = replace(record, destination=to, upload_id="", part_bytes=part_bytes, asked_ns=self._now_ns())
        await self._disk.submit(lambda: self._drafts.put_upload(record))
        upload = await ufs.begin_upload(plan.key, WriteOptions(record.token, plan.metadata))
        begun = replace(record, upload_id=upload.upload_id)
        await self._disk.submit(lambda: self._drafts.put_upload(begun))
        return begun, {}

    async def _send_part(
        self, ufs: WritableUfs, upload: Upload, record: UploadRecord, opened: Opened, number: int, steps: Steps
    ) -> Part:
        offset = (number - 1) * record.part_bytes
        source = Source(opened.fd, offset, min(record.part_bytes, record.ref.size - offset))
        for attempt in range(_TRIES):
            try:
                async with steps.turn("PART", source.length):
                    return await ufs.upload_part(upload, number, source, offset)
            except errors.StoreError as error:
                if attempt == _TRIES - 1 or not errors.get_disposition(error).retryable:
                    raise
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
        raise errors.Internal("no try was made", subject=upload.key)

    async def _find_or_restart(self, ufs: WritableUfs, record: UploadRecord) -> Fingerprint:
        to = record.destination
        assert to is not None
        entry = await ufs.lookup_written(to.key, record.token)
        if entry is not None:
            return get_fingerprint(entry)
        lost = replace(record, upload_id="", destination=None)
        await self._disk.submit(lambda: self._drafts.put_upload(lost))
        raise Replan

    async def _abort(self, ufs: WritableUfs, record: UploadRecord) -> None:
        """Drop what was sent for another destination, or for nothing."""
        if record.destination is not None and record.upload_id:
            await ufs.abort_upload(Upload(record.destination.key, record.upload_id))
        dropped = replace(record, upload_id="", destination=None)
        await self._disk.submit(lambda: self._drafts.put_upload(dropped))

    async def abort_unknown(self, ufs: WritableUfs, record: UploadRecord) -> None:
        """Drop an upload that was begun by a worker that was killed before it could write down which."""
        to = record.destination
        assert to is not None
        known = {(one.destination.key, one.upload_id) for one in self._drafts.list_uploads() if one.destination is not None}
        for upload in await ufs.list_uploads(to.key):
            is_ours = upload.begun_ns == 0 or upload.begun_ns >= record.asked_ns - 60_000_000_000
            if upload.key == to.key and is_ours and (upload.key, upload.upload_id) not in known:
                await ufs.abort_upload(upload)


async def _check_plan(to: Destination, steps: Steps) -> None:
    """Raises Replan: it goes somewhere else by now, or nowhere."""
    again = await steps.plan()
    if again is None or (again.mount_id, again.key, again.expected) != (to.mount_id, to.key, to.expected):
        raise Replan


def get_fingerprint(entry: StoreEntry) -> Fingerprint:
    """What a write made. Raises StoreProtocol."""
    if entry.fingerprint is None:
        raise errors.StoreProtocol("the store does not say what it has stored", subject=entry.name)
    return entry.fingerprint


def _is_whole(part: Part, record: UploadRecord) -> bool:
    """Whether a part that has arrived is as long as it should be."""
    return part.length == min(record.part_bytes, record.ref.size - (part.number - 1) * record.part_bytes)


async def _run_bounded(calls: Sequence[Coroutine[Any, Any, Part]], limit: int) -> AsyncIterator[Part]:
    """The results of calls, in the order of their ends, `limit` of them under way at a time and begun in order. The first failure
    ends it, and what is under way."""
    waiting = list(reversed(calls))
    running: set[asyncio.Task[Part]] = set()
    done: set[asyncio.Task[Part]] = set()
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                running.add(asyncio.create_task(waiting.pop()))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            while done:
                yield done.pop().result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *done, return_exceptions=True)
        for call in waiting:
            call.close()
