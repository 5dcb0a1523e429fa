"""From threads and handles to entries of the books: which process it is, when it is sampled, what is told to workers."""

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field

import pytest

from alluxio_like.clock import SystemClock
from alluxio_like.fuse import processes
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.accounts import JobInfo
from alluxio_like.fuse.books_page import show_books
from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.modes import Way
from alluxio_like.metrics import Metrics
from alluxio_like.types import Attr, Entry, FileRef, Fingerprint, InodeId, Kind, MountId, VersionId
from alluxio_like.waits import NONE, Cause, Seconds, Waits

LARGE = 100 << 20


@dataclass
class FakeProcesses:
    """Threads by number, and what their processes have read; `gate` holds up whoever asks for that, `hold_answer` the answer."""

    threads: dict[int, JobInfo] = field(default_factory=dict)
    chars: dict[int, int] = field(default_factory=dict)
    heirs: list[JobInfo] = field(default_factory=list)
    lookups: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    found: threading.Event = field(default_factory=threading.Event)
    hold_answer: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()
        self.hold_answer.set()

    def find_process(self, thread: int) -> JobInfo | None:
        self.lookups += 1
        return self.threads.get(thread)

    def is_alive(self, job: JobInfo) -> bool:
        return job.pid in self.chars

    def read_counts(self, job: JobInfo) -> processes.IoCounts | None:
        self.asked.set()
        assert self.gate.wait(60)
        found = processes.IoCounts(self.chars[job.pid], 0) if job.pid in self.chars else None
        self.found.set()
        assert self.hold_answer.wait(60)
        return found

    def list_heirs(self, job: JobInfo, files: Mapping[str, Collection[int]]) -> list[JobInfo]:
        return self.heirs

    def read_details(self, job: JobInfo) -> processes.Details | None:
        return processes.Details(f"python train.py {job.pid}", "pod x")


@dataclass
class Setup:
    accounting: Accounting
    ask: FakeProcesses
    metrics: Metrics
    touched: list[tuple[int, int]]

    async def wait_sampled(self) -> None:
        async with asyncio.timeout(60):
            while self.accounting.ledger.jobs[0].since is None:
                await asyncio.sleep(0.005)

    async def wait_for(self, passed_bytes: int) -> None:
        async with asyncio.timeout(60):
            while self.accounting.ledger.get_total().passed_bytes != passed_bytes:
                await asyncio.sleep(0.005)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    ask, metrics, touched = FakeProcesses(), Metrics(), []
    touched_list: list[tuple[int, int]] = touched
    made = Accounting(SystemClock(), metrics, lambda ref, count: touched_list.append((ref.inode, count)), ask)
    made.start()
    yield Setup(made, ask, metrics, touched_list)
    ask.gate.set()
    ask.hold_answer.set()
    await made.close()


def make_handle(inode: int, size: int = 1000, way: Way = Way.PASSTHROUGH) -> FileHandle:
    attr = Attr(InodeId(inode), Kind.FILE, 0o644, 0, 0, size, 0, 0, 1, VersionId(1))
    ref = FileRef(InodeId(inode), VersionId(1), MountId(1), f"train/{inode}", Fingerprint("t", size))
    return FileHandle(Entry(f"{inode}", attr, ref), None, inode, way)


async def test_threads_of_one_process_are_one_job(setup: Setup) -> None:
    job = JobInfo(100, 5, "train")
    setup.ask.threads = {100: job, 101: job, 102: JobInfo(102, 6, "other")}
    for thread in (100, 101, 102, 100):
        setup.accounting.opened(thread, make_handle(thread, way=Way.CACHED))
    assert {one.info.pid: sum(one.tally.opens) for one in setup.accounting.ledger.jobs} == {100: 3, 102: 1}
    assert setup.ask.lookups == 3, "a thread is known for a second"


async def test_who_cannot_be_seen_is_one_job_too(setup: Setup) -> None:
    handle = make_handle(1)
    setup.accounting.opened(0, handle)
    setup.accounting.closed(handle)
    (job,) = setup.accounting.ledger.jobs
    assert (job.info.pid, job.info.name, job.tally.passed_bytes) == (0, "not visible here", 1000)


