"""PyTorch on a mount: models that are saved, loaded and mapped, and distributed checkpoints of ranks on several machines.

Run by the distribution's Python and torch, since a wheel of torch for this architecture brings gigabytes of what a GPU needs.
"""

import functools
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.conftest import workplace
from tests.cluster.writing import mounted_again, start_written
from tests.programs.conftest import Run
from tests.servers.fixtures import S3Server

__all__ = ["workplace"]

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
]

PYTHON = "/usr/bin/python3"


@functools.cache
def has_torch() -> bool:
    return subprocess.run([PYTHON, "-c", "import torch"], capture_output=True, check=False).returncode == 0


@pytest.fixture(autouse=True)
def torch_is_there() -> None:
    if not has_torch():
        pytest.skip("no torch for the system's Python (Debian has python3-torch, Ubuntu 24.04 has none)")


SAVING = """
import os, sys
import torch

torch.manual_seed(1)
model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.ReLU(), torch.nn.Linear(500, 10))
optimizer = torch.optim.Adam(model.parameters())
for step in range(3):
    model(torch.randn(16, 300)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with open("next.pt", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace("next.pt", "latest.pt")
    torch.save(state, f"step{step}.pt")
    # In the format before that of zip, too, which is written and read by pickles and from any place of the file.
    torch.save(state, f"step{step}.tar", _use_new_zipfile_serialization=False)
torch.jit.script(model).save("script.pt")
"""

LOADING = """
import inspect, os, sys
import torch

def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other

latest = torch.load("latest.pt")
assert latest["step"] == 2
ways = [{}, {"mmap": True}] if "mmap" in inspect.signature(torch.load).parameters else [{}]
for step in range(3):
    states = [torch.load(f"step{step}.pt", **way) for way in ways] + [torch.load(f"step{step}.tar")]
    assert all(same(states[0], state) for state in states)
    assert same(states[0], latest) == (step == 2)

model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.ReLU(), torch.nn.Linear(500, 10))
model.load_state_dict(latest["model"])
data = torch.ones(4, 300)
assert torch.equal(torch.jit.load("script.pt")(data), model(data))

# What is mapped stays what it was when a later checkpoint takes its name.
mapped = torch.load("latest.pt", **ways[-1])
os.replace("step0.pt", "latest.pt")
assert same(mapped, latest)
assert torch.load("latest.pt")["step"] == 0
"""

MAPPING = """
import torch

# As several processes share a tensor by a file that all of them map.
shared = torch.from_file("shared.bin", shared=True, size=1_000_000, dtype=torch.float32)
shared.copy_(torch.arange(1_000_000))
again = torch.from_file("shared.bin", shared=True, size=1_000_000, dtype=torch.float32)
again[::1000] = -1.0
assert (shared[::1000] == -1.0).all()
private = torch.from_file("shared.bin", shared=False, size=1_000_000, dtype=torch.float32)
private.zero_()
del shared, again, private
found = torch.frombuffer(bytearray(open("shared.bin", "rb").read()), dtype=torch.float32)
assert (found[::1000] == -1.0).all() and found[999_999] == 999_999 and found[1] == 1
"""


def test_a_model_is_saved_loaded_and_mapped(place: Path, run: Run) -> None:
    run(PYTHON, "-c", SAVING)
    assert sorted(os.listdir(place)) == sorted(
        ["latest.pt", "script.pt", *(f"step{step}.{kind}" for step in range(3) for kind in ("pt", "tar"))]
    )
    run(PYTHON, "-c", LOADING)
    run(PYTHON, "-c", MAPPING)


