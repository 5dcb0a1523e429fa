"""What is measured and how: time, CPU seconds, resident memory, results with their aims.

Owns the result records and the files they are written to (JSON, a Markdown table, plots). Not thread-safe.
"""

import json
import mmap
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
MB = 1_000_000


def get_descendants(pid: int) -> list[int]:
    """A process and all its living descendants."""
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        try:
            tasks = list(Path(f"/proc/{current}/task").iterdir())
        except OSError:
            continue
        for task in tasks:
            try:
                queue += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
    return found


def get_cpu_seconds(pids: Sequence[int]) -> float:
    """User and system seconds the processes have used, those of children they have waited for included."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(value) for value in fields[11:15])
    return total / TICKS


def get_rss_bytes(pid: int) -> int:
    """Resident memory of one process now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no VmRSS in /proc/{pid}/status")


def get_anonymous_bytes(pid: int) -> int:
    """Resident memory that is not a file's: what the process itself allocated."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no RssAnon in /proc/{pid}/status")


def drop_page_cache() -> None:
    """Write back and forget all page cache and dentries (needs root)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def back_memory(size_bytes: int = 3 << 30) -> None:
    """Touch free memory, so that the page cache grows into memory that is really there.

    A virtual machine's host may take free memory back and give it again at the first touch, at 1 to 2.5 s for each GiB where
    this was written (pwrite into a new file: 0.6 to 5 GB/s, by that alone). Who writes first pays, and it hides what is measured.
    """
    block = b"\1" * (1 << 20)
    with mmap.mmap(-1, size_bytes) as memory:
        for offset in range(0, size_bytes, len(block)):
            memory[offset : offset + len(block)] = block[: size_bytes - offset]


@dataclass
class Timing:
    """What `timed` saw."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextmanager
def timed(pids: Sequence[int] = ()) -> Iterator[Timing]:
    """Wall seconds of the block, and the CPU seconds `pids` used meanwhile."""
    timing = Timing()
    cpu = get_cpu_seconds(pids)
    start = time.perf_counter()
    yield timing
    timing.seconds = time.perf_counter() - start
    timing.cpu_seconds = get_cpu_seconds(pids) - cpu


@dataclass
class Result:
    """One figure beside what it is compared with.

    `ratio` is ours over the reference; `aim` is the least it should be, or with `at_most` the most.
    """

    name: str
    ours: float
    reference: float
    unit: str
    aim: float | None = None
    at_most: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.ours / self.reference if self.reference else float("nan")

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.ratio <= self.aim if self.at_most else self.ratio >= self.aim


def describe_machine() -> dict[str, Any]:
    """The machine in a few words, without its name."""
    with open("/proc/meminfo") as meminfo:
        memory = int(meminfo.readline().split()[1]) * 1024
    return {"cores": os.cpu_count(), "memory_bytes": memory, "kernel": platform.release(), "python": platform.python_version()}


def render_table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| what | ours | reference | unit | ratio | aim | met |", "|---|---|---|---|---|---|---|"]
    for r in results:
        aim = "" if r.aim is None else f"{'<=' if r.at_most else '>='} {r.aim:g}"
        met = {None: "", True: "yes", False: "**no**"}[r.met]
        lines.append(f"| {r.name} | {r.ours:.4g} | {r.reference:.4g} | {r.unit} | {r.ratio:.2f} | {aim} | {met} |")
    return "\n".join(lines) + "\n"


def write_results(directory: Path, results: Sequence[Result]) -> None:
    """results.json, results.md and results.png under `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [asdict(r) | {"ratio": r.ratio, "met": r.met} for r in results]
    (directory / "results.json").write_text(json.dumps({"machine": describe_machine(), "results": rows}, indent=1) + "\n")
    (directory / "results.md").write_text(render_table(results))
    plot_results(directory / "results.png", results)


def plot_results(path: Path, results: Sequence[Result]) -> None:
    """Ratios as bars, with their aims marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [r for r in results if r.aim and r.ratio == r.ratio]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(10, 0.45 * len(shown) + 1.2))
    names = [r.name for r in shown]
    relative = [(r.aim / r.ratio if r.ratio else 1) if r.at_most else r.ratio / r.aim for r in shown if r.aim]
    axes.barh(names, relative, color=["tab:green" if r.met else "tab:red" for r in shown])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("how far beyond its aim (1 = just met)")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
