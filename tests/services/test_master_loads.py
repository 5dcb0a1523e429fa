"""Load jobs by a real master over real gRPC; workers are servers over a dictionary."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master import job_runner
from alluxio_like.master.job_paths import PathsWriter, StoredPaths, list_stored, remove_paths, take_over_files
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.walking import Walker
from alluxio_like.rpc.messages import Heartbeat, JobState
from alluxio_like.types import PAGE_BYTES, JobId
from alluxio_like.ufs.memory import Fault
from tests.unit.master_parts import BLOCK, Cluster, wait_until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    await made.start()
    yield made
    await made.close()


async def make(cluster: Cluster, files: int = 50, workers: int = 2, size: int = 1000) -> None:
    store = await cluster.add_store()
    for number in range(files):
        store.put(f"d{number % 3}/e/{number:04}.jpg", b"x" * size)
    for number in range(workers):
        await cluster.add_worker(f"w{number}")


async def test_a_load_brings_every_file_to_its_home_once(cluster: Cluster) -> None:
    await make(cluster, 600)
    job = await cluster.load("/data")
    assert (job.state, job.reason) == (JobState.DONE, "")
    assert (job.total_files, job.done_files, job.checked_files, job.failed_files) == (600, 600, 600, 0)
    assert (job.total_bytes, job.done_bytes, job.skipped_files, job.requests) == (600_000, 600_000, 0, 600)
    assert [len(w.cached) > 200 for w in cluster.workers] == [True, True]
    assert sum(len(w.cached) for w in cluster.workers) == 600
    lists = cluster.stores["s3://bucket/data"].count_requests()["LIST"]
    again = await cluster.load("/data")
    assert (again.state, again.done_files, again.skipped_files, again.requests) == (JobState.DONE, 600, 600, 0)
    assert sum(w.fetched_bytes for w in cluster.workers) == 600_000
    assert cluster.stores["s3://bucket/data"].count_requests()["LIST"] == lists


async def test_globs_files_and_uris(cluster: Cluster) -> None:
    await make(cluster, 30)
    assert (await cluster.load("/data", glob="*1.jpg")).done_files == 3
    assert (await cluster.load("/data", glob="d0/**/*.jpg")).done_files == 10
    assert (await cluster.load("/data/d1/e/0001.jpg", "/data/d2")).done_files == 11
    assert (await cluster.load("s3://bucket/data/d2")).done_files == 10
    with pytest.raises(errors.NotFound):
        await cluster.load("/data/none")
    with pytest.raises(errors.NotFound, match="no mount"):
        await cluster.load("s3://other/x")
    with pytest.raises(errors.InvalidArgument):
        await cluster.load("/data", glob="[x")


async def test_a_file_named_twice_counts_once(cluster: Cluster) -> None:
    await make(cluster, 30)
    job = await cluster.load("/data", "/data/d1", "/data/d1/e/0001.jpg", "/data/", "s3://bucket/data/d0")
    assert (job.state, job.total_files, job.done_files, job.path_count) == (JobState.DONE, 30, 30, 1)
    # A pattern with a slash is of paths below the given one: each is another question.
    job = await cluster.load("/data", "/data/d1", glob="e/*.jpg")
    assert (job.state, job.total_files) == (JobState.DONE, 10)


async def test_a_list_is_taken_up_anywhere_at_once() -> None:
    meta = MetaStore(MemoryStore())
    job_id, other = JobId("a1"), JobId("a10")
    paths = [f"/data/{number}/\udcff" for number in range(5000)]
    for name, some in ((job_id, paths), (other, paths[:3])):
        writer = PathsWriter(meta, name)
        for path in some:
            await writer.add(path)
        await writer.finish()
    assert StoredPaths(meta, job_id).read(4990, 100) == paths[4990:]
    assert StoredPaths(meta, job_id).read(1023, 3) == paths[1023:1026]
    assert StoredPaths(meta, job_id).read(5000, 3) == []
    reader = StoredPaths(meta, job_id)
    assert [path for start in range(0, 5100, 100) for path in reader.read(start, 100)] == paths
    with meta.read() as txn:
        assert list_stored(txn) == [job_id, other]
    await remove_paths(meta, job_id)
    assert StoredPaths(meta, job_id).read(0, 1) == []
    assert StoredPaths(meta, other).read(0, 10) == paths[:3]
    await meta.close()


async def test_a_piece_of_a_list_is_bounded_in_bytes() -> None:
    meta = MetaStore(MemoryStore())
    paths = [f"/{number}/" + "x" * 60_000 for number in range(50)]
    writer = PathsWriter(meta, JobId("long"))
    for path in paths:
        await writer.add(path)
    await writer.finish()
    with meta.read() as txn:
        sizes = [len(raw) for _, raw in txn.scan(b"jobl/", b"jobl0")]
    assert max(sizes) < 2 << 20
    reader = StoredPaths(meta, JobId("long"))
    assert [reader.read(number, 1)[0] for number in (49, 0, 20)] == [paths[49], paths[0], paths[20]]
    assert list(reader.read(10, 40)) == paths[10:]
    await meta.close()


async def test_lists_of_an_earlier_release_are_taken_over(tmp_path: Path) -> None:
    meta = MetaStore(MemoryStore())
    paths = [f"/data/{number}/\udcff" for number in range(3000)]
    for name in ("known", "unknown"):
        (tmp_path / f"{name}.paths").write_text("".join(json.dumps(path) + "\n" for path in paths))
        (tmp_path / f"{name}.index").write_bytes(b"")
    take_over_files(meta, tmp_path, {JobId("known")})
    assert list(StoredPaths(meta, JobId("known")).read(0, 5000)) == paths
    assert StoredPaths(meta, JobId("unknown")).read(0, 1) == []
    assert list(tmp_path.iterdir()) == []
    await meta.close()


async def test_a_long_list_of_paths(cluster: Cluster) -> None:
    await make(cluster, 100)
    paths = [f"/data/d{number % 3}/e/{number:04}.jpg" for number in range(100)]
    job = await cluster.load(*paths, "/data/d0/e/absent", paths[0])
    assert (job.state, job.path_count, job.done_files, job.failed_files) == (JobState.FAILED, 102, 101, 1)
    assert [(p.path, p.code) for p in job.problems] == [("/data/d0/e/absent", "not_found")]
    assert (await cluster.stub.list_job_problems(job.job_id, 0)).problems == job.problems


async def test_loading_starts_before_listing_ends(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(500):
        store.put(f"{number:04}", b"x")
    worker = await cluster.add_worker("w")
    gate = asyncio.Event()
    store.fail("LIST", Fault(), Fault(), Fault(until=gate))
    try:
        job_id = await cluster.submit("/data")
        await wait_until(lambda: len(worker.cached) >= 100, "the first pages' files")
        assert not (await cluster.stub.get_job(job_id)).listing_done
    finally:
        gate.set()
    assert (await cluster.wait_job(job_id)).done_files == 500


async def test_whole_files_show_while_their_batch_is_under_way(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(100):
        store.put(f"{number:04}.jpg", b"x")
    worker = await cluster.add_worker("w")
    worker.most_loads = 48
    job_id = await cluster.submit("/data")

    async def count() -> int:
        return (await cluster.stub.get_job(job_id)).done_files

    async with asyncio.timeout(60):
        while await count() < 48:
            await asyncio.sleep(0.01)
    assert await count() == 48
    worker.most_loads = 1000
    job = await cluster.wait_job(job_id)
    assert (job.done_files, job.skipped_files, job.requests) == (100, 0, 100)


async def test_two_replicas_on_two_workers(cluster: Cluster) -> None:
    await make(cluster, 20, workers=3)
    job = await cluster.load("/data", replicas=2)
    assert (job.state, job.done_files, job.total_bytes) == (JobState.DONE, 20, 40_000)
    holders = [sum(key in w.cached for w in cluster.workers) for key in {key for w in cluster.workers for key in w.cached}]
    assert holders == [2] * 20
    second = [file for w in cluster.workers for file, _ in w.loads if file.sources]
    assert len(second) == 20
    refused = await cluster.load("/data", replicas=4)
    assert (refused.state, refused.reason[:10]) == (JobState.FAILED, "4 replicas")


async def test_large_files_are_placed_by_block(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home", whole_file_limit_bytes=1 << 20)
    await cluster.start()
    try:
        store = await cluster.add_store()
        store.put("big", bytes((64 << 20) * 5 + 17))
        for number in range(2):
            await cluster.add_worker(f"w{number}")
        job = await cluster.load("/data")
        assert (job.state, job.done_files, job.done_bytes) == (JobState.DONE, 1, (64 << 20) * 5 + 17)
        assert sorted(block for w in cluster.workers for _, block in w.cached) == [0, 1, 2, 3, 4, 5]
        status = await cluster.stub.get_cache_status("/data/big")
        assert status.cached_files == 1
    finally:
        await cluster.close()


async def test_second_copies_of_blocks_come_from_the_first(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home", whole_file_limit_bytes=BLOCK)
    await cluster.start()
    try:
        store = await cluster.add_store()
        store.put("large", bytes(6 * BLOCK))
        for number in range(3):
            await cluster.add_worker(f"w{number}")
        job = await cluster.load("/data/large", replicas=2)
        assert (job.state, job.total_bytes, job.done_bytes) == (JobState.DONE, 12 * BLOCK, 12 * BLOCK)
        copies = sorted(block for worker in cluster.workers for _, block in worker.cached)
        assert copies == sorted([*range(6), *range(6)])
        first = [block for w in cluster.workers for file, _ in w.loads if not file.sources for block in file.blocks]
        assert sorted(first) == list(range(6))
        addresses = {w.describe().address: w for w in cluster.workers}
        for worker in cluster.workers:
            for file, _ in worker.loads:
                for address in file.sources:
                    held = {block for _, block in addresses[address].cached}
                    assert held >= set(file.blocks)
        again = await cluster.load("/data/large", replicas=2)
        assert (again.state, again.skipped_bytes) == (JobState.DONE, 12 * BLOCK)
    finally:
        await cluster.close()


async def test_what_does_not_fit_is_refused_before_it_starts(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(40):
        store.put(f"{number:02}", bytes(1 << 20))
    worker = await cluster.add_worker("w", capacity_bytes=20 << 20)
    job = await cluster.load("/data")
    assert job.state is JobState.FAILED
    assert "does not fit" in job.reason
    assert "--fit" in job.reason
    dry = await cluster.load("/data", dry_run=True)
    assert (dry.state, dry.total_files, dry.total_bytes) == (JobState.DONE, 40, 40 << 20)
    assert "does not fit" in dry.reason
    assert dry.eta_s > 0
    some = await cluster.load("/data", fit=True)
    assert (some.state, some.failed_files) == (JobState.DONE, 0)
    assert some.done_files + some.unfit_files == 40
    assert some.done_files == 18
    assert len(worker.cached) >= 18


async def test_what_the_disks_do_not_leave_does_not_fit(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(10):
        store.put(f"{number:02}", bytes(1 << 20))
    # A quota for all of it, on a disk that others have filled.
    worker = await cluster.add_worker("w", capacity_bytes=20 << 20, usable_bytes=6 << 20)
    assert any("of its 21.0 MB others have left 6.3 MB" in warning for warning in (await cluster.stub.report()).warnings)
    dry = await cluster.load("/data", dry_run=True)
    assert "does not fit" in dry.reason
    assert dry.free_bytes == int(0.94 * (6 << 20))
    assert (await cluster.load("/data")).state is JobState.FAILED
    some = await cluster.load("/data", fit=True)
    assert (some.state, some.done_files, some.unfit_files) == (JobState.DONE, 5, 5)
    worker.usable_bytes = 20 << 20
    await wait_until(lambda: cluster.master.registry.get_cluster().workers[0].usable_bytes == 20 << 20, "a heartbeat")
    assert (await cluster.load("/data")).state is JobState.DONE


async def test_a_dry_run_loads_nothing(cluster: Cluster) -> None:
    await make(cluster, 30)
    job = await cluster.load("/data", dry_run=True)
    assert (job.state, job.total_files, job.requests, job.listing_done) == (JobState.DONE, 30, 30, True)
    assert not any(w.cached or w.loads for w in cluster.workers)
    await cluster.load("/data/d0")
    again = await cluster.load("/data", dry_run=True)
    assert (again.total_files, again.skipped_files, again.requests) == (30, 10, 20)
    assert again.skipped_bytes == again.total_bytes // 3


async def test_failures_are_said_with_reasons_and_can_be_loaded_again(cluster: Cluster) -> None:
    await make(cluster, 30)
    for worker in cluster.workers:
        worker.failures = {"d0/e/0003.jpg": "store_denied"}
    job = await cluster.load("/data")
    assert (job.state, job.done_files, job.failed_files) == (JobState.FAILED, 29, 1)
    assert "1 of 30" in job.reason
    assert [(p.path, p.code) for p in job.problems] == [("/data/d0/e/0003.jpg", "store_denied")]
    for worker in cluster.workers:
        worker.failures = {}
    again = await cluster.load("/data")
    assert (again.state, again.done_files, again.skipped_files) == (JobState.DONE, 30, 29)


async def test_the_check_finds_what_is_missing_and_loads_it_again(cluster: Cluster) -> None:
    await make(cluster, 30)
    for worker in cluster.workers:
        worker.lose_once = {"d0/e/0003.jpg", "d1/e/0004.jpg"}
    job = await cluster.load("/data")
    assert (job.state, job.done_files, job.checked_files) == (JobState.DONE, 30, 30)
    assert sum(len(w.cached) for w in cluster.workers) == 30


async def test_what_the_block_map_says_is_not_believed(cluster: Cluster) -> None:
    await make(cluster, 30)
    assert (await cluster.load("/data")).state is JobState.DONE
    worker = cluster.workers[0]
    lost = next(iter(worker.cached))[0]
    worker.forget(lost)
    assert (await cluster.load("/data")).state is JobState.DONE
    assert (lost, 0) in worker.cached


async def test_verify_loads_damaged_files_again(cluster: Cluster) -> None:
    await make(cluster, 10)
    for worker in cluster.workers:
        worker.bad_once = {"d0/e/0003.jpg"}
    job = await cluster.load("/data", verify=True)
    assert (job.state, job.done_files) == (JobState.DONE, 10)
    assert all(not w.bad_once for w in cluster.workers if any(r.key == "d0/e/0003.jpg" for r in w.refs.values()))


async def test_a_file_that_changed_meanwhile_is_loaded_as_it_is_now(cluster: Cluster) -> None:
    await make(cluster, 10)
    store = cluster.stores["s3://bucket/data"]
    old = {store.put(key, bytes(1000)).token for key in ("d0/e/0003.jpg", "d0/e/0006.jpg")}
    for worker in cluster.workers:
        worker.hold.clear()
        worker.stale = old
    job_id = await cluster.submit("/data")
    await wait_until(lambda: cluster.master.jobs.get_job(job_id).listing_done, "the listing")
    store.put("d0/e/0003.jpg", b"another content")
    store.delete("d0/e/0006.jpg")
    for worker in cluster.workers:
        worker.hold.set()
    job = await cluster.wait_job(job_id)
    assert (job.state, job.done_files, job.failed_files) == (JobState.DONE, 9, 0)
    sizes = [ref.size for w in cluster.workers for ref in w.refs.values() if ref.key == "d0/e/0003.jpg"]
    assert 15 in sizes


async def test_a_worker_that_dies_is_replaced(cluster: Cluster) -> None:
    await make(cluster, 60, workers=3)
    for worker in cluster.workers:
        worker.hold.clear()
    job_id = await cluster.submit("/data")
    await wait_until(lambda: cluster.master.jobs.get_job(job_id).state is JobState.RUNNING, "the loading")
    victim = cluster.workers.pop()
    await cluster.lose(victim)
    for worker in [*cluster.workers, victim]:
        worker.hold.set()
    job = await cluster.wait_job(job_id)
    assert (job.state, job.done_files) == (JobState.DONE, 60)
    assert sum(len(w.cached) for w in cluster.workers) >= 60


async def test_copies_without_a_worker_are_missing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runner, "SHORT_WAIT_S", 0.2)
    await make(cluster, 20, workers=2)
    for worker in cluster.workers:
        worker.hold.clear()
    job_id = await cluster.submit("/data", replicas=2)
    await wait_until(lambda: cluster.master.jobs.get_job(job_id).state is JobState.RUNNING, "the loading")
    victim = cluster.workers.pop()
    await cluster.lose(victim)
    victim.hold.set()
    cluster.workers[0].hold.set()
    job = await cluster.wait_job(job_id)
    assert (job.state, job.failed_files, job.checked_files) == (JobState.FAILED, 20, 0)
    assert {problem.code for problem in job.problems} == {"missing"}
    assert "copies" in job.problems[0].message
    assert len(cluster.workers[0].cached) == 20


async def test_what_fits_no_more_after_the_loss_of_a_worker_is_counted(cluster: Cluster) -> None:
    # 16 files on two workers that take ten each: one alone cannot hold them.
    await make(cluster, 16, workers=0, size=PAGE_BYTES)
    for number in range(2):
        await cluster.add_worker(f"w{number}", capacity_bytes=11 * PAGE_BYTES)
    for worker in cluster.workers:
        worker.hold.clear()
    job_id = await cluster.submit("/data", fit=True)
    await wait_until(lambda: cluster.master.jobs.get_job(job_id).state is JobState.RUNNING, "the loading")
    victim = cluster.workers.pop()
    await cluster.lose(victim)
    victim.hold.set()
    cluster.workers[0].hold.set()
    job = await cluster.wait_job(job_id)
    assert job.checked_files <= 10
    assert job.checked_files + job.unfit_files + job.failed_files == 16


async def test_cancelling_stops_the_job_for_good(cluster: Cluster) -> None:
    await make(cluster, 60)
    for worker in cluster.workers:
        worker.hold.clear()
    job_id = await cluster.submit("/data")
    await wait_until(lambda: cluster.master.jobs.get_job(job_id).state is JobState.RUNNING, "the loading")
    job = await cluster.stub.cancel_job(job_id)
    assert job.state is JobState.CANCELLED
    assert (await cluster.wait_job(job_id)).state is JobState.CANCELLED
    assert (await cluster.stub.cancel_job(job_id)).state is JobState.CANCELLED
    assert [job.job_id for job in await cluster.stub.list_jobs()] == [job_id]


async def test_two_cancels_at_once(cluster: Cluster) -> None:
    await make(cluster, 60)
    for worker in cluster.workers:
        worker.hold.clear()
    job_id = await cluster.submit("/data")
    await wait_until(lambda: cluster.master.jobs.get_job(job_id).state is JobState.RUNNING, "the loading")
    jobs = await asyncio.gather(*(cluster.stub.cancel_job(job_id) for _ in range(5)))
    assert {job.state for job in jobs} == {JobState.CANCELLED}


async def test_the_bandwidth_is_the_whole_jobs_and_goes_where_work_is(cluster: Cluster) -> None:
    await make(cluster, 1)
    lonely = await cluster.load("/data", bandwidth_bytes_s=1_000_000)
    assert (lonely.state, {share for w in cluster.workers for _, share in w.loads}) == (JobState.DONE, {1_000_000.0})
    store = cluster.stores["s3://bucket/data"]
    for number in range(40):
        store.put(f"more/{number:04}.jpg", b"x")
    await cluster.stub.sync("/data")
    for worker in cluster.workers:
        worker.hold.clear()
    job_id = await cluster.submit("/data/more", bandwidth_bytes_s=1_000_000)
    await wait_until(lambda: {w.bandwidth for w in cluster.workers} == {500_000.0}, "both to have half of it")
    cluster.workers[0].hold.set()
    await wait_until(lambda: cluster.workers[1].bandwidth == 1_000_000.0, "the one that is left to have all of it")
    cluster.workers[1].hold.set()
    assert (await cluster.wait_job(job_id)).state is JobState.DONE


async def test_hosts_choose_the_workers(cluster: Cluster) -> None:
    await make(cluster, 20)
    job = await cluster.load("/data", hosts=("w1",))
    assert (job.state, len(cluster.workers[0].cached), len(cluster.workers[1].cached)) == (JobState.DONE, 0, 20)
    with pytest.raises(errors.NotFound, match="w0"):
        await cluster.load("/data", hosts=("w7",))


async def test_without_a_worker_a_job_ends_in_time(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home", io_timeout_s=0.5)
    await cluster.start()
    try:
        await make(cluster, 5, workers=0)
        job = await cluster.load("/data")
        assert (job.state, "no worker is live" in job.reason) == (JobState.FAILED, True)
    finally:
        await cluster.close()


async def test_what_is_pinned_and_cached_is_known_before_a_job_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    await cluster.start()
    port = cluster.master.address
    try:
        await make(cluster, 6, workers=0, size=PAGE_BYTES)
        worker = await cluster.add_worker("w", capacity_bytes=8 * PAGE_BYTES)
        await cluster.stub.set_pinned("/data", pinned=True)
        worker.show_pinned = True
        assert (await cluster.load("/data")).state is JobState.DONE
        await wait_until(lambda: cluster.master.registry.get_live()[0].pinned_bytes == 6 * PAGE_BYTES, "the pinned bytes")
        worker.report_gate.clear()
        await cluster.stop_master()
        await cluster.start(bind=port)
        worker._master = cluster.stub
        registered = worker.registered
        job_id = await cluster.submit("/data")
        await wait_until(lambda: worker.reporting, "the report to begin")
        # Heartbeats go on during a long report, and say nothing of what is held.
        await cluster.stub.heartbeat(Heartbeat(worker.worker_id, f"s{worker.session}", 1, (), worker.describe(), ()))
        assert not cluster.master.registry.block_map.has_reported(worker.worker_id)
        worker.report_gate.set()
        job = await cluster.wait_job(job_id)
        assert (job.state, job.skipped_files, job.reason) == (JobState.DONE, 6, "")
        assert worker.registered == registered + 1
    finally:
        worker.report_gate.set()
        await cluster.close()


async def test_what_a_job_pins_itself_is_not_in_its_own_way(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that it brought while it still counted looked like what others have pinned."""
    await make(cluster, 6, workers=0, size=PAGE_BYTES)
    worker = await cluster.add_worker("w", capacity_bytes=8 * PAGE_BYTES)
    worker.show_pinned = True
    await cluster.stub.set_pinned("/data", pinned=True)
    walk = Walker.walk

    async def walk_slowly(self: Walker, *cursor: Any) -> AsyncIterator[Any]:
        async for step in walk(self, *cursor):
            yield step
        if not cursor:
            # All is counted. What was brought so far, if anything, has been told before that is added up.
            beats = worker.beats
            await wait_until(
                lambda: cluster.master.registry.get_live()[0].pinned_bytes == 6 * PAGE_BYTES or worker.beats > beats + 10,
                "heartbeats",
            )

    monkeypatch.setattr(Walker, "walk", walk_slowly)
    job = await cluster.load("/data")
    assert (job.state, job.reason, job.done_files) == (JobState.DONE, "", 6)


