"""The command `why`: what a job or a file waited for, its worst files, and what would help.

Owns what it prints, and the asking of the master for what the advice needs. One command a process.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from alluxio_like.cli.advice import Advice, Facts, advise
from alluxio_like.cli.common import JsonOption, MasterOption, load_client_config, open_client, print_json, run_async
from alluxio_like.cli.mounted import LocalMount, ask_books, get_inode
from alluxio_like.cli.rates import CAUSES
from alluxio_like.cli.render import print_table, show_name, show_percent, show_seconds, show_size
from alluxio_like.cli.top import choose_mounts
from alluxio_like.errors import AlluxioLikeError, NotFound, Unavailable
from alluxio_like.types import Worker

_BAR = 30


def why(
    target: Annotated[str, typer.Argument(metavar="PID|PATH", help="A process, also one that has ended; or a file on a mount.")],
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """What a job or a file waited for, its worst files, and what would help.

    \b
    Examples:
      alluxio-like why 12345
      alluxio-like why /mnt/data/train/7.jpg --json
    """
    is_pid = target.isdecimal() and not os.path.lexists(target)
    mount, books, entry = _find_job(int(target)) if is_pid else _find_file(target)
    worst = entry.get("worst", [])
    facts = run_async(_gather_facts(mount, books, [*worst, *([] if is_pid else [entry])], master))
    found = advise(entry, facts)
    pids = {int(target), *entry.get("child_pids", [])} if is_pid else set()
    waiting = [one for one in books.get("waiting", []) if one["pid"] in pids]
    if as_json:
        kind = "job" if is_pid else "file"
        print_json({"mountpoint": mount.mountpoint, "session": mount.session, kind: entry, "waiting": waiting, "advice": found})
        return
    print(_head_job(entry, mount) if is_pid else _head_file(entry, mount))
    _print_waits(entry)
    if waiting:
        print(
            f"\nWaiting now, and not counted yet: {len(waiting)} request(s), the longest ({waiting[0]['what']}) for"
            f" {waiting[0]['seconds']:.1f} s"
        )
    if worst:
        print("\nThe files that it waited for most, or read most of:")
        _print_worst(worst)
    if entry.get("jobs"):
        print("\nBy whom:")
        _print_jobs(entry["jobs"])
    _print_advice(found)


def _find_job(pid: int) -> tuple[LocalMount, dict[str, Any], dict[str, Any]]:
    """The mount that remembers a process, its books, and the entry; of the mounts the one it waited for or read from most."""
    ca = load_client_config().tls.ca
    found: list[tuple[LocalMount, dict[str, Any], dict[str, Any]]] = []
    problems: list[str] = []
    for mount in choose_mounts():
        try:
            books = ask_books(mount, ca=ca)
        except Unavailable as error:
            problems.append(error.message)
            continue
        jobs = {job["pid"]: job for job in books["jobs"] if job["pid"] > 0}
        if pid in jobs:
            found.append((mount, books, ask_books(mount, {"pid": str(pid)}, ca=ca)["job"]))
            continue
        children = [job["pid"] for job in jobs.values() if job["parent"] == pid]
        if children:
            entries = [ask_books(mount, {"pid": str(child)}, ca=ca)["job"] for child in children]
            found.append((mount, books, merge(pid, entries)))
            continue
        if any(one["pid"] == pid for one in books.get("waiting", ())):
            found.append((mount, books, make_empty(pid)))
    if not found:
        more = f" ({'; '.join(problems)})" if problems else ""
        raise NotFound(f"no mount of this machine remembers requests of process {pid} or its children{more}", subject=str(pid))
    return max(found, key=lambda item: (sum(item[2]["waits_s"].values()), item[2]["read_bytes"] + item[2]["passthrough_bytes"]))


def merge(pid: int, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The children of one process, which itself read nothing, as one job."""
    total = {**entries[0], "pid": pid, "children": len(entries), "child_pids": [one["pid"] for one in entries], "worst": []}
    for entry in entries[1:]:
        for name in ("read_bytes", "waited_bytes", "passthrough_bytes", "brought_bytes", "metadata_waits", "unseen_disk_bytes"):
            total[name] += entry[name]
        total["open_wait_s"] += entry["open_wait_s"]
        total["opens"] = {mode: total["opens"][mode] + count for mode, count in entry["opens"].items()}
        total["waits_s"] = {cause: total["waits_s"][cause] + part for cause, part in entry["waits_s"].items()}
        total["first_s"] = min(total["first_s"], entry["first_s"])
        total["last_s"] = max(total["last_s"], entry["last_s"])
        total["ended"] = total["ended"] and entry["ended"]
    size = total["read_bytes"] + total["passthrough_bytes"]
    missed = total["waited_bytes"] + min(total["brought_bytes"], total["passthrough_bytes"])
    total["hit_ratio"] = max(0.0, size - missed) / size if size else None
    worst = [file for entry in entries for file in entry["worst"]]
    total["worst"] = sorted(worst, key=lambda file: sum(file["waits_s"].values()), reverse=True)[:10]
    return total


def make_empty(pid: int) -> dict[str, Any]:
    """A job whose very first request has not ended."""
    numbers = ("read_bytes", "waited_bytes", "passthrough_bytes", "brought_bytes", "metadata_waits", "unseen_disk_bytes")
    return {
        **dict.fromkeys(numbers, 0),
        "pid": pid,
        "name": "a process",
        "command": "",
        "group": "",
        "ended": False,
        "hit_ratio": None,
        "worst": [],
        "opens": {"passthrough": 0, "cached": 0, "direct": 0},
        "waits_s": dict.fromkeys(CAUSES, 0.0),
        "open_wait_s": 0.0,
        "first_s": 0.0,
        "last_s": 0.0,
    }