async def test_a_large_file_is_sampled_at_its_open_and_close(setup: Setup) -> None:
    setup.ask.threads, setup.ask.chars = {7: JobInfo(7, 1, "reader")}, {7: 5000}
    handle = make_handle(1, LARGE)
    setup.accounting.opened(7, handle)
    await setup.wait_sampled()
    setup.ask.chars[7] += 70_000_000
    setup.accounting.closed(handle)
    await setup.wait_for(70_000_000)
    assert setup.touched == [(1, 70_000_000)]
    assert setup.metrics.read_bytes.labels("passthrough")._value.get() == 70_000_000


async def test_what_a_process_had_read_before_its_first_open_is_not_ours(setup: Setup) -> None:
    setup.ask.threads, setup.ask.chars = {7: JobInfo(7, 1, "reader")}, {7: 123_456_789}
    assert not setup.accounting.is_prepared(7)
    await setup.accounting.prepare(7)
    assert setup.accounting.is_prepared(7)
    handle = make_handle(1, LARGE)
    setup.accounting.opened(7, handle)
    setup.ask.chars[7] += LARGE
    setup.accounting.closed(handle)
    await setup.wait_for(LARGE)


async def test_a_first_open_waits_for_a_bounded_time_only(setup: Setup) -> None:
    setup.ask.threads, setup.ask.chars = {7: JobInfo(7, 1, "reader")}, {7: 0}
    setup.ask.gate.clear()
    async with asyncio.timeout(60):
        await setup.accounting.prepare(7)
    assert setup.accounting.is_prepared(7), "it is not asked again and again"
    assert setup.accounting.is_prepared(0), "nor is who cannot be seen"


async def test_the_loop_goes_on_while_proc_cannot_be_read(setup: Setup) -> None:
    setup.ask.threads, setup.ask.chars = {7: JobInfo(7, 1, "reader")}, {7: 0}
    setup.ask.gate.clear()
    first = make_handle(1, LARGE)
    setup.accounting.opened(7, first)
    await asyncio.to_thread(setup.ask.asked.wait, 60)
    # It stands still in execve(2), which waits for this very loop.
    other = make_handle(2, way=Way.CACHED)
    setup.accounting.opened(7, other)
    setup.accounting.closed(other)
    setup.ask.gate.set()
    await setup.wait_sampled()
    setup.ask.chars[7] = 1_000_000
    setup.accounting.closed(first)
    await setup.wait_for(1_000_000)


async def test_what_is_read_and_closed_while_the_answer_is_on_its_way_is_counted(setup: Setup) -> None:
    """As a program does that reads a file again and again: a look at it falls between two of them."""
    setup.ask.threads, setup.ask.chars = {7: JobInfo(7, 1, "reader")}, {7: 0}
    handle = make_handle(1, LARGE)
    setup.accounting.opened(7, handle)
    await setup.wait_sampled()
    setup.ask.chars[7] = LARGE
    setup.ask.hold_answer.clear()
    setup.ask.found.clear()
    setup.accounting.closed(handle)
    assert await asyncio.to_thread(setup.ask.found.wait, 60)
    again = make_handle(1, LARGE)
    setup.accounting.opened(7, again)
    setup.accounting.closed(again)
    setup.ask.chars[7] = 2 * LARGE
    setup.ask.hold_answer.set()
    await setup.wait_for(2 * LARGE)


async def test_children_that_read_what_they_inherited_count_for_their_parent(setup: Setup) -> None:
    setup.ask.threads, setup.ask.chars = {7: JobInfo(7, 1, "reader")}, {7: 1000, 8: 0}
    await setup.accounting.prepare(7)
    setup.accounting.opened(7, make_handle(1, LARGE))
    setup.ask.heirs = [JobInfo(8, 2)]
    setup.ask.chars[8] = 5_000_000
    await setup.wait_for(5_000_000)
    setup.ask.chars[8] = 9_000_000
    await setup.wait_for(9_000_000)
    # It ends, and nothing is taken back.
    setup.ask.heirs = []
    setup.ask.chars[7] += 500
    await setup.wait_for(9_000_500)


