"""Drafts and cache files of a store against a plain model, with a kill at any step between a rename and a commit.

What must hold: what was written to a draft is in it after a kill; a version that was acknowledged and is the newest is there
whole, in its draft as long as nobody changed that, else in its cache file; nothing that the store (of objects) lacks is ever
evicted; the account of space is what is on the disk.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from alluxio_like import errors
from alluxio_like.cache.blank_drafts import Known as Published
from alluxio_like.cache.blank_drafts import Telling
from alluxio_like.cache.draft import Draft, Ending
from alluxio_like.cache.draft_files import open_draft
from alluxio_like.cache.new_files import Note, write_note
from alluxio_like.cache.store import CacheDirSpec, CacheStore
from alluxio_like.cache.writing_records import UploadRecord
from alluxio_like.clock import SystemClock
from alluxio_like.types import PAGE_BYTES, FileRef, Fingerprint, InodeId, MountId, VersionId, WorkerId
from tests.dead_store import stop_dead
from tests.unit.draft_parts import make_new_file

INODES = st.sampled_from([InodeId(1), InodeId(2), InodeId(3)])
SIZES = st.sampled_from([0, 10, PAGE_BYTES + 5])
BEGIN = st.sampled_from(["", "", "begin: created", "begin: renamed", "begin: committed"])
SEAL = st.sampled_from(["", "", "seal: begun", "seal: committed"])
END = st.sampled_from(["", "", "end: renamed", "end: committed"])
BLANK = st.sampled_from(["", "", "blank: created", "blank: committed"])
PUBLISH = st.sampled_from(["", "", "publish: begun", "publish: committed"])
"""Where the worker dies; "": nowhere."""


class Killed(Exception):
    """From here on nothing is done any more."""


@dataclass
class Known:
    """What the model knows of an inode. `content` is what programs see; `sealed` what the newest version holds."""

    ref: FileRef
    content: bytes = b""
    sealed: bytes | None = None
    draft: bool = False
    persisted: bool = False
    noted: bool = False


class DraftsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="drafts-model-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.known: dict[InodeId, Known] = {}
        self.masters: dict[str, FileRef] = {}
        """By operation id, what the master has answered."""
        self.next = 0
        self.armed = ""

    @initialize()
    def start(self) -> None:
        self.store = self.open()

    def open(self) -> CacheStore:
        spec = CacheDirSpec(self.root / "d", 1 << 30, allow_root_disk=True, keep_free_fraction=0.0)
        store = CacheStore.open([spec], cluster_id="c", clock=SystemClock(), boot_id="boot")
        store._stop.set()
        store._wake.set()
        store._thread.join()
        store.drafts.checkpoint = self.check
        return store

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.root)

    def check(self, name: str) -> None:
        if name == self.armed:
            raise Killed

    def restart(self) -> None:
        self.armed = ""
        stop_dead(self.store)
        self.store = self.open()
        self.store.sweep()

    # -- what programs and the worker do -----------------------------------------------------------------------------------

    @rule(inode=INODES, truncate=st.booleans(), point=BEGIN)
    def begin(self, inode: InodeId, truncate: bool, point: str) -> None:
        if self.store.drafts.lookup(inode) is not None:
            return
        known = self.known.get(inode)
        ref = self.make_ref(inode, 1, 0) if known is None else known.ref
        cached = self.store.lookup(ref.file_id)
        self.armed = point
        try:
            self.store.drafts.begin(ref, cached, truncate=truncate or known is None)
        except Killed:
            self.restart()
            draft = self.store.drafts.lookup(inode)
            if draft is not None:
                # Nobody was told: what was there still is, whether or not it was to be cut.
                self.known.setdefault(inode, Known(ref)).draft = True
                assert self.read_draft(draft) == self.known[inode].content
            return
        self.armed = ""
        known = self.known.setdefault(inode, Known(ref))
        known.draft = True
        if truncate:
            known.content = b""

    @rule(inode=INODES, size=SIZES, seed=st.binary(min_size=1, max_size=3), offset=SIZES)
    def write(self, inode: InodeId, size: int, seed: bytes, offset: int) -> None:
        draft = self.store.drafts.lookup(inode)
        if draft is None:
            return
        data = (seed * (size // len(seed) + 1))[:size]
        fd = open_draft(self.store.directory_fds[draft.directory], draft.path)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)
        known = self.known[inode]
        if data:
            known.content = known.content[:offset].ljust(offset, b"\0") + data + known.content[offset + size :]

    @rule(inode=INODES, point=SEAL)
    def seal(self, inode: InodeId, point: str) -> None:
        draft = self.store.drafts.lookup(inode)
        if draft is None or draft.record.blank:
            return
        self.armed = point
        try:
            self.finish(draft)
            if self.store.drafts.contents.read_stamp(draft) == draft.record.stamp:
                self.armed = ""
                return
            seen = self.store.drafts.contents.observe(draft)
            assert seen is not None
            self.next += 1
            self.store.drafts.note_sealing(draft, f"op-{self.next}", seen)
            self.finish(draft)
        except Killed:
            self.restart()
            return
        self.armed = ""

    def finish(self, draft: Draft) -> None:
        sealing = draft.record.sealing
        if sealing is None:
            return
        known = self.known[draft.inode]
        ref = self.masters.get(sealing.operation_id)
        if ref is None:
            ref = self.make_ref(draft.inode, known.ref.version + 1, sealing.stamp.size)
            self.masters[sealing.operation_id] = ref
            self.learn(draft, ref)
        self.store.drafts.note_sealed(draft, ref, UploadRecord(ref, "through", 1, "0" * 32), unwanted=False)

    def learn(self, draft: Draft, ref: FileRef) -> None:
        """The master has made what is being sealed a version."""
        known, sealing = self.known[draft.inode], draft.record.sealing
        assert sealing is not None
        known.ref = ref
        is_same = self.store.drafts.contents.read_stamp(draft) == sealing.stamp
        known.sealed = known.content if is_same else None
        known.persisted = False

    @rule(inode=INODES, point=BLANK)
    def begin_blank(self, inode: InodeId, point: str) -> None:
        if inode in self.known:
            return
        self.armed = point
        try:
            made = self.store.drafts.blanks.begin([inode])
            assert made is not None
        except Killed:
            self.restart()
        self.armed = ""
        if self.store.drafts.lookup(inode) is not None:
            self.known[inode] = Known(self.make_ref(inode, 1, 0), draft=True)

    @rule(inode=INODES)
    def note(self, inode: InodeId) -> None:
        """A client has made a file of it."""
        draft = self.store.drafts.lookup(inode)
        if draft is not None and draft.record.blank:
            fd = open_draft(self.store.directory_fds[draft.directory], draft.path)
            write_note(fd, Note("client", make_new_file(inode)))
            os.close(fd)
            self.known[inode].noted = True

    @rule(inode=INODES)
    def drop_unused(self, inode: InodeId) -> None:
        draft = self.store.drafts.lookup(inode)
        if draft is None or not draft.record.blank:
            return
        stays = self.known[inode].noted or draft.record.publishing is not None
        assert len(self.store.drafts.drop_unused([draft])) == stays
        if not stays:
            del self.known[inode]

    @rule(inode=INODES, sealed=st.booleans(), point=PUBLISH)
    def publish(self, inode: InodeId, sealed: bool, point: str) -> None:
        draft = self.store.drafts.lookup(inode)
        if draft is None or not draft.record.blank:
            return
        self.armed = point
        try:
            if draft.record.publishing is None:
                self.next += 1
                file = make_new_file(inode, operation_id=f"op-{self.next}", sealed=sealed)
                seen = self.store.drafts.contents.observe(draft) if sealed else None
                self.store.drafts.blanks.note_publishing([Telling(draft, file, seen)])
            self.finish_publishing(draft)
        except Killed:
            self.restart()
        self.armed = ""

    def finish_publishing(self, draft: Draft) -> None:
        file, sealing = draft.record.publishing, draft.record.sealing
        assert file is not None
        assert file.sealed == (sealing is not None)
        ref = self.masters.get(file.operation_id)
        if ref is None:
            ref = self.make_ref(draft.inode, 1 if sealing is None else 2, 0 if sealing is None else sealing.stamp.size)
            self.masters[file.operation_id] = ref
            if sealing is not None:
                self.learn(draft, ref)
        upload = None if sealing is None else UploadRecord(ref, "through", 1, "0" * 32)
        self.store.drafts.blanks.note_known([Published(draft, ref, upload, unwanted=False)])

    @rule(inode=INODES, size=SIZES, sealed=st.booleans(), point=PUBLISH, more=st.booleans())
    def make_file(self, inode: InodeId, size: int, sealed: bool, point: str, more: bool) -> None:
        """All that a client does to a file of its own, and more."""
        self.begin_blank(inode, "")
        self.note(inode)
        self.write(inode, size, b"n", 0)
        self.publish(inode, sealed, point)
        if more:
            self.write(inode, size, b"m", 5)
        self.publish(inode, sealed, "")
        if more or not sealed:
            self.seal(inode, "")
        self.end(inode, "")

    @rule(inode=INODES, point=END)
    def end(self, inode: InodeId, point: str) -> None:
        draft = self.store.drafts.lookup(inode)
        if draft is None or draft.record.blank:
            return
        self.armed = point
        try:
            ending = self.store.drafts.end(draft)
        except Killed:
            self.restart()
            self.known[inode].draft = self.store.drafts.lookup(inode) is not None
            return
        self.armed = ""
        assert ending is not Ending.IN_USE
        if ending is Ending.DONE:
            known = self.known[inode]
            known.draft = False
            assert known.sealed == known.content or known.sealed is None
            assert known.ref == draft.record.ref

    @rule(inode=INODES, size=SIZES, seed=st.binary(min_size=1, max_size=3))
    def write_file(self, inode: InodeId, size: int, seed: bytes) -> None:
        """All that a program does to a file, undisturbed."""
        self.begin(inode, truncate=True, point="")
        self.write(inode, size, seed, 0)
        self.seal(inode, "")
        self.end(inode, "")

    @rule(inode=INODES, truncate=st.booleans(), point=BEGIN)
    def begin_anew(self, inode: InodeId, truncate: bool, point: str) -> None:
        """A begin from what is cached, for certain."""
        self.write_file(inode, 10, b"x")
        self.begin(inode, truncate, point)

    @rule(inode=INODES, size=SIZES, point=SEAL)
    def write_and_seal(self, inode: InodeId, size: int, point: str) -> None:
        self.begin(inode, truncate=False, point="")
        self.write(inode, size, b"s", 0)
        self.seal(inode, point)

    @rule(inode=INODES, size=SIZES, point=END)
    def write_and_end(self, inode: InodeId, size: int, point: str) -> None:
        self.write_and_seal(inode, size, "")
        self.end(inode, point)

    @rule(inode=INODES)
    def persist(self, inode: InodeId) -> None:
        for upload in self.store.drafts.list_uploads():
            if upload.file_id.inode == inode:
                self.store.drafts.drop_upload(upload.file_id)
        if inode in self.known:
            self.known[inode].persisted = True

    @rule(inode=INODES)
    def evict(self, inode: InodeId) -> None:
        known = self.known.get(inode)
        if known is None:
            return
        removed = self.store.remove([known.ref.file_id], force=True, include_pinned=True)
        assert not removed.files or known.persisted
        if removed.files:
            # It would come again from the store of objects.
            del self.known[inode]

    @rule()
    def kill(self) -> None:
        self.restart()

    # -- what must hold ----------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "store"):
            return
        for inode, known in self.known.items():
            draft = self.store.drafts.lookup(inode)
            assert (draft is not None) == known.draft
            if draft is not None:
                assert self.read_draft(draft) == known.content
            if known.sealed is None or (draft is not None and draft.record.sealing is not None):
                continue
            if draft is not None:
                self.check_version_in_draft(draft, known)
            elif known.sealed:
                cached = self.store.lookup(known.ref.file_id)
                assert cached is not None
                assert cached.read(0, len(known.sealed)) == known.sealed
                assert cached.unpersisted or known.persisted

    def check_version_in_draft(self, draft: Draft, known: Known) -> None:
        assert known.sealed is not None
        try:
            data = self.store.drafts.contents.read(draft, known.ref, 0, len(known.sealed)) if known.sealed else b""
        except errors.Stale:
            # Changed since (or written to with the same bytes).
            assert self.store.drafts.contents.read_stamp(draft) != draft.record.stamp
        else:
            assert data == known.sealed

    @invariant()
    def space_is_accounted_for(self) -> None:
        if not hasattr(self, "store"):
            return
        drafts = list((self.root / "d" / "drafts").iterdir())
        # A file system may move blocks, and add some of its own, when it likes.
        there, before = -1, -2
        while there != before:
            before = sum(path.stat().st_blocks * 512 for path in drafts)
            for draft in self.store.drafts.list_drafts():
                self.store.drafts.contents.measure(draft)
            there = sum(path.stat().st_blocks * 512 for path in drafts)
        usage = self.store.get_usage()[0]
        assert usage.draft_bytes == there
        present = sum((info.present_bytes + 4095) & ~4095 for info in self.store.iter_files())
        assert usage.used_bytes == usage.draft_bytes + present

    def read_draft(self, draft: Draft) -> bytes:
        fd = self.store.drafts.contents.open_draft(draft)
        try:
            return os.pread(fd, 1 << 30, 0)
        finally:
            os.close(fd)

    def make_ref(self, inode: InodeId, version: int, size: int) -> FileRef:
        holders = (WorkerId("w"),) if version > 1 else ()
        return FileRef(inode, VersionId(version), MountId(1), "key", Fingerprint(f"own-{version:x}", size), holders=holders)


DraftsMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "25")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestDrafts = DraftsMachine.TestCase
