"""Asking stores for the owner, mode and time that are kept with files' contents, where a mount wants them (-o attrs=object).

Owns for which files a store is asked (those that are new, or another content than the known one: what is known stays with its
inode), how many at once, and what it means when it does not say. Event loop alone.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from functools import partial

from alluxio_like import errors
from alluxio_like.master.asking import Asker
from alluxio_like.master.core import namespace
from alluxio_like.master.core.model import ListingPlan
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.types import Kind, StoredAttributes
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.object_attributes import read_attributes
from alluxio_like.ufs.writing import WritableUfs, get_writable

log = logging.getLogger(__name__)

PAGE_ENTRIES = 200
"""Of a listing whose files are asked for one by one: a name is answered when its page is through (a guess)."""
ASKED_AT_ONCE = 16
"""Files of one page (a guess): as many as listings of one mount, in whose turns they come."""


class AttributeReader:
    """See the module."""

    def __init__(self, meta: MetaStore, mounts: MountTable, asker: Asker) -> None:
        self._meta = meta
        self._mounts = mounts
        self._asker = asker

    async def complete(self, plan: ListingPlan, after: str | None, page: ListPage) -> ListPage:
        """A page of a listing (that begins above the sort name `after`) with the attributes of those of its files that are not
        known yet; as it is where the mount does not want them. Raises the store's error where asking again may help: then the
        listing fails, and shows nobody a private file as everybody's meanwhile."""
        if not self._mounts.wants_stored_attributes(plan.mount_id):
            return page
        with self._meta.read() as txn:
            new = namespace.list_new_contents(txn, plan, after, page.entries, is_last=page.token is None)
        entries = iter([entry for entry in page.entries if _is_among(entry, new)])
        ufs = get_writable(self._mounts.get_ufs(plan.mount_id))
        found: dict[str, StoredAttributes] = {}
        asking = [self._ask_each(plan, ufs, entries, found) for _ in range(min(ASKED_AT_ONCE, len(new)))]
        for outcome in await asyncio.gather(*asking, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        return replace(page, entries=tuple([_complete(entry, found) for entry in page.entries]))

    async def complete_one(self, plan: ListingPlan, entry: StoreEntry) -> StoreEntry:
        """One file of a directory, as `complete` does a page of a listing."""
        if not self._mounts.wants_stored_attributes(plan.mount_id):
            return entry
        found: dict[str, StoredAttributes] = {}
        await self._ask_each(plan, get_writable(self._mounts.get_ufs(plan.mount_id)), iter([entry]), found)
        return _complete(entry, found)

    async def _ask_each(
        self, plan: ListingPlan, ufs: WritableUfs, entries: Iterator[StoreEntry], found: dict[str, StoredAttributes]
    ) -> None:
        """Ask for one file after the other of an iterator that is shared with others; one that fails leaves them nothing."""
        for entry in entries:
            key = plan.prefix + entry.name
            try:
                metadata = await self._asker.ask(plan.mount_id, ufs, partial(ufs.read_metadata, key), op="HEAD")
            except errors.AlluxioLikeError as error:
                if errors.get_disposition(error).retryable:
                    deque(entries, maxlen=0)
                    raise
                if not isinstance(error, errors.NotFound):
                    log.warning("a store does not say what a file's attributes are", extra={"key": key, "error": str(error)})
                continue
            found[entry.name] = read_attributes(metadata)


def _is_among(entry: StoreEntry, names: Container[str]) -> bool:
    """Whether it is a file of one of these names, and not a directory beside it."""
    return entry.kind is not Kind.DIRECTORY and entry.name in names


def _complete(entry: StoreEntry, found: Mapping[str, StoredAttributes]) -> StoreEntry:
    return replace(entry, attributes=found[entry.name]) if _is_among(entry, found) else entry
