"""What happened between two looks into the books of a mount, as rows.

Owns the arithmetic; pure functions of plain values.
"""

from dataclasses import dataclass, field
from typing import Any

CAUSES = ("store", "peer", "fill", "metadata", "queue", "other")


@dataclass(slots=True)
class Row:
    """What one job, command, group or file did in `seconds`. `waits_s` add up to more than that where several threads wait."""

    label: str
    pid: int = 0
    processes: int = 1
    seconds: float = 1.0
    read_bytes: int = 0
    waited_bytes: int = 0
    brought_bytes: int = 0
    passthrough_bytes: int = 0
    opens: dict[str, int] = field(default_factory=dict)
    waits_s: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_per_s(self) -> float:
        return (self.read_bytes + self.passthrough_bytes) / self.seconds

    @property
    def files_per_s(self) -> float:
        return sum(self.opens.values()) / self.seconds

    @property
    def wait_s(self) -> float:
        return sum(self.waits_s.values())

    @property
    def hit_ratio(self) -> float | None:
        """The share of bytes that were at hand; None when nothing was read."""
        total = self.read_bytes + self.passthrough_bytes
        missed = self.waited_bytes + min(self.brought_bytes, self.passthrough_bytes)
        return max(0.0, total - missed) / total if total else None

    @property
    def mode(self) -> str:
        """How most of it was served."""
        if self.passthrough_bytes or self.read_bytes:
            by_kernel = self.passthrough_bytes / (self.passthrough_bytes + self.read_bytes)
            return "pass" if by_kernel > 0.9 else "read" if by_kernel < 0.1 else "mixed"
        best = max(self.opens, key=lambda mode: self.opens[mode], default="")
        return {"passthrough": "pass", "cached": "read", "direct": "read"}.get(best if self.opens.get(best) else "", "-")

    @property
    def is_idle(self) -> bool:
        return not (self.read_bytes or self.passthrough_bytes or self.wait_s or any(self.opens.values()))

    def show_causes(self) -> str:
        """What most of the waiting was for."""
        parts = sorted(self.waits_s.items(), key=lambda item: item[1], reverse=True)
        return " ".join(f"{name} {100 * part / self.wait_s:.0f}%" for name, part in parts[:2] if part > 0.01 * self.wait_s)

    def to_plain(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "label": self.label,
            "pid": self.pid,
            "processes": self.processes,
            "seconds": round(self.seconds, 3),
            "bytes_per_s": round(self.bytes_per_s, 1),
            "passthrough_bytes_per_s": round(self.passthrough_bytes / self.seconds, 1),
            "files_per_s": round(self.files_per_s, 2),
            "hit_ratio": self.hit_ratio,
            "mode": self.mode,
            "wait_s_per_s": round(self.wait_s / self.seconds, 4),
            "waits_s": {name: round(part, 6) for name, part in self.waits_s.items()},
        }


def subtract(after: dict[str, Any], before: dict[str, Any] | None, label: str, seconds: float) -> Row:
    """What came to a tally; `before` None: it was not there."""
    was = before or {}

    def less(name: str) -> int:
        return max(0, int(after[name]) - int(was.get(name, 0)))

    return Row(
        label,
        seconds=seconds,
        read_bytes=less("read_bytes"),
        waited_bytes=less("waited_bytes"),
        brought_bytes=less("brought_bytes"),
        passthrough_bytes=less("passthrough_bytes"),
        opens={mode: max(0, count - was.get("opens", {}).get(mode, 0)) for mode, count in after["opens"].items()},
        waits_s={cause: max(0.0, after["waits_s"][cause] - was.get("waits_s", {}).get(cause, 0.0)) for cause in CAUSES},
    )


def to_tally(row: Row) -> dict[str, Any]:
    """A row in the form of the books."""
    return {
        "read_bytes": row.read_bytes,
        "waited_bytes": row.waited_bytes,
        "brought_bytes": row.brought_bytes,
        "passthrough_bytes": row.passthrough_bytes,
        "opens": row.opens,
        "waits_s": {cause: row.waits_s.get(cause, 0.0) for cause in CAUSES},
    }


def add(row: Row, other: Row) -> None:
    """Count another one's doings as `row`'s too."""
    row.processes += other.processes
    row.read_bytes += other.read_bytes
    row.waited_bytes += other.waited_bytes
    row.brought_bytes += other.brought_bytes
    row.passthrough_bytes += other.passthrough_bytes
    for mode, count in other.opens.items():
        row.opens[mode] = row.opens.get(mode, 0) + count
    for cause, part in other.waits_s.items():
        row.waits_s[cause] = row.waits_s.get(cause, 0.0) + part


@dataclass(frozen=True, slots=True)
class Rates:
    """One interval of one mount: all of it, its jobs (or commands, or groups) and its files, the busiest first."""

    total: Row
    jobs: list[Row]
    files: list[Row]
    waiting: list[dict[str, Any]] = field(default_factory=list)
    """Requests that wait now, which the rows do not know of yet."""


def compute(before: dict[str, Any], after: dict[str, Any], by: str = "pid") -> Rates:
    """What happened between two looks. `by`: pid, command or group."""
    seconds = max(after["clock_s"] - before["clock_s"], 1e-3)
    old_jobs = {(job["pid"], job["birth"]): job for job in before["jobs"]}
    merged: dict[Any, Row] = {}
    known = Row("known", seconds=seconds)
    for job in after["jobs"]:
        label = job["name"] or "?"
        row = subtract(job, old_jobs.get((job["pid"], job["birth"])), label, seconds)
        row.pid = job["pid"]
        if row.is_idle:
            continue
        add(known, row)
        key: Any = (job["pid"], job["birth"])
        if by != "pid":
            key = row.label = label if by == "command" else (job["group"] or "-")
        if key in merged:
            add(merged[key], row)
            merged[key].pid = 0
        else:
            merged[key] = row
    total = subtract(after["total"], before["total"], "total", seconds)
    old_files = {file["inode"]: file for file in before["files"]}
    # One that was not shown before, though it was there, has a past that is not this interval's.
    files = [
        subtract(file, old_files.get(file["inode"]), file["key"], seconds)
        for file in after["files"]
        if file["inode"] in old_files or file["first_s"] >= before["clock_s"]
    ]
    # What was forgotten meanwhile was added to the others with all its past; this is right in any case.
    others = subtract(to_tally(total), to_tally(known), "others", seconds)
    jobs = [*merged.values(), *([] if others.is_idle else [others])]
    return Rates(
        total,
        sorted(jobs, key=_busy, reverse=True),
        sorted((row for row in files if not row.is_idle), key=_busy, reverse=True),
        after.get("waiting", []),
    )


def _busy(row: Row) -> tuple[float, float, float]:
    return row.bytes_per_s, row.wait_s, row.files_per_s
