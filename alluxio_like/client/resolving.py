"""Many paths at once: one question for each directory that is not known, and one for a thousand names.

Owns no answers: those are metadata.py's, and are kept there as if each name had been asked for alone. Rule of concurrency: one
event loop.
"""

from collections.abc import Awaitable, Callable, Sequence

from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.metadata import MetadataCache
from alluxio_like.errors import AlluxioLikeError, NotADirectory, TimedOut, Unavailable
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import LookupResult
from alluxio_like.types import InodeId, Kind

LOOKUPS = 1000
"""Names asked for in one call."""

Answer = LookupResult | AlluxioLikeError
_Key = tuple[InodeId, str]


class Resolver:
    """One per client. `lookup_path` answers for a single path; `strict`: nothing is answered from before while the master is
    away.
    """

    def __init__(
        self,
        names: MetadataCache,
        master: MasterStub,
        cluster: ClusterTracker,
        lookup_path: Callable[[str], Awaitable[LookupResult]],
        *,
        strict: bool,
    ) -> None:
        self._names = names
        self._master = master
        self._cluster = cluster
        self._lookup_path = lookup_path
        self._strict = strict

    async def resolve(self, paths: Sequence[str]) -> list[Answer]:
        """What absolute paths lead to, or why that is not known, in their order. Raises nothing but what a defect raises."""
        split = [path.rstrip("/").rpartition("/") for path in paths]
        parents = {parent: await self._ask_path(parent or "/") for parent in {parent for parent, _, name in split if name}}
        found: dict[_Key, Answer] = {}
        unknown: dict[_Key, None] = {}
        for parent, _, name in split:
            directory = _get_directory(parents.get(parent))
            if directory is not None:
                key = (directory, name)
                known = self._names.lookup(directory, name)
                if known is not None:
                    found[key] = known
                else:
                    unknown[key] = None
        asked = list(unknown)
        for start in range(0, len(asked), LOOKUPS):
            found |= await self._ask_names(asked[start : start + LOOKUPS])
        return [
            await self._assemble(path, parents.get(parts[0]), parts[2], found) for path, parts in zip(paths, split, strict=True)
        ]

    async def _assemble(self, path: str, above: Answer | None, name: str, found: dict[_Key, Answer]) -> Answer:
        if not name or above is None:
            return await self._ask_path(path or "/")
        if isinstance(above, AlluxioLikeError) or above.entry is None:
            return above
        directory = _get_directory(above)
        if directory is None:
            return NotADirectory("not a directory", subject=path)
        answer = found[directory, name]
        if isinstance(answer, AlluxioLikeError):
            return answer
        return LookupResult(answer.entry, min(answer.valid_s, above.valid_s))

    async def _ask_path(self, path: str) -> Answer:
        try:
            return await self._lookup_path(path)
        except AlluxioLikeError as error:
            return error

    async def _ask_names(self, keys: Sequence[_Key]) -> dict[_Key, Answer]:
        """In one call; while the master is away what it said before."""
        begun = self._names.begin()
        try:
            results = await self._master.lookup_many(keys)
        except AlluxioLikeError as error:
            if not isinstance(error, (Unavailable, TimedOut)):
                return dict.fromkeys(keys, error)
            self._cluster.note_master(away=True)
            return {key: (None if self._strict else self._names.lookup_old(*key)) or error for key in keys}
        self._cluster.note_master(away=False)
        return {key: self._names.keep(*key, result, begun) for key, result in zip(keys, results, strict=True)}


def _get_directory(answer: Answer | None) -> InodeId | None:
    """The inode of a directory; None for anything else."""
    if isinstance(answer, LookupResult) and answer.entry is not None and answer.entry.attr.kind is Kind.DIRECTORY:
        return answer.entry.attr.inode
    return None
