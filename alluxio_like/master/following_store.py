"""What a step of the journal asks of a store.

Owns the way from a plan (core/following.py) to requests of a store that can be written, and what their answers mean for it: done,
done before by a run that was killed, or something foreign is in the way. Nothing is repeated here. Used on one event loop.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

from alluxio_like import errors
from alluxio_like.master.core.following import Plan
from alluxio_like.master.core.journal import Op
from alluxio_like.types import Fingerprint, InodeId, to_bytes
from alluxio_like.ufs.api import FlatUfs
from alluxio_like.ufs.writing import Expected, Source, WritableUfs, WriteCapabilities, WriteOptions, make_directories

_MOST_PAGES = 4
"""Of a listing that tells what many keys hold: one that is longer has too much else in it (a guess)."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a plan has come to. `stored`: what the store has at its target now, `copied`: and at its source as well. `is_taken`:
    its target holds something foreign (`there`, where that was looked at), nothing was done. `foreign`: something foreign is at
    its source, and stays there."""

    stored: Fingerprint | None = None
    copied: bool = False
    is_taken: bool = False
    there: Fingerprint | None = None
    foreign: bool = False


class StoreFollower:
    """Carries out plans at one store."""

    def __init__(self, ufs: WritableUfs, capabilities: WriteCapabilities, cluster_id: str) -> None:
        self._ufs = ufs
        self._capabilities = capabilities
        self._cluster_id = cluster_id

    @property
    def renames(self) -> bool:
        return self._capabilities.renames

    @property
    def has_directories(self) -> bool:
        return self._capabilities.has_directories

    async def carry_out(self, plan: Plan) -> Done:
        """Do what a plan wants; a directory's move only where the store renames. Raises the store's errors."""
        if plan.nothing:
            return Done()
        if plan.step.op is Op.DELETE:
            return await self._delete(plan)
        if plan.step.op is Op.MAKE_DIRECTORY:
            return await self._make_directory(plan.source.rstrip("/"))
        if plan.step.op is Op.REMOVE_DIRECTORY:
            try:
                await self._ufs.remove_directory(plan.source.rstrip("/"))
            except (errors.DirectoryNotEmpty, errors.NotADirectory):
                return Done(foreign=True)
            return Done()
        if self.renames:
            return await (self._rename_directory(plan) if plan.is_directory else self._rename_file(plan))
        return await self._copy(plan)

    async def delete_group(self, plans: Sequence[Plan]) -> list[tuple[Plan, Done | Exception]]:
        """Deletions in one directory: what is there is told by a listing, and removed in as few requests as the store allows."""
        there = await self._list_keys([plan.source for plan in plans])
        if there is None:
            found: list[tuple[Plan, Done | Exception]] = []
            for plan in plans:
                try:
                    found.append((plan, await self._delete(plan)))
                except errors.AlluxioLikeError as error:
                    found.append((plan, error))
            return found
        foreign = {p.source for p in plans if p.source in there and there[p.source] != p.expected}
        wanted = [p.source for p in plans if p.source in there and p.source not in foreign]
        failed = await self._ufs.delete_many(wanted) if wanted else {}
        return [(plan, failed.get(plan.source) or Done(foreign=plan.source in foreign)) for plan in plans]

    async def put_empty(self, key: str, inode: InodeId, expected: Fingerprint | None) -> Fingerprint | None:
        """Make an empty file; None: something else is there."""
        options = WriteOptions(self._make_token("empty", inode, key))
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            entry = await self._ufs.put(key, Source(null, 0, 0), options, expected=Expected(expected))
        except errors.Conflict:
            return await self.lookup_empty(key, inode)
        finally:
            os.close(null)
        return entry.fingerprint

    async def lookup_empty(self, key: str, inode: InodeId) -> Fingerprint | None:
        """What is at a key, if it is what `put_empty` put there."""
        written = await self._ufs.lookup_written(key, self._make_token("empty", inode, key))
        return written.fingerprint if written is not None else None

    # -- one kind of plan each -----------------------------------------------------------------------------------------------

    async def _delete(self, plan: Plan) -> Done:
        if plan.target:
            stored = await self._find_arrived(plan)
            done = await self._delete(plan._replace(target=""))
            return Done(stored, foreign=done.foreign)
        if plan.expected is None:
            return Done()
        try:
            await self._ufs.delete(plan.source, expected=Expected(plan.expected))
        except errors.Conflict:
            # Removed before, by a run that did not come to record it, or by somebody else: then nothing is left to do.
            return Done(foreign=await self._lookup(plan.source) is not None)
        except (errors.IsADirectory, errors.NotADirectory):
            return Done(foreign=True)
        except errors.NotFound:
            return Done()
        return Done()

    async def _find_arrived(self, plan: Plan) -> Fingerprint | None:
        """What a try to move something has brought to its target; None: nothing."""
        if not self.renames:
            written = await self._ufs.lookup_written(plan.target, self._make_token("copy", plan.step.number, plan.target))
            return written.fingerprint if written is not None else None
        if plan.expected is None or await self._lookup(plan.source) == plan.expected:
            return None
        there = await self._lookup(plan.target)
        return there if there is not None and there != plan.step.base and there.size == plan.expected.size else None

    async def _make_directory(self, key: str) -> Done:
        try:
            await self._ufs.make_directory(key)
        except errors.AlreadyExists:
            await self._check_directory(key)
            if not self._capabilities.has_directories:
                # It is there by what is below it, which may go.
                await self._put_marker(key)
        except errors.NotFound:
            # Somebody has removed the directories above it.
            await make_directories(self._ufs, key)
            with suppress(errors.AlreadyExists):
                await self._ufs.make_directory(key)
        return Done()

    async def _put_marker(self, key: str) -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            await self._ufs.put(key + "/", Source(null, 0, 0), WriteOptions(self._make_token("marker", 0, key)))
        finally:
            os.close(null)

    async def _check_directory(self, key: str) -> None:
        """Raises AlreadyExists where a file is in a directory's place."""
        if not self._capabilities.has_directories:
            return
        with suppress(errors.NotFound, errors.IsADirectory):
            await self._ufs.stat(key)
            raise errors.AlreadyExists("the store has a file in the place of a directory: move it away there", subject=key)

    async def _rename_file(self, plan: Plan) -> Done:
        there = await self._lookup(plan.target)
        source = await self._lookup(plan.source)
        if source is None or source != plan.fingerprint:
            # Moved before, by a run that did not come to record it; else somebody else has taken it away.
            moved = there is not None and there != plan.expected and plan.fingerprint is not None
            if moved and there is not None and plan.fingerprint is not None and there.size == plan.fingerprint.size:
                return Done(there)
            return Done(foreign=source is not None)
        if there != plan.expected:
            return Done(is_taken=True, there=there)
        try:
            try:
                await self._ufs.rename(plan.source, plan.target, replace=there is not None)
            except errors.NotFound:
                # Somebody has removed the directory that it belongs in.
                await make_directories(self._ufs, plan.target)
                await self._ufs.rename(plan.source, plan.target, replace=False)
        except (errors.AlreadyExists, errors.IsADirectory):
            return Done(is_taken=True)
        return Done(await self._lookup(plan.target))

    async def _rename_directory(self, plan: Plan) -> Done:
        source, target = plan.source.rstrip("/"), plan.target.rstrip("/")
        try:
            await self._ufs.rename(source, target)
        except errors.NotFound:
            # Moved before, by a run that did not come to record it; or the directory above its target is gone.
            if not await self._is_directory(plan.source):
                return Done()
            await make_directories(self._ufs, target)
            await self._ufs.rename(source, target)
        except (errors.DirectoryNotEmpty, errors.NotADirectory, errors.AlreadyExists):
            return Done(is_taken=True)
        return Done()

    async def _copy(self, plan: Plan) -> Done:
        assert plan.fingerprint is not None
        options = WriteOptions(self._make_token("copy", plan.step.number, plan.target), await self._read_metadata(plan.source))
        try:
            entry = await self._ufs.copy(plan.source, plan.fingerprint, plan.target, options, expected=Expected(plan.expected))
        except (errors.Conflict, errors.Stale) as error:
            written = await self._ufs.lookup_written(plan.target, options.token)
            if written is not None:
                return Done(written.fingerprint, copied=True)
            if isinstance(error, errors.Conflict):
                return Done(is_taken=True)
            return Done(foreign=await self._lookup(plan.source) is not None)
        return Done(entry.fingerprint, copied=True)

    # -- small things --------------------------------------------------------------------------------------------------------

    async def _lookup(self, key: str) -> Fingerprint | None:
        try:
            return (await self._ufs.stat(key)).fingerprint
        except (errors.NotFound, errors.IsADirectory):
            return None

    async def _is_directory(self, prefix: str) -> bool:
        try:
            await self._ufs.list_page(prefix, max_entries=1)
        except (errors.NotFound, errors.NotADirectory):
            return False
        return True

    async def _read_metadata(self, key: str) -> Mapping[str, str]:
        """What goes along with a copy; what cannot be kept as it is does not."""
        if not self._capabilities.keeps_metadata:
            return {}
        try:
            found = await self._ufs.read_metadata(key)
        except errors.NotFound:
            return {}
        kept: dict[str, str] = {}
        for name, text in found.items():
            with suppress(errors.InvalidArgument):
                WriteOptions("0" * 32, {name: text})
                kept[name] = text
        return kept

    async def _list_keys(self, keys: Sequence[str]) -> Mapping[str, Fingerprint | None] | None:
        """What the store has of these keys, all in one directory, by a listing; None: that would be too long."""
        if not isinstance(self._ufs, FlatUfs):
            return None
        ordered = sorted(keys, key=to_bytes)
        prefix = ordered[0].rpartition("/")[0]
        prefix = prefix + "/" if prefix else ""
        wanted, last = set(ordered), to_bytes(ordered[-1])
        after = ordered[0][len(prefix) : -1]
        there: dict[str, Fingerprint | None] = {}
        token: str | None = None
        for _ in range(_MOST_PAGES):
            page = await self._ufs.list_flat(prefix, token, after=after)
            there.update({prefix + e.name: e.fingerprint for e in page.entries if prefix + e.name in wanted})
            token = page.token
            if token is None or (page.entries and to_bytes(prefix + page.entries[-1].name) >= last):
                return there
        return None

    def _make_token(self, what: str, number: int, key: str) -> str:
        """The same for the same step, whenever it is tried."""
        return blake2b(f"{self._cluster_id} {what} {number} ".encode() + to_bytes(key), digest_size=16).hexdigest()
