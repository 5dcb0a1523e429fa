"""What `fsck` looks at: a master's metadata, cache directories, and the one beside the other.

Owns which places are looked at, how they are opened so that nothing else changes them meanwhile, and the order of repairs. The
rules are in master/core/checking.py and cache/checking.py. Blocks; one call a process.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from alluxio_like import errors
from alluxio_like.cache.checking import CheckedDirectory, Held
from alluxio_like.cli.metadata import Metadata, check_metadata, find_master_home, open_metadata
from alluxio_like.findings import Finding, Grade
from alluxio_like.kv.api import KeyValueStore, ReadTransaction
from alluxio_like.master.core import checking, records, unpersisted
from alluxio_like.types import FileId, InodeId, VersionId

_ROUNDS = 5
"""What one repair makes right of another's: counts, then sums. A guess."""
_LOOK_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Places:
    """What is to be looked at: a master's metadata (or none), and cache directories."""

    metadata: Metadata
    caches: tuple[Path, ...] = ()
    online: bool = False


@dataclass(slots=True)
class Report:
    """What was found, and of how many findings `repaired` were mended."""

    wrong: list[Finding] = field(default_factory=list)
    leftovers: list[Finding] = field(default_factory=list)
    repaired: int = 0

    def add(self, findings: list[Finding]) -> None:
        self.wrong += [one for one in findings if one.grade is Grade.WRONG]
        self.leftovers += [one for one in findings if one.grade is Grade.LEFTOVER]


def find_places(home: Path | None, url: str, caches: list[Path], *, online: bool) -> Places:
    """Complete what was named: the home of `up` has a master's and the workers' in it. Raises ConfigError, InvalidArgument."""
    found = find_master_home(home)
    if home is not None and found != home:
        caches = [*caches, *sorted(path for path in home.glob("worker-*/cache*") if (path / "format").exists())]
    if found is None and not url and not caches:
        raise errors.InvalidArgument("say what to look at: --home DIR of a master (or of `up`), --metadata URL, --cache DIR")
    metadata = Metadata(found, url)
    check_metadata(metadata, online=online)
    return Places(metadata, tuple(caches), online)


def examine(places: Places, *, verify: bool = False, repair: bool = False) -> Report:
    """Look at all of it, and mend what can be. Raises Conflict where something runs and `online` was not said."""
    if not places.online:
        return _examine_once(places, verify=verify, repair=repair)
    first = _examine_once(places, verify=verify, repair=False)
    if not first.wrong:
        return first
    # Files move while one looks at them: what is wrong is so the next time, too.
    time.sleep(_LOOK_AGAIN_S)
    second = _examine_once(places, verify=verify, repair=False)
    seen = {(one.rule, one.message) for one in first.wrong}
    second.wrong = [one for one in second.wrong if (one.rule, one.message) in seen]
    return second


def _examine_once(places: Places, *, verify: bool, repair: bool) -> Report:
    report = Report()
    with contextlib.ExitStack() as stack:
        store = None
        if places.metadata != Metadata():
            instead = "stop the master, or look with --online"
            store = stack.enter_context(open_metadata(places.metadata, online=places.online, instead=instead))
        directories = []
        for path in places.caches:
            directory = CheckedDirectory(path, online=places.online)
            stack.callback(directory.close)
            directories.append(directory)
        if store is not None:
            _settle(report, lambda: _check_store(store), (lambda found: _mend_store(store, found)) if repair else None)
        for directory in directories:

            def look(directory: CheckedDirectory = directory) -> list[Finding]:
                return list(directory.check(verify=verify))

            _settle(report, look, directory.mend if repair else None)
        if store is not None and directories:
            held = [directory.list_held() for directory in directories]
            with store.read() as txn:
                report.add(list(_compare(txn, held)))
    return report


def _settle(report: Report, look: Callable[[], list[Finding]], mend: Callable[[list[Finding]], int] | None) -> None:
    """Look, mend, look again, until nothing more can be mended."""
    found = look()
    for _ in range(_ROUNDS):
        if mend is None or not any(one.writes for one in found):
            break
        report.repaired += mend(found)
        found = look()
    report.add(found)


def _check_store(store: KeyValueStore) -> list[Finding]:
    with store.read() as txn:
        return list(checking.check(txn))


def _mend_store(store: KeyValueStore, found: list[Finding]) -> int:
    with store.write() as txn:
        count = checking.mend(txn, found)
    store.flush()
    return count


def _compare(txn: ReadTransaction, held: list[Held]) -> Iterator[Finding]:
    """What the store lacks is with a worker. Said only where all who are to hold it were looked at."""
    files: dict[str, set[FileId]] = {}
    drafts: dict[str, set[InodeId]] = {}
    for one in held:
        files.setdefault(one.worker_id, set()).update(one.files)
        drafts.setdefault(one.worker_id, set()).update(one.drafts)
    for found in unpersisted.iter_files(txn):
        holders = found.dirty.holders
        file_id = FileId(found.inode, VersionId(found.record.version))
        if not found.record.size or not holders or any(holder not in files for holder in holders):
            continue
        if not any(file_id in files[holder] or found.inode in drafts[holder] for holder in holders):
            name = records.list_fingerprint(found.record.fingerprint)
            message = f"version {file_id.version} of inode {found.inode} ({name}) is not at the store, and no worker has it"
            yield Finding(Grade.WRONG, "lost", message, "it is lost: remove the file, or restore it from elsewhere")
