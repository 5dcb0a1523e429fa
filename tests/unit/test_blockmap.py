"""The block map against a plain dictionary."""

import random
from array import array
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alluxio_like.master.core.blockmap import BlockDelta, BlockMap, Holding, WholeFiles, make_file_id
from alluxio_like.types import BLOCK_BYTES, PAGE_BYTES, FileId, WorkerId

W = [WorkerId(f"w{n}") for n in range(3)]
# Inodes of one leaf, of one part, of others, and those that no slot has, as a snapshot's; versions that do and do not fit.
INODES = (1, 2, 511, 512, 4095, 4096, 5_000_000, (1 << 36) - 1, 1 << 36, 1 << 44 | 7, (1 << 64) - 1)
LEAF_BYTES = 4096 + 12
FILES = [make_file_id(inode, version) for inode in INODES for version in (1, 2, 1 << 16, 1 << 33)]

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

    @rule(leaves=st.integers(1, 2))
    def sweep_some(self, leaves: int) -> None:
        self.map.sweep_some(leaves, force=True)

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
        told = [*self.model.values(), *(known for _, known, _ in self.building.values())]
        parts = [self.map.list_files(part) for part in self.map.list_parts()]
        assert set().union(*parts) == {file for known in told for file, _ in known}
        assert sum(map(len, parts)) == len(set().union(*parts))


TestBlockMap = BlockMapMachine.TestCase
TestBlockMap.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_whole_small_files_cost_eight_bytes_a_copy() -> None:
    known = BlockMap()
    worker = WorkerId("w")
    known.apply_changes(worker, (BlockDelta(make_file_id(inode, 1), 0, 1, 110_000) for inode in range(1, 20_481)))
    assert known.get_memory_bytes() <= 41 * LEAF_BYTES
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
    assert known.get_memory_bytes() <= LEAF_BYTES


def report(known: BlockMap, worker: WorkerId, files: list[tuple[int, int, int]], messages: int = 1) -> None:
    known.begin_report(worker, "s")
    for number in range(messages):
        inodes, versions, sizes = zip(*files[number::messages], strict=True)
        assert known.add_whole_files(worker, "s", WholeFiles(array("Q", inodes), array("I", versions), array("I", sizes)))
    assert known.finish_report(worker, "s")


def test_columns_of_many_workers_say_what_a_dictionary_would() -> None:
    """Thousands of files a message, in any order, some twice, over leaves that have several copies and are taken anew."""
    chooser = random.Random(7)
    known = BlockMap()
    model: dict[WorkerId, dict[FileId, int]] = {}
    for step in range(40):
        worker = WorkerId(f"w{chooser.randrange(6)}")
        inodes = [chooser.choice((0, 1 << 20, (1 << 36) - 9000, 1 << 44)) + chooser.randrange(9000) for _ in range(3000)]
        files = [(inode, chooser.choice((1, 1, 1, 2, 1 << 16)), chooser.randrange(1, BLOCK_BYTES + 1)) for inode in inodes]
        if chooser.random() < 0.5:
            files.sort()
        report(known, worker, files, messages=3)
        # The columns of a message hold in their order.
        ordered = [file for number in range(3) for file in files[number::3]]
        model[worker] = {make_file_id(inode, version): size for inode, version, size in ordered}
        if step % 10 == 3:
            known.drop_worker(worker)
            del model[worker]
        if step % 3 == 0:
            known.sweep_some(force=True)
        assert known.get_worker_totals(worker)[1] == sum(model.get(worker, {}).values())
    everything = set().union(*model.values())
    for file in everything:
        want = {worker: files[file] for worker, files in model.items() if file in files}
        assert {holding.worker_id: holding.bytes for holding in known.get_holdings(file)} == want
        assert len(known.get_holdings(file)) == len(want)
    assert set().union(*map(known.list_files, known.list_parts())) == everything