async def test_waits_of_a_reader_are_booked_as_they_grow(setup: Setup) -> None:
    class Reader:
        def __init__(self) -> None:
            self.waits = Waits()

        def get_waits(self) -> Seconds:
            return self.waits.get()

    reader, handle = Reader(), make_handle(1, way=Way.CACHED)
    setup.accounting.opened(7, handle)
    handle.reader = reader  # type: ignore[assignment]
    reader.waits.add(Cause.STORE, 2.0)
    handle.read_bytes = handle.waited_bytes = 400
    setup.accounting.refresh()
    reader.waits.add(Cause.STORE, 1.0)
    setup.accounting.closed(handle)
    total = setup.accounting.ledger.get_total()
    assert (total.read_bytes, total.waited_bytes, total.waits[Cause.STORE]) == (400, 400, 3.0)
    assert setup.metrics.wait_seconds.labels("store")._value.get() == 3.0


async def test_an_open_that_brought_its_file_has_waited(setup: Setup) -> None:
    waits = Waits()
    waits.add(Cause.PEER, 1.5)
    setup.accounting.opened(7, make_handle(1), waited=waits.get())
    total = setup.accounting.ledger.get_total()
    assert (total.open_wait_s, total.brought_bytes) == (1.5, 1000)


async def test_short_requests_for_names_are_no_waits(setup: Setup) -> None:
    setup.accounting.note_wait(7, 0.00005)
    setup.accounting.note_wait(7, 0.5)
    total = setup.accounting.ledger.get_total()
    assert (total.metadata_waits, total.waits[Cause.METADATA]) == (1, 0.5)


async def test_the_page_shows_what_is_remembered(setup: Setup) -> None:
    setup.ask.threads, setup.ask.chars = {7: JobInfo(7, 1, "reader", 6)}, {7: 0}
    setup.accounting.opened(7, make_handle(1, LARGE, Way.CACHED))
    books = show_books(setup.accounting, {})
    assert [(job["pid"], job["parent"], job["opens"]["cached"]) for job in books["jobs"]] == [(7, 6, 1)]
    assert [(file["inode"], file["key"], file["open"]) for file in books["files"]] == [(1, "train/1", 1)]
    assert show_books(setup.accounting, {"pid": "7"})["job"]["worst"][0]["key"] == "train/1"
    assert show_books(setup.accounting, {"inode": "1"})["file"]["jobs"][0]["pid"] == 7
    assert tuple(books["total"]["waits_s"].values()) == NONE


# What is asked of the kernel


def test_this_process_is_found_by_any_of_its_threads() -> None:
    import os

    found: list[JobInfo | None] = []
    thread = threading.Thread(target=lambda: found.append(processes.find_process(threading.get_native_id())))
    thread.start()
    thread.join()
    (job,) = found
    assert job is not None
    assert (job.pid, job.parent, job.uid) == (os.getpid(), os.getppid(), os.getuid())
    assert processes.is_alive(job)
    assert processes.find_process(0) is None
    assert not processes.is_alive(JobInfo(job.pid, job.birth + 1))


def test_reads_show_in_the_counts() -> None:
    import os

    job = processes.find_process(os.getpid())
    assert job is not None
    before = processes.read_counts(job)
    with open("/dev/zero", "rb", buffering=0) as zero:
        zero.read(10_000_000)
    after = processes.read_counts(job)
    assert before is not None and after is not None
    assert 10_000_000 <= after.read_chars - before.read_chars < 10_100_000
    assert processes.read_counts(JobInfo(job.pid, job.birth + 1)) is None


@pytest.mark.parametrize(
    ("cgroups", "group"),
    [
        (
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8d3b1c2a_1111_2222_3333_444455556666.slice/cri-1.scope\n",
            "pod 8d3b1c2a-1111-2222-3333-444455556666",
        ),
        ("0::/system.slice/slurmstepd.scope/job_77\n", "job_77"),
        ("0::/docker/0123456789abcdef0123456789abcdef\n", "0123456789ab"),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_a_pod_is_recognised(cgroups: str, group: str) -> None:
    assert processes.find_group(cgroups) == group
