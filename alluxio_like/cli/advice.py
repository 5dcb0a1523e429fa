"""What would help a job or a file that waits: rules over its entry in the books.

Owns the rules; each says its evidence. Pure functions of plain values: what the master knows is looked up before (`Facts`).
"""

from dataclasses import dataclass
from typing import Any

from alluxio_like.cli.rates import CAUSES
from alluxio_like.cli.render import show_size

_WORTH_SHARE = 0.1
_WORTH_S = 0.1
"""Waiting that is less is not worth a word. Guesses."""
_MUCH_UNSEEN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known beside the books. Sizes in bytes; negative: not known."""

    mountpoint: str = ""
    why_not: tuple[str, ...] = ()
    """Why the kernel does not read (some) files by itself."""
    path: str = ""
    """What is to be loaded: where all that was waited for lies below."""
    missing_bytes: int = -1
    """Of `path`, not cached anywhere yet."""
    free_bytes: int = -1
    """In the caches of the cluster."""
    stored_whole: bool = False
    """All of `path` is cached somewhere by now."""
    limited_buckets: tuple[str, ...] = ()
    loads_running: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen, and what would help."""

    evidence: str
    help: str


def advise(entry: dict[str, Any], facts: Facts) -> list[Advice]:
    """What would help, what matters most first."""
    waits: dict[str, float] = entry["waits_s"]
    total_s = sum(waits.values())
    found: list[Advice] = []
    for cause in sorted(CAUSES, key=lambda one: waits[one], reverse=True):
        if waits[cause] >= _WORTH_S and waits[cause] >= _WORTH_SHARE * total_s:
            share = f"{100 * waits[cause] / total_s:.0f} % of the wait ({waits[cause]:.1f} s) was"
            found.append(_ADVICE[cause](share, entry, facts))
    found += _advise_on_modes(entry, facts)
    if entry.get("unseen_disk_bytes", 0) > max(_MUCH_UNSEEN_BYTES, entry["passthrough_bytes"]):
        size = show_size(entry["unseen_disk_bytes"])
        found.append(
            Advice(
                f"its process read {size} from disks by mapped files or asynchronous reads (io_uring, libaio)",
                "nothing: such reads of files that the kernel reads by itself are not in the figures above",
            )
        )
    return found


def _advise_on_store(share: str, _entry: dict[str, Any], facts: Facts) -> Advice:
    path = facts.path or f"{facts.mountpoint}/PATH"
    if facts.stored_whole:
        return Advice(f"{share} for the store", f"it was cold: all of {path} is cached by now, the next run does not wait")
    fits = ""
    if facts.missing_bytes >= 0 and facts.free_bytes >= 0:
        enough = facts.missing_bytes <= facts.free_bytes
        end = "it fits" if enough else "it does not fit: load a part, or add cache"
        fits = f" (needs {show_size(facts.missing_bytes)}, {show_size(facts.free_bytes)} free: {end})"
    return Advice(f"{share} for the store", f"load it before the job: cache load {path}{fits}")


def _advise_on_peer(share: str, _entry: dict[str, Any], facts: Facts) -> Advice:
    path, host = facts.path or f"{facts.mountpoint}/PATH", facts.host or "HOST"
    return Advice(
        f"{share} for other workers: the bytes are in the cluster, but not on this machine",
        f"copies here, if there is room: cache load --hosts {host} {path}",
    )


def _advise_on_fill(share: str, _entry: dict[str, Any], _facts: Facts) -> Advice:
    return Advice(
        f"{share} for this machine's cache disk to take what came",
        "a faster disk, or several (--cache-dir may be repeated); see whether it is busy otherwise",
    )


def _advise_on_metadata(share: str, entry: dict[str, Any], _facts: Facts) -> Advice:
    count = f"{entry['metadata_waits']:,} requests"
    return Advice(
        f"{share} for names and attributes ({count})",
        "listings are believed for the mount's sync interval: make it longer (alluxio-like mount --sync-interval), or list all"
        " of it before the job (cache load does)",
    )


def _advise_on_queue(share: str, _entry: dict[str, Any], facts: Facts) -> Advice:
    if facts.limited_buckets:
        return Advice(
            f"{share} for a turn: {', '.join(facts.limited_buckets)} asks for less (SlowDown)",
            "fewer, larger objects, or more prefixes and a higher limit with the store; load before the job: cache load",
        )
    if facts.loads_running:
        return Advice(f"{share} for a turn, beside {facts.loads_running} running load(s)", "let loads end before the job begins")
    return Advice(
        f"{share} for a turn at the worker: more is asked for at once than it fetches",
        "more requests at once, if the store bears them (the worker's setting fetch_concurrency); or load before: cache load",
    )


def _advise_on_other(share: str, _entry: dict[str, Any], _facts: Facts) -> Advice:
    return Advice(
        f"{share} for nothing that was told: calls between processes, a worker that is gone or overloaded",
        "see whether workers answer (alluxio-like workers), and whether CPUs are free",
    )


_ADVICE = {
    "store": _advise_on_store,
    "peer": _advise_on_peer,
    "fill": _advise_on_fill,
    "metadata": _advise_on_metadata,
    "queue": _advise_on_queue,
    "other": _advise_on_other,
}


def _advise_on_modes(entry: dict[str, Any], facts: Facts) -> list[Advice]:
    opens: dict[str, int] = entry["opens"]
    count, read = sum(opens.values()), entry["read_bytes"]
    by_daemon = opens.get("cached", 0) + opens.get("direct", 0)
    if not count or by_daemon < max(1, count // 10) or not read:
        return []
    evidence = f"{by_daemon:,} of {count:,} opens, {show_size(read)}, were not read by the kernel itself"
    if facts.why_not:
        return [Advice(f"{evidence}: {'; '.join(facts.why_not)}", "see alluxio-like doctor")]
    return [
        Advice(
            f"{evidence}: the files were not wholly on this machine when they were opened",
            "load before the job, or let opens wait for them: alluxio-like fuse --open-wait SIZE",
        )
    ]