async def test_a_directory_that_cannot_be_listed_is_a_problem(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home", io_timeout_s=1.0)
    await cluster.start()
    try:
        await make(cluster, 9)
        await cluster.stub.resolve_path("/data/d0")
        cluster.stores["s3://bucket/data"].fail("LIST", errors.StoreDenied("no"), always=True)
        dry = await cluster.load("/data", dry_run=True)
        assert (dry.state, dry.failed_files, len(dry.problems)) == (JobState.FAILED, 3, 3)
        assert "could not be counted: /data/d0: no" in dry.reason
        job = await cluster.load("/data")
        assert (job.state, job.done_files) == (JobState.FAILED, 0)
        assert {(p.path, p.code) for p in job.problems} == {(f"/data/d{number}", "store_denied") for number in range(3)}
    finally:
        await cluster.close()


async def test_a_restart_of_the_master_goes_on_with_the_job(tmp_path: Path) -> None:
    count = 8000  # as many as take a while
    cluster = Cluster(tmp_path / "home")
    await cluster.start()
    address = cluster.master.address
    try:
        await make(cluster, count)
        job_id = await cluster.submit("/data")
        async with asyncio.timeout(60):
            async for job in cluster.stub.watch_job(job_id):
                if job.done_files > 300:
                    break
        assert not job.state.ended
        await cluster.stop_master()
        stored = {key for w in cluster.workers for key in w.cached}
        await cluster.start(bind=address)
        # It may have come to its end by now: it goes on as soon as the master is there.
        before = await cluster.stub.get_job(job_id)
        assert before.done_files > 0
        for worker in cluster.workers:
            worker._master = cluster.stub
        job = await cluster.wait_job(job_id)
        assert (job.state, job.done_files, job.total_files) == (JobState.DONE, count, count)
        assert sum(w.fetched_bytes for w in cluster.workers) == count * 1000
        assert stored
    finally:
        await cluster.close()


async def test_thousands_of_small_files_go_in_few_calls(cluster: Cluster) -> None:
    await make(cluster, 2000, size=10)
    job = await cluster.load("/data")
    assert (job.state, job.done_files) == (JobState.DONE, 2000)
    assert sum(worker.calls for worker in cluster.workers) < 200
