"""The stores follow: the journal's steps, carried out at each mount's store.

Owns one task for each mount whose store has something to follow: which steps run, at most AT_ONCE at a time, the pauses after
failures, and the keys that are in use, those of uploads (which workers do) included. What a step has to do is core's
(following.py); how it is asked of a store is following_store.py's.

Resumable after kill -9: each step is removed from the journal in the transaction that records its outcome, and carrying one out a
second time does no harm. What fails stays in the journal and is tried again, less and less often, with its reason to be seen
(`describe_trouble`).

Rule of concurrency: event loop alone; steps are chosen in a thread (it reads a snapshot), so each is held against what runs by
then before it is begun.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.asking import Asker
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import changes, conflicts, following, journal, tables, unpersisted
from alluxio_like.master.core.following import Plan
from alluxio_like.master.core.journal import Op
from alluxio_like.master.following_store import Done, StoreFollower
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.metrics import Metrics
from alluxio_like.types import FileId, Fingerprint, InodeId, MountId, Recall, VersionId, to_str
from alluxio_like.ufs.writing import WritableUfs, get_writable

log = logging.getLogger(__name__)

AT_ONCE = 32
"""Steps, or groups of deletions, under way at one store (a guess)."""
CHOSEN = 1000
"""Steps that are chosen at a time, since looking for them costs some 60 us each; as many deletions go in one request."""
RECORDED = 200
"""Outcomes that are recorded in one transaction. A guess: some 20 ms."""
GROUPED = 16
"""Deletions in one directory that are worth a listing and one request for all of them (a guess)."""
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 30.0
"""Between tries of a step that fails; the same between those of a store that does not answer (guesses)."""
UPLOAD_S = 3600.0
"""An upload that says nothing for so long is taken for given up (a guess: a file of a terabyte at 300 MB/s)."""
HEARD_S = 15.0
"""After a start uploads that the master before had planned may still come, and their workers tell of them after a pause of up to
10 s: what is unexpectedly at a store is not taken for foreign before."""
_OF_THE_STORE = (errors.StoreUnavailable, errors.StoreThrottled, errors.StoreMissing, errors.TimedOut)


@dataclass(slots=True)
class _Trouble:
    text: str
    pause_s: float
    until_s: float


@dataclass(slots=True)
class _Upload:
    version: VersionId
    mount_id: MountId
    key: str
    until_s: float


@dataclass(slots=True)
class _Mount:
    """What is under way at one mount's store. `news` is set when there may be something to begin."""

    mount_id: MountId
    news: asyncio.Event = field(default_factory=asyncio.Event)
    running: dict[int, Plan] = field(default_factory=dict)
    """By the numbers of their steps: plans under way, those that are chosen and wait for their turn included."""
    queue: deque[list[Plan]] = field(default_factory=deque)
    """Of these, the ones that wait: groups of deletions, and others alone."""
    done: list[tuple[Plan, Done]] = field(default_factory=list)
    """And those of which the outcome is to be recorded."""
    recorder: asyncio.Task[None] | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    troubles: dict[int, _Trouble] = field(default_factory=dict)
    trouble: _Trouble | None = None
    """Of the store as a whole."""