@pytest.mark.parametrize(
    "columns",
    [
        ([1, 2], [1], [5, 5]),
        ([1, 2], [1, 1], [5]),
        ([1], [1, 1], [5]),
        ([1, 2], [1, 1], [5, 0]),
        ([1, 2], [1, 1], [5, BLOCK_BYTES + 1]),
    ],
)
def test_columns_that_cannot_be_are_refused_whole(columns: tuple[list[int], list[int], list[int]]) -> None:
    known = BlockMap()
    worker = WorkerId("w")
    known.begin_report(worker, "s")
    with pytest.raises(ValueError):
        known.add_whole_files(worker, "s", WholeFiles(array("Q", columns[0]), array("I", columns[1]), array("I", columns[2])))
    assert known.finish_report(worker, "s")
    assert known.get_worker_totals(worker) == (0, 0) and known.list_parts() == []


def test_a_file_that_is_everywhere_makes_nothing_of_its_neighbours() -> None:
    """600 copies of one file: 600 leaves for its 512 inodes, and no second one for those beside them."""
    known = BlockMap()
    report(known, WorkerId("one"), [(inode, 1, 7) for inode in range(100_000)])
    before = known.get_memory_bytes()
    for number in range(600):
        report(known, WorkerId(f"w{number}"), [(50_000, 1, 7)])
    assert known.get_memory_bytes() - before == 600 * LEAF_BYTES
    assert len(known.get_holdings(make_file_id(50_000, 1))) == 601


def test_columns_replace_what_the_same_report_told_in_another_way() -> None:
    known = BlockMap()
    worker, file = WorkerId("w"), make_file_id(5, 1)
    known.begin_report(worker, "s")
    assert known.add_report(worker, "s", [BlockDelta(file, 0, 0b101, 9)])
    assert known.add_whole_files(worker, "s", WholeFiles(array("Q", [5, 6]), array("I", [1, 1]), array("I", [7, 8])))
    assert known.finish_report(worker, "s")
    assert known.get_holdings(file) == [Holding(worker, 0, 1, 7)]
    assert known.get_worker_totals(worker) == (2, 15)


def test_places_of_gone_copies_are_taken_from_the_front() -> None:
    known = BlockMap()
    report(known, WorkerId("stays"), [(6, 1, 7)])
    for number in range(3):
        report(known, WorkerId(f"w{number}"), [(5, 1, 7)])
    assert known.get_memory_bytes() == 3 * LEAF_BYTES
    for number in range(3):
        known.drop_worker(WorkerId(f"w{number}"))
    report(known, WorkerId("new"), [(5, 1, 7)])
    assert known.get_memory_bytes() == 3 * LEAF_BYTES
    known.sweep()
    assert known.get_memory_bytes() == LEAF_BYTES
    assert [holding.worker_id for holding in known.get_holdings(make_file_id(5, 1))] == ["new"]


def test_memory_that_is_used_again_remembers_nothing() -> None:
    known = BlockMap()
    for worker in W[:2]:
        report(known, worker, [(5, 1, 7)])
    known.drop_worker(W[0])
    known.sweep()
    report(known, W[2], [(5 + 512 * 100, 1, 7)])
    assert [holding.worker_id for holding in known.get_holdings(make_file_id(5 + 512 * 100, 1))] == [W[2]]
    assert [holding.worker_id for holding in known.get_holdings(make_file_id(5, 1))] == [W[1]]


def test_files_far_apart_cost_a_page_each_and_it_is_given_back() -> None:
    """Of the process too, not only of what is counted."""
    known = BlockMap()
    worker = WorkerId("w")
    before = get_resident_bytes()
    report(known, worker, [(inode, 1, 7) for inode in range(1, 1 << 27, 1 << 14)])
    assert known.get_memory_bytes() == 8192 * LEAF_BYTES
    assert 8192 * 4096 < get_resident_bytes() - before < 8192 * 4096 * 1.25
    known.drop_worker(worker)
    known.sweep()
    assert known.get_memory_bytes() == 0 and known.list_parts() == []
    # What pointed to the leaves stays.
    assert get_resident_bytes() - before < 8192 * 4096 / 2
    report(known, worker, [(inode, 1, 7) for inode in range(1, 8192)])
    assert known.get_holdings(make_file_id(8191, 1)) and not known.get_holdings(make_file_id(1 + (1 << 14), 1))


def get_resident_bytes() -> int:
    """Anonymous memory of this process."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
