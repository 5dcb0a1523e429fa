"""Delegated directories: when a new one is given to the client that makes it, and what is looked at before others go on.

Owns the conditions of a delegation (0071), its row of the store, and the taking back before a call that has to do with
delegated directories is answered at all; what a lookup or a listing finds is taken back by the lister. Who holds which, and the
waiting, are master/coherence.py's over master/core/delegations.py. Event loop alone, but for what is given a transaction.
"""

import asyncio
import logging
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import delegations, namespace, paths, quotas, records, tables
from alluxio_like.master.core.changes import Outcome
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.rpc.concerns import Concern, get_concern
from alluxio_like.rpc.context import get_lease
from alluxio_like.rpc.messages_writing import Changed, Delegation, WriteMode
from alluxio_like.types import InodeId, Kind, Recall, to_bytes

log = logging.getLogger(__name__)

FORGET_S = 5.0
"""How often rows of delegations that have ended are removed. A guess: one that is left delays questions after a restart."""


class Delegator:
    """What the service Changes asks; see the module."""

    def __init__(self, meta: MetaStore, mounts: MountTable, coherence: Coherence) -> None:
        self._meta = meta
        self._mounts = mounts
        self._coherence = coherence
        self.delegations = coherence.delegations

    def begin(self, lease: str) -> "Giving | None":
        """For the making of a directory by the client of a lease; None: it has none."""
        return Giving(self, lease) if self._coherence.is_live(lease) else None

    def may_have(self, txn: ReadTransaction, directory: InodeId) -> bool:
        """Whether who has made a directory can make files in it by himself as everybody would."""
        record = tables.get_inode(txn, directory)
        if record.mode & stat.S_ISGID or record.flags & records.XATTRS or record.mount_id == NO_MOUNT or quotas.list_all(txn):
            return False
        policy = self._mounts.find_policy(txn, record.mount_id, namespace.get_key(txn, directory)[1]).policy
        one_copy = policy.mode is WriteMode.CACHE or (policy.mode is WriteMode.BACK and policy.replicas == 1)
        return one_copy and self._describe(txn, directory).name_bytes > 0

    def give(self, lease: str, directory: InodeId, *, is_new: bool) -> Delegation | None:
        """Delegate a directory right after its making was committed, or say it again to who has it."""
        if not (self._coherence.delegate(lease, directory) if is_new else self._coherence.has_delegated(lease, directory)):
            return None
        with self._meta.read() as txn:
            return self._describe(txn, directory)

    def _describe(self, txn: ReadTransaction, directory: InodeId) -> Delegation:
        mount_id, key = namespace.get_key(txn, directory)
        # (See changes.create.)
        room = self._mounts.get_key_limit(mount_id) - len(to_bytes(key)) - 1
        return Delegation(max(0, min(paths.NAME_MAX_BYTES, room)), mount_id, key)

    def check(self, txn: ReadTransaction, parent: InodeId, name: str, lease: str) -> None:
        """Before a directory is removed or replaced. Raises Stale where it has come to be another client's since it was looked
        up: it is to be taken back first."""
        table = tables.get_table(txn, parent)
        found = namespace.find_child(txn, table, to_bytes(name))
        if found is None or found[1].kind is not Kind.DIRECTORY:
            return
        if self.delegations.is_filled_by_another(found[0], lease):
            raise errors.Stale("somebody else is just filling the directory", subject=name)

    def forget(self, outcome: Outcome, changed: Changed) -> Changed:
        """A directory was removed."""
        self.delegations.end(outcome.inode)
        return changed

    def end(self, outcome: Outcome, changed: Changed) -> Changed:
        """From now on what is made in a directory depends on more than who makes it: who has it delegated is told at once."""
        if not self._coherence.has_delegated(get_lease(), outcome.inode):
            return changed
        self._coherence.end_delegation(outcome.inode)
        return replace(changed, recalls=(*changed.recalls, Recall(outcome.inode, all_names=True)))


class Giving:
    """One directory that is made by who would have it."""

    def __init__(self, delegator: Delegator, lease: str) -> None:
        self._delegator = delegator
        self._lease = lease
        self._noted: InodeId | None = None
        self._is_made = False

    async def make(self, making: Awaitable[Changed]) -> Changed:
        """Make it; to be run to its end."""
        try:
            return await making
        finally:
            self.drop()

    def note(self, txn: WriteTransaction, directory: InodeId) -> None:
        """In the transaction that makes it."""
        self.drop()
        self._is_made = True
        if self._delegator.may_have(txn, directory):
            delegations.put_row(txn, directory, self._lease)
            self._noted = directory
            self._delegator.delegations.prepare(directory, self._lease)

    def give(self, outcome: Outcome, changed: Changed) -> Changed:
        """Once that is committed, before anybody else can be told of it."""
        if self._is_made and self._noted is None:
            return changed
        given = self._delegator.give(self._lease, outcome.inode, is_new=self._is_made)
        self.drop()
        return replace(changed, delegation=given)

    def drop(self) -> None:
        """Nothing comes of it, if it was not given."""
        if self._noted is not None:
            self._delegator.delegations.drop(self._noted)
        self._noted, self._is_made = None, False


def make_gate(coherence: Coherence, method: str) -> Callable[[object], AbstractAsyncContextManager[None]] | None:
    """What a call of a method waits in before it is served, and stays in until it was; None: in nothing."""
    concern, list_inodes = get_concern(method)
    if concern is Concern.NONE:
        return None

    @asynccontextmanager
    async def take_back_all(_: object) -> AsyncIterator[None]:
        with coherence.pause_delegating():
            await coherence.take_back(None, get_lease(), own=True)
            yield

    @asynccontextmanager
    async def take_back_some(request: object) -> AsyncIterator[None]:
        inodes = list_inodes(request)
        if inodes is None:
            async with take_back_all(request):
                yield
            return
        lease = get_lease()
        wanted = [inode for inode in inodes if coherence.is_anothers(inode, lease)]
        if wanted:
            await coherence.take_back(wanted, lease)
        yield

    return take_back_all if concern is Concern.ALL else take_back_some


async def forget_ended(meta: MetaStore, coherence: Coherence) -> None:
    """Remove the rows of delegations that are over, for ever."""
    while True:
        await asyncio.sleep(FORGET_S)
        try:
            ended = coherence.delegations.list_ended()
            if ended:
                await meta.write(lambda txn, ended=ended: delegations.delete_rows(txn, ended))  # type: ignore[misc]
                coherence.delegations.forget_ended(ended)
        except errors.AlluxioLikeError as error:
            log.warning("what is over of delegations is forgotten later: %s", error)
        except Exception:
            log.exception("a chore failed")