RANKS = """
import functools, json, os, sys
import torch

if torch.__version__.startswith("1."):
    # This version's own modules keep mutable defaults in data classes, which Python 3.11 takes for a mistake where they cannot
    # be hashed.
    import dataclasses
    plain = dataclasses.dataclass

    def hashable(cls=None, /, **options):
        if cls is None:
            return functools.partial(hashable, **options)
        made = plain(cls, **options)
        if made.__hash__ is None:
            made.__hash__ = object.__hash__
        return made

    dataclasses.dataclass = hashable
    import torch.distributed._shard.checkpoint as checkpoint
else:
    import torch.distributed.checkpoint as checkpoint
import torch.distributed as distributed
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec

ROWS, COLUMNS = 1001, 512
WHOLE = torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS)
task, root, meeting, rank, ranks = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])


def make_state():
    spec = ChunkShardingSpec(dim=0, placements=[f"rank:{n}/cpu" for n in range(ranks)])
    return {"weight": sharded_tensor.zeros(spec, ROWS, COLUMNS), "bias": torch.zeros(COLUMNS), "step": 0}


def get_part(shard, step):
    start, rows = shard.metadata.shard_offsets[0], shard.tensor.shape[0]
    return WHOLE[start : start + rows] + step


if task == "alone":  # by one process, without a group
    for step in (1, 2):
        state = {"weight": torch.zeros(ROWS, COLUMNS), "bias": torch.zeros(COLUMNS), "step": 0}
        checkpoint.load_state_dict(state, checkpoint.FileSystemReader(f"{root}/step{step}"), no_dist=True)
        assert torch.equal(state["weight"], WHOLE + step) and (state["bias"] == step).all() and state["step"] == step
    sys.exit()

distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
for step in (1, 2):
    state = make_state()
    if task == "save":
        for shard in state["weight"].local_shards():
            shard.tensor.copy_(get_part(shard, step))
        state["bias"].fill_(step)
        state["step"] = step
        checkpoint.save_state_dict(state, checkpoint.FileSystemWriter(f"{root}/step{step}"))
    else:
        checkpoint.load_state_dict(state, checkpoint.FileSystemReader(f"{root}/step{step}"))
        assert state["step"] == step and (state["bias"] == step).all()
        for shard in state["weight"].local_shards():
            assert torch.equal(shard.tensor, get_part(shard, step))
distributed.barrier()
distributed.destroy_process_group()
"""


def run_ranks(task: str, places: list[Path], meetings: Path) -> None:
    """A job of as many ranks as there are places, each of which knows its own place alone. They find each other by a file of a
    directory that all of them see."""
    meeting = meetings / f"{task} of {len(places)}"

    def run(rank: int) -> None:
        command = [PYTHON, "-c", RANKS, task, places[rank], meeting, rank, len(places)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{task}, rank {rank}: {done.returncode}\n{done.stderr[-4000:]}"

    with ThreadPoolExecutor(len(places)) as ranks:
        list(ranks.map(run, range(len(places))))


def test_ranks_share_a_directory(place: Path) -> None:
    """The directory in which they find each other is this one, too: torch locks the file and appends to it."""
    run_ranks("save", [place, place], place)
    run_ranks("load", [place, place, place], place)
    run_ranks("alone", [place], place)


@pytest.fixture
def machines(s3_server: S3Server, s3_bucket: str, workplace: Path) -> Iterator[list[Path]]:
    """Two mounts as on two machines, each with a worker of its own."""
    with (
        start_written(workplace, f"s3://{s3_bucket}", s3_server.environment, workers=2) as stack,
        mounted_again(stack, workplace, "mnt1", hidden_worker=2) as first,
        mounted_again(stack, workplace, "mnt2", hidden_worker=1) as second,
    ):
        yield [first / "data", second / "data"]


def test_ranks_on_two_machines_save_one_checkpoint(
    machines: list[Path], s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    here, there = machines
    run_ranks("save", [here, there], tmp_path)
    run_ranks("load", [there, here], tmp_path)  # each part is read where it was not written
    run_ranks("load", [there], tmp_path)
    for place in machines:
        run_ranks("alone", [place], tmp_path)
    for step in (1, 2):
        found = {path.name: path.read_bytes() for path in (there / f"step{step}").iterdir()}
        assert ".metadata" in found
        for name, data in found.items():
            assert s3_server.get(s3_bucket, f"step{step}/{name}") == data
