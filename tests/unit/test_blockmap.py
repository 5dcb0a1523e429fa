"""The block map against a plain dictionary."""

from array import array

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alluxio_like.master.core.blockmap import BlockDelta, BlockMap, WholeFiles, make_file_id
from alluxio_like.types import PAGE_BYTES, FileId, WorkerId

W = [WorkerId(f"w{n}") for n in range(3)]
# Inodes of one chunk and of others, versions that do and do not fit a slot.
FILES = [make_file_id(inode, version) for inode in (1, 2, 4095, 4096, 5_000_000) for version in (1, 2, 1 << 16, 1 << 33)]

deltas = st.builds(
    BlockDelta,
    st.sampled_from(FILES),
    st.integers(0, 3),
    st.sampled_from([0, 1, 0b11, 0b101, (1 << 64) - 1]),
    st.just(0),
).map(lambda d: BlockDelta(d.file_id, d.block, d.bits, d.bits.bit_count() * PAGE_BYTES - (77 if d.bits & 1 else 0)))


class BlockMapMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.map = BlockMap()
        self.model: dict[WorkerId, dict[tuple[FileId, int], tuple[int, int]]] = {}
        self.building: dict[WorkerId, tuple[str, dict, list]] = {}
        self.count = 0

    @staticmethod
    def put(known: dict, some: list[BlockDelta]) -> None:
        for delta in some:
            if delta.bits:
                known[delta.file_id, delta.block] = (delta.bits, delta.bytes)
            else:
                known.pop((delta.file_id, delta.block), None)

    @rule(worker=st.sampled_from(W), some=st.lists(deltas, max_size=5))
    def change(self, worker: WorkerId, some: list[BlockDelta]) -> None:
        self.map.apply_changes(worker, some)
        self.put(self.model.setdefault(worker, {}), some)
        if worker in self.building:
            self.building[worker][2].extend(some)

    @rule(worker=st.sampled_from(W))
    def begin(self, worker: WorkerId) -> None:
        self.count += 1
        self.map.begin_report(worker, f"s{self.count}")
        self.building[worker] = (f"s{self.count}", {}, [])

    @rule(worker=st.sampled_from(W), some=st.lists(deltas, max_size=5))
    def add(self, worker: WorkerId, some: list[BlockDelta]) -> None:
        assert not self.map.add_report(worker, "another", some)
        if worker in self.building:
            session, known, _ = self.building[worker]
            assert self.map.add_report(worker, session, some)
            self.put(known, some)

    @rule(worker=st.sampled_from(W), some=st.lists(st.tuples(st.sampled_from(FILES), st.sampled_from([1, 77, PAGE_BYTES + 5]))))
    def add_whole(self, worker: WorkerId, some: list[tuple[FileId, int]]) -> None:
        fitting = [(file, size) for file, size in some if file.version < 1 << 32]
        files = WholeFiles(
            array("Q", [file.inode for file, _ in fitting]),
            array("I", [file.version for file, _ in fitting]),
            array("I", [size for _, size in fitting]),
        )
        assert not self.map.add_whole_files(worker, "another", files)
        if worker in self.building:
            session, known, _ = self.building[worker]
            assert self.map.add_whole_files(worker, session, files)
            self.put(known, [BlockDelta(file, 0, (1 << -(-size // PAGE_BYTES)) - 1, size) for file, size in fitting])

    @rule(chunks=st.integers(1, 2))
    def sweep_some(self, chunks: int) -> None:
        self.map.sweep_some(chunks, force=True)

    @rule(worker=st.sampled_from(W))
    def finish(self, worker: WorkerId) -> None:
        if worker in self.building:
            session, known, journal = self.building.pop(worker)
            assert self.map.finish_report(worker, session)
            self.put(known, journal)
            self.model[worker] = known

    @rule(worker=st.sampled_from(W))
    def drop_worker(self, worker: WorkerId) -> None:
        self.map.drop_worker(worker)
        self.model.pop(worker, None)
        self.building.pop(worker, None)

    @rule(file=st.sampled_from(FILES))
    def drop_file(self, file: FileId) -> None:
        if not self.building:
            self.map.drop_file(file)
            for known in self.model.values():
                for key in [key for key in known if key[0] == file]:
                    del known[key]

    @rule()
    def sweep(self) -> None:
        self.map.sweep()

    @invariant()
    def agrees(self) -> None:
        for file in FILES:
            got = {(h.worker_id, h.block): (h.bits, h.bytes) for h in self.map.get_holdings(file)}
            assert len(got) == len(self.map.get_holdings(file))
            want = {(w, k[1]): v for w, known in self.model.items() for k, v in known.items() if k[0] == file}
            assert got == want
        for worker in W:
            known = self.model.get(worker, {})
            assert self.map.get_worker_totals(worker) == (len(known), sum(size for _, size in known.values()))
            assert self.map.has_reported(worker) == (worker in self.model)


TestBlockMap = BlockMapMachine.TestCase
TestBlockMap.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_whole_small_files_cost_eight_bytes_a_copy() -> None:
    known = BlockMap()
    worker = WorkerId("w")
    known.apply_changes(worker, (BlockDelta(make_file_id(inode, 1), 0, 1, 110_000) for inode in range(1, 20_481)))
    assert known.get_memory_bytes() <= 6 * 4096 * 8
    assert known.get_worker_totals(worker) == (20_480, 20_480 * 110_000)


def test_generations_are_reused_over_many_reports() -> None:
    known = BlockMap()
    worker = WorkerId("w")
    file = make_file_id(7, 1)
    for number in range(500):
        known.begin_report(worker, str(number))
        known.add_report(worker, str(number), [BlockDelta(file, 0, 1, number + 1)])
        known.finish_report(worker, str(number))
        assert [h.bytes for h in known.get_holdings(file)] == [number + 1]
    known.sweep()
    assert known.get_memory_bytes() <= 4096 * 8
