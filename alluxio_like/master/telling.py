"""How what has just changed is now, told to the client that changed it, so that it need not ask.

Owns what is told: names and directories that the change took back, where the caller's lease covers them. Event loop alone; each
answer is read and covered in one step, as a lookup's is, so whatever changes afterwards is recalled.
"""

from collections.abc import Sequence

from alluxio_like import errors
from alluxio_like.master.core import namespace
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.rpc.messages import LookupResult
from alluxio_like.rpc.messages_writing import Told
from alluxio_like.types import Entry, InodeId, Kind, Recall, to_str

_MOST = 8
"""Names and directories told with one change. A guess: a rename over a file with few names has four."""


class Teller:
    """See the module."""

    def __init__(self, meta: MetaStore, lister: Lister) -> None:
        self._meta = meta
        self._lister = lister

    def tell(self, recalls: Sequence[Recall], lease: str) -> tuple[Told, ...]:
        """What the client of that lease need not ask for."""
        if not lease:
            return ()
        names = dict.fromkeys((recall.directory, to_str(name)) for recall in recalls for name in recall.names)
        directories = dict.fromkeys(recall.directory for recall in recalls)
        places = [*names, *((directory, "") for directory in directories)]
        return tuple([told for place in places[:_MOST] if (told := self._read(*place, lease)) is not None])

    def tell_many(self, recalls: Sequence[Recall], lease: str) -> tuple[Told, ...]:
        """The same of all names, however many, none of which is a directory's; and each directory once."""
        told: list[Told] = []
        for recall in recalls if lease else ():
            names = [to_str(name) for name in recall.names]
            try:
                answers = self._lister.read_names(recall.directory, names, session=lease)
            except errors.AlluxioLikeError:
                continue
            told += [
                Told(recall.directory, name, LookupResult(answer.entry, answer.valid_s, True, answer.directory), is_empty=False)
                for name, answer in zip(names, answers, strict=False)
            ]
            if (own := self._read(recall.directory, "", lease)) is not None:
                told.append(own)
        return tuple(told)

    def _read(self, parent: InodeId, name: str, lease: str) -> Told | None:
        try:
            answer = self._lister.read(parent, name, session=lease) if name else self._lister.get_entry(parent, session=lease)
            if answer is None or not answer.leased or self._lister.is_anothers(parent, lease):
                return None
            is_empty = bool(name) and self._is_empty(answer.entry)
        except errors.AlluxioLikeError:
            return None  # gone meanwhile: who asks will hear it
        return Told(parent, name, LookupResult(answer.entry, answer.valid_s, True, answer.directory), is_empty)

    def _is_empty(self, entry: Entry | None) -> bool:
        """(The lease of the directory itself was given with the answer.)"""
        if entry is None or entry.attr.kind is not Kind.DIRECTORY:
            return False
        with self._meta.read() as txn:
            state = namespace.get_dir_state(txn, entry.attr.inode)
        return state.complete and not state.files and not state.directories