def _find_file(path: str) -> tuple[LocalMount, dict[str, Any], dict[str, Any]]:
    from alluxio_like.cli.finding import to_local

    (mount,) = choose_mounts(path)
    ca = load_client_config().tls.ca
    books = ask_books(mount, ca=ca)
    inode = get_inode(to_local(path))
    try:
        return mount, books, ask_books(mount, {"inode": str(inode)}, ca=ca)["file"]
    except NotFound:
        raise NotFound(
            "nothing is remembered of that file: it was not opened lately, or nobody waited for it", subject=path
        ) from None


# What the master knows


async def _gather_facts(mount: LocalMount, books: dict[str, Any], files: list[dict[str, Any]], master: str) -> Facts:
    facts = Facts(mountpoint=mount.mountpoint, why_not=tuple(books.get("why_not", ())), host=os.uname().nodename)
    waited = [file for file in files if sum(file["waits_s"].values()) > 0]
    try:
        async with open_client(master, mount.mountpoint, deadline=0.0) as client:
            report = await client.report()
            tops = {one.mount_id: one.path for one in report.mounts}
            # Where the worst files lie: not all of the job's, but their directory is what would be loaded.
            paths = [f"{tops[file['mount_id']].rstrip('/')}/{file['key']}" for file in waited if file["mount_id"] in tops]
            path = os.path.commonpath([str(Path(one).parent) for one in paths] if len(paths) > 1 else paths) if paths else ""
            status = await client.get_cache_status(path) if path else None
    except AlluxioLikeError:
        # The advice is less exact without the master, and no worse.
        return facts
    missing = status.known_bytes - status.cached_bytes if status is not None else -1
    return Facts(
        mountpoint=mount.mountpoint,
        why_not=facts.why_not,
        path=path,
        missing_bytes=missing,
        free_bytes=count_free(report.cluster.workers),
        stored_whole=status is not None and status.complete and status.known_bytes > 0 and not missing,
        limited_buckets=tuple(one.bucket for one in report.limited_buckets),
        loads_running=sum(not job.state.ended for job in report.jobs),
        host=facts.host,
    )


def count_free(workers: Iterable[Worker]) -> int:
    """Bytes that the caches can take beside what they hold: no more than others have left on their disks."""
    sizes = [
        (one.capacity_bytes if one.usable_bytes is None else one.usable_bytes, one.used_bytes) for one in workers if one.live
    ]
    return sum(max(0, size - used) for size, used in sizes)


# What a person sees


def _describe_bytes(entry: dict[str, Any]) -> str:
    read, passed = entry["read_bytes"], entry["passthrough_bytes"]
    parts = []
    if passed:
        parts.append(f"~{show_size(passed)} by the kernel itself (estimated from /proc/PID/io)")
    if read or not passed:
        parts.append(f"{show_size(read)} through the daemon")
    hit = "" if entry["hit_ratio"] is None else f"; {show_percent(entry['hit_ratio'], 1)} of it at hand"
    return f"read {' and '.join(parts)}{hit}"


def _head_job(entry: dict[str, Any], mount: LocalMount) -> str:
    who = show_name(entry["command"] or entry["name"])[:120]
    children = f", {entry['children']} child processes" if "children" in entry else ""
    group = f", {entry['group']}" if entry["group"] else ""
    state = ", ended" if entry["ended"] else ""
    span = show_seconds(entry["last_s"] - entry["first_s"])
    return (
        f"{who} (pid {entry['pid']}{children}{group}{state}) on {show_name(mount.mountpoint)}, over {span}\n"
        f"{sum(entry['opens'].values()):,} opens; {_describe_bytes(entry)}"
    )


def _head_file(entry: dict[str, Any], mount: LocalMount) -> str:
    return (
        f"{show_name(entry['key'])} ({show_size(entry['size'])}) on {show_name(mount.mountpoint)}\n"
        f"{sum(entry['opens'].values()):,} opens; {_describe_bytes(entry)}"
    )


def _print_waits(entry: dict[str, Any]) -> None:
    waits = entry["waits_s"]
    total_s = sum(waits.values())
    if total_s < 0.001:
        print("It did not wait.")
        return
    print(f"waited {total_s:.2f} s, all its threads together\n")
    for cause in sorted(CAUSES, key=lambda one: waits[one], reverse=True):
        if waits[cause] >= 0.001:
            share = waits[cause] / total_s
            print(f"  {cause:<9}{waits[cause]:>10.2f} s {100 * share:>4.0f} %  {'#' * round(_BAR * share)}")


def _print_worst(files: list[dict[str, Any]]) -> None:
    rows = []
    for file in files:
        waits = file["waits_s"]
        total_s = sum(waits.values())
        cause = max(waits, key=lambda one: waits[one]) if total_s else "-"
        size = file["read_bytes"] + file["passthrough_bytes"]
        about = "~" if file["passthrough_bytes"] else ""
        rows.append([f"{total_s:.2f} s", cause, f"{about}{show_size(size)}", show_size(file["size"]), show_name(file["key"])])
    print_table(["WAIT", "MOSTLY", "READ", "SIZE", "FILE"], rows, left=(1, 4))


def _print_jobs(jobs: list[dict[str, Any]]) -> None:
    rows = [
        [str(job["pid"]), show_name(job["name"]), f"{sum(job['waits_s'].values()):.2f} s", show_size(job["read_bytes"])]
        for job in jobs
    ]
    print_table(["PID", "COMMAND", "WAIT", "READ"], rows, left=(1,))


def _print_advice(found: list[Advice]) -> None:
    print("\nWhat would help:" if found else "\nNothing stands out.")
    for one in found:
        print(f"  - {one.evidence}:\n    {one.help}")