class Follower:
    """See the module. `progress` is set, and replaced, whenever a step or an upload has come to its end."""

    def __init__(
        self,
        meta: MetaStore,
        mounts: MountTable,
        lister: Lister,
        asker: Asker,
        coherence: Coherence,
        *,
        clock: Clock,
        metrics: Metrics,
        cluster_id: str,
    ) -> None:
        self._meta = meta
        self._mounts = mounts
        self._lister = lister
        self._asker = asker
        self._coherence = coherence
        self._clock = clock
        self._metrics = metrics
        self._cluster_id = cluster_id
        self._following: dict[MountId, _Mount] = {}
        self._uploads: dict[InodeId, _Upload] = {}
        self._wanted = asyncio.Event()
        self._heard_s = 0.0
        """From when on all that was on its way before the start is known."""
        self.progress = asyncio.Event()

    # -- what others tell --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """The journal may have new steps."""
        self._wanted.set()
        for mount in self._following.values():
            mount.news.set()

    def begin_upload(self, file_id: FileId, mount_id: MountId, key: str) -> None:
        """A worker is going to upload a version: nothing else is done at its key until that is over. Raises Unavailable while a
        step is under way there."""
        if key in self._list_busy(mount_id, but=file_id.inode):
            raise errors.Unavailable("the store is just following an earlier change there", subject=key)
        until_s = self._clock.monotonic() + UPLOAD_S
        self._uploads[file_id.inode] = _Upload(file_id.version, mount_id, key, until_s)

    def is_uploading(self, file_id: FileId, mount_id: MountId, key: str) -> bool:
        """Whether a version is being uploaded to that key, so that nothing else is done there."""
        upload = self._uploads.get(file_id.inode)
        return upload is not None and (upload.version, upload.mount_id, upload.key) == (file_id.version, mount_id, key)

    def check_heard(self, key: str) -> None:
        """Raises Unavailable while what is unexpectedly at a key may be an upload that this master has not heard of yet."""
        if self._clock.monotonic() < self._heard_s:
            raise errors.Unavailable("after a start of the master: whether it is ours is known in some seconds", subject=key)

    def end_upload(self, file_id: FileId) -> None:
        upload = self._uploads.get(file_id.inode)
        if upload is not None and upload.version == file_id.version:
            del self._uploads[file_id.inode]
        self._advance()

    def report_conflict(
        self, inode: InodeId, finder: str, key: str, expected: Fingerprint | None, there: Fingerprint | None
    ) -> None:
        """A version was kept beside a foreign content: what of ours found it, and what was to be and is at its key."""
        with self._meta.read() as txn:
            record = tables.lookup_inode(txn, inode)
            parent = record.parent if record is not None else None
        log.warning(
            "the store has something there that was not written here: both are kept",
            extra={
                "file": to_str(record.name) if record is not None else "",
                "inode": inode,
                "found_by": finder,
                "key": key,
                "expected": str(expected),
                "there": str(there),
            },
        )
        if parent is not None:
            self._list_again(parent)

    def describe_trouble(self, mount_id: MountId) -> str:
        """Why the store does not follow; empty: it does."""
        mount = self._following.get(mount_id)
        if mount is None:
            return ""
        if mount.trouble is not None:
            return mount.trouble.text
        return mount.troubles[min(mount.troubles)].text if mount.troubles else ""

    # -- the tasks ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Have all stores follow, for ever."""
        tasks: dict[MountId, asyncio.Task[None]] = {}
        with self._meta.read() as txn:
            if not (journal.is_empty(txn) and unpersisted.is_empty(txn)):
                self._heard_s = self._clock.monotonic() + HEARD_S
        try:
            while True:
                self._wanted.clear()
                with self._meta.read() as txn:
                    wanted = [one for one in self._mounts.list_ids() if one not in tasks and journal.has_steps(txn, one)]
                for mount_id in wanted:
                    tasks[mount_id] = asyncio.create_task(self._follow(mount_id), name=f"follow {mount_id}")
                    tasks[mount_id].add_done_callback(lambda _, mount_id=mount_id: self._end(tasks, mount_id))  # type: ignore[misc]
                await self._wanted.wait()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _end(self, tasks: dict[MountId, asyncio.Task[None]], mount_id: MountId) -> None:
        task = tasks.pop(mount_id)
        self._following.pop(mount_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a store is followed no more until something changes", exc_info=error, extra={"mount": mount_id})
            return
        # Something may have come since it found the journal empty.
        self._wanted.set()

    async def _follow(self, mount_id: MountId) -> None:
        """Carry out one mount's steps until there are none."""
        mount = self._following[mount_id] = _Mount(mount_id)
        try:
            while True:
                mount.news.clear()
                pause_s = self._get_pause_s(mount)
                self._push_some(mount)
                if pause_s <= 0 and len(mount.tasks) < AT_ONCE and not await self._begin_some(mount):
                    return
                wait_s = self._get_wait_s(mount, pause_s)
                try:
                    async with asyncio.timeout(wait_s):
                        await mount.news.wait()
                except TimeoutError:
                    pass
        finally:
            tasks = [*mount.tasks, *([mount.recorder] if mount.recorder is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _get_pause_s(self, mount: _Mount) -> float:
        return mount.trouble.until_s - self._clock.monotonic() if mount.trouble is not None else 0.0

    def _get_wait_s(self, mount: _Mount, pause_s: float) -> float | None:
        if pause_s > 0:
            return pause_s
        retries = [trouble.until_s for trouble in mount.troubles.values()]
        # Uploads and the like set `news`; what is blocked by one that was given up is looked at again now and then.
        return max(0.01, min([MAX_PAUSE_S, *(until_s - self._clock.monotonic() for until_s in retries)]))

    async def _begin_some(self, mount: _Mount) -> bool:
        """Begin what can be; whether there is anything left to do."""
        try:
            ufs = get_writable(self._mounts.get_ufs(mount.mount_id))
            follower = StoreFollower(ufs, await ufs.get_capabilities(), self._cluster_id)
        except errors.NotFound:
            return False
        except errors.AlluxioLikeError as error:
            self._note_store_trouble(mount, error)
            return True
        if not mount.queue:
            await self._choose(mount, follower)
        while mount.queue and len(mount.tasks) < AT_ONCE:
            group = mount.queue.popleft()
            self._start(mount, self._carry_out(mount, ufs, follower, group), group[0].step.number)
        if mount.running:
            return True
        with self._meta.read() as txn:
            return journal.has_steps(txn, mount.mount_id)

    async def _choose(self, mount: _Mount, follower: StoreFollower) -> None:
        """Fill the queue, and write down what is going to be tried."""
        now_s = self._clock.monotonic()
        mount.troubles = {
            number: trouble for number, trouble in mount.troubles.items() if number in mount.running or self._is_there(number)
        }
        waiting = {number for number, trouble in mount.troubles.items() if trouble.until_s > now_s}
        skipped = waiting | mount.running.keys()

        def choose() -> list[Plan]:
            with self._meta.read() as txn:
                renaming = [mount.mount_id] if follower.renames else []
                return following.list_ready(txn, skipped, renames=renaming, limit=CHOSEN, mount_id=mount.mount_id)

        plans = await asyncio.to_thread(choose)
        busy = set(self._list_busy(mount.mount_id))
        free: dict[int, Plan] = {}
        for plan in plans:
            pushes = plan.is_directory and not plan.nothing and not follower.renames
            if plan.step.number not in mount.running and not pushes and plan.is_free(busy):
                busy.update(plan.keys)
                free[plan.step.number] = plan
        mount.running.update(free)
        try:
            if any(plan.step.op is Op.SETTLE for plan in free.values()):
                begun = await self._meta.write(lambda txn: [following.begin(txn, plan) for plan in free.values()])
                await self._meta.flush()
                free = {plan.step.number: plan for plan in begun if plan is not None}
        except errors.AlluxioLikeError as error:
            self._note_store_trouble(mount, error)
            free = {}
        for number in [plan.step.number for plan in plans if plan.step.number not in free]:
            mount.running.pop(number, None)
        mount.running.update(free)
        mount.queue.extend(_group(list(free.values()), whole_listings=not follower.has_directories))

    def _push_some(self, mount: _Mount) -> None:
        """Let directories move on for which no store is asked, whatever else is under way, or in the way."""
        if not self._mounts.is_flat(mount.mount_id):
            return
        with self._meta.read() as txn:
            plans = following.list_pushes(txn, mount.mount_id, mount.running.keys() | mount.troubles.keys())
        for plan in plans:
            mount.running[plan.step.number] = plan
            self._start(mount, self._carry_out_push(mount, plan), plan.step.number)

    def _start(self, mount: _Mount, work: Coroutine[object, object, None], number: int) -> None:
        task = asyncio.create_task(work, name=f"step {number}")
        mount.tasks.add(task)
        task.add_done_callback(mount.tasks.discard)

    async def _carry_out_push(self, mount: _Mount, plan: Plan) -> None:
        try:
            await self._push_down(plan)
            mount.troubles.pop(plan.step.number, None)
        except errors.AlluxioLikeError as error:
            self._note_trouble(mount, plan, error)
        except Exception as error:  # noqa: BLE001 (a step that ends by a defect would never be tried again)
            self._note_defect(mount, plan, error)
        finally:
            mount.running.pop(plan.step.number, None)
            self._advance()

    def _is_there(self, number: int) -> bool:
        with self._meta.read() as txn:
            return journal.lookup_step(txn, number) is not None

    def _list_busy(self, mount_id: MountId, *, but: InodeId | None = None) -> Iterable[str]:
        """Keys at which something is under way."""
        mount = self._following.get(mount_id)
        if mount is not None:
            for plan in mount.running.values():
                yield from plan.keys
        now_s = self._clock.monotonic()
        for inode, upload in list(self._uploads.items()):
            if upload.until_s < now_s:
                del self._uploads[inode]
            elif upload.mount_id == mount_id and inode != but:
                yield upload.key

    # -- one step, or a group of deletions -----------------------------------------------------------------------------------

    async def _carry_out(self, mount: _Mount, ufs: WritableUfs, follower: StoreFollower, plans: Sequence[Plan]) -> None:
        left = {plan.step.number: plan for plan in plans}
        try:
            await self._asker.wait_turn(ufs)
            with self._meta.read() as txn:
                # Something may have changed since they were chosen: then they are chosen again.
                plans = [plan for plan in plans if following.is_current(txn, plan)]
            if len(plans) > 1:
                outcomes = await follower.delete_group(plans)
            else:
                outcomes = [(plan, await follower.carry_out(plan)) for plan in plans]
            for plan, outcome in outcomes:
                if isinstance(outcome, Exception):
                    self._note_trouble(mount, plan, outcome)
                else:
                    mount.done.append((left.pop(plan.step.number), outcome))
            if mount.done and mount.recorder is None:
                mount.recorder = asyncio.create_task(self._record_all(mount), name=f"record {mount.mount_id}")
        except errors.AlluxioLikeError as error:
            for plan in left.values():
                self._note_trouble(mount, plan, error)
        except Exception as error:  # noqa: BLE001 (a step that ends by a defect would never be tried again)
            for plan in left.values():
                self._note_defect(mount, plan, error)
        finally:
            for number in left:
                mount.running.pop(number, None)
            self._advance()

    async def _record_all(self, mount: _Mount) -> None:
        """Record what has been done, as much as there is at a time."""
        try:
            while mount.done:
                batch = mount.done[:RECORDED]
                try:
                    await self._record(mount, batch)
                except Exception as error:  # noqa: BLE001 (each is tried alone, and says what is wrong with it)
                    if len(batch) == 1:
                        self._note_defect(mount, batch[0][0], error)
                    for one in batch if len(batch) > 1 else ():
                        try:
                            await self._record(mount, [one])
                        except errors.AlluxioLikeError as own:
                            self._note_trouble(mount, one[0], own)
                        except Exception as own:  # noqa: BLE001 (as above)
                            self._note_defect(mount, one[0], own)
                finally:
                    del mount.done[: len(batch)]
                    for plan, _ in batch:
                        mount.running.pop(plan.step.number, None)
                    self._advance()
        finally:
            mount.recorder = None

    async def _record(self, mount: _Mount, done: Sequence[tuple[Plan, Done]]) -> None:
        now_ns = self._clock.now_ns()
        recalls: list[Recall] = []
        postponed: set[int] = set()
        in_the_way: list[tuple[Plan, Done]] = []
        unclear: list[tuple[Plan, errors.Unavailable]] = []

        def apply(txn: WriteTransaction) -> None:
            for plan, outcome in done:
                if outcome.is_taken:
                    is_conflict = following.is_in_the_way(txn, plan)
                    following.give_up(txn, plan)
                    if not is_conflict:
                        continue
                    try:
                        self.check_heard(plan.target)
                    except errors.Unavailable as error:
                        unclear.append((plan, error))
                        continue
                    # What belongs there goes beside what is there.
                    recalls.extend(conflicts.set_aside(txn, plan.step.inode, None, now_ns).recalls)
                    in_the_way.append((plan, outcome))
                    continue
                if outcome.foreign and plan.step.op is Op.REMOVE_DIRECTORY and following.postpone_removal(txn, plan):
                    postponed.add(plan.step.number)
                    continue
                following.finish(txn, plan, now_ns, stored=outcome.stored, copied=outcome.copied)
                if outcome.stored is not None and (record := tables.lookup_inode(txn, plan.step.inode)) is not None:
                    # Readers have another key from now on.
                    recalls.extend(changes.list_recalls(txn, plan.step.inode, record))

        await self._meta.write(apply)
        self._coherence.tell(recalls)
        for plan, outcome in in_the_way:
            self.report_conflict(plan.step.inode, f"step {plan.step.number}", plan.target, plan.expected, outcome.there)
        for plan, outcome in done:
            if outcome.foreign and plan.step.number not in postponed:
                log.warning("the store has something there that was not written here: it stays", extra={"key": plan.source})
                self._list_directory_of(plan)
        self._forget_trouble(mount, [plan for plan, _ in done])
        for plan, error in unclear:
            self._note_trouble(mount, plan, error)

    async def _push_down(self, plan: Plan) -> None:
        """A directory moves in a store that moves none: each child by itself."""
        inode = plan.step.inode
        with self._meta.read() as txn:
            record = tables.lookup_inode(txn, inode)
            known = record is None or tables.get_state(txn, tables.get_table(txn, inode)).complete
        if not known:
            await self._lister.refresh(inode, self._clock.now_ns())
        cursor: bytes | None = b""
        while cursor is not None:
            at = cursor
            cursor = await self._meta.write(lambda txn, at=at: following.push_down(txn, plan, at, self._clock.now_ns()))  # type: ignore[misc]

    def _list_directory_of(self, plan: Plan) -> None:
        with self._meta.read() as txn:
            place = following.lookup_place(txn, plan)
        if place is not None:
            self._list_again(place)

    def _list_again(self, directory: InodeId) -> None:
        try:
            self._lister.begin(directory)
        except errors.AlluxioLikeError as error:
            log.info("a directory was not listed again", extra={"error": str(error)})

    # -- troubles ------------------------------------------------------------------------------------------------------------

    def _note_trouble(self, mount: _Mount, plan: Plan, error: Exception) -> None:
        number = plan.step.number
        if isinstance(error, _OF_THE_STORE):
            if isinstance(error, errors.StoreThrottled):
                self._asker.note_throttle(self._mounts.get_ufs(mount.mount_id).bucket)
            self._note_store_trouble(mount, error)
            return
        text = f"{plan.step.op.replace('_', ' ')} {plan.source}: {error}"
        old = mount.troubles.get(number)
        if old is None:
            log.warning("the store does not follow", extra={"step": number, "key": plan.source, "error": str(error)})
        pause_s = FIRST_PAUSE_S if old is None else min(MAX_PAUSE_S, 2 * old.pause_s)
        mount.troubles[number] = _Trouble(text, pause_s, self._clock.monotonic() + pause_s)

    def _note_defect(self, mount: _Mount, plan: Plan, error: Exception) -> None:
        log.error("a step of the journal failed", exc_info=error, extra={"step": plan.step.number, "key": plan.source})
        self._note_trouble(mount, plan, errors.Internal(f"a defect: see the master's log ({error!r})"))

    def _note_store_trouble(self, mount: _Mount, error: Exception) -> None:
        now_s = self._clock.monotonic()
        old = mount.trouble
        if old is not None and old.until_s > now_s:
            return  # Of several that failed at the same time one counts.
        pause_s = FIRST_PAUSE_S if old is None else min(MAX_PAUSE_S, 2 * old.pause_s)
        mount.trouble = _Trouble(str(error), pause_s, now_s + pause_s)

    def _forget_trouble(self, mount: _Mount, plans: Sequence[Plan]) -> None:
        mount.trouble = None
        for plan in plans:
            mount.troubles.pop(plan.step.number, None)

    def _advance(self) -> None:
        for mount in self._following.values():
            mount.news.set()
        self.progress.set()
        self.progress = asyncio.Event()


def _group(plans: Sequence[Plan], *, whole_listings: bool) -> list[list[Plan]]:
    """What goes together: in a store without directories, deletions in one of them; all else by itself, in its order."""
    groups: list[list[Plan]] = []
    by_prefix: dict[str, list[Plan]] = {}
    for plan in plans:
        if whole_listings and plan.step.op is Op.DELETE and not plan.nothing and not plan.target:
            prefix = plan.source.rpartition("/")[0]
            if prefix not in by_prefix:
                by_prefix[prefix] = []
                groups.append(by_prefix[prefix])
            by_prefix[prefix].append(plan)
        else:
            groups.append([plan])
    found: list[list[Plan]] = []
    for group in groups:
        found += [group] if len(group) >= GROUPED else [[plan] for plan in group]
    return found


async def wait_until(progress: asyncio.Event, left_s: float) -> bool:
    """Wait for the next thing that a store has followed; False: the time is over."""
    if left_s <= 0:
        return False
    try:
        async with asyncio.timeout(left_s):
            await progress.wait()
    except TimeoutError:
        return False
    return True
