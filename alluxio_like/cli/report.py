"""The commands `report` and `workers`: the cluster in one screen.

Owns their output. One command a process.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from alluxio_like.cli.cache import print_jobs
from alluxio_like.cli.common import JsonOption, MasterOption, load_client_config, open_client, print_json, run_async, to_plain
from alluxio_like.cli.mounted import ask_books, list_local_mounts
from alluxio_like.cli.mounting import ask_status
from alluxio_like.cli.mounts import print_mounts
from alluxio_like.cli.render import count_files, print_table, show_name, show_percent, show_seconds, show_size
from alluxio_like.errors import AlluxioLikeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alluxio_like.rpc.messages import WorkerStatus
    from alluxio_like.types import Cluster, Worker

MOST_DIRECTORIES = 24
"""Directories that are all shown."""


def report(master: MasterOption = "", as_json: JsonOption = False) -> None:
    """The cluster in one screen: master, workers, mounts, jobs, warnings.

    \b
    Example:
      alluxio-like report
    """

    async def run() -> None:
        async with open_client(master) as client:
            found = await client.report()
        here = await asyncio.to_thread(describe_local_mounts)
        if as_json:
            print_json({**to_plain(found), "local_mounts": here})
            return
        live = sum(worker.live for worker in found.cluster.workers)
        totals = found.totals
        up_s = show_seconds(found.uptime_s)
        used = f"{show_size(totals.used_bytes)} of {show_size(totals.capacity_bytes)} used"
        print(f"alluxio-like {found.software_version}, cluster {found.cluster.cluster_id}, master up for {up_s}")
        print(f"{live} of {len(found.cluster.workers)} workers live, {used}")
        print(f"{totals.files:,} files and directories known, {show_size(totals.known_bytes)}")
        if found.unpersisted_files or found.journal_steps:
            print(
                f"{count_files(found.unpersisted_files)} written and not in the store yet, {show_size(found.unpersisted_bytes)}; "
                f"{found.journal_steps:,} deletions and moves that stores have to follow"
            )
        for warning in found.warnings:
            print(f"WARNING: {warning}")
        for limited in found.limited_buckets:
            print(f"WARNING: {limited.bucket} asks for less: {limited.requests_per_s:.0f} requests/s for the whole cluster")
        if found.cluster.workers:
            print()
            print_workers(found.cluster)
        print_directories(found.details)
        if found.mounts:
            print()
            print_mounts(found.mounts)
        print_local_mounts(here)
        if found.jobs:
            print()
            print_jobs(found.jobs)

    run_async(run())


def describe_local_mounts() -> list[dict[str, Any]]:
    """The mounts of this machine, whatever cluster they are of: how they are served, what is open, why not all passes through."""
    ca = load_client_config().tls.ca
    found = []
    for mount in list_local_mounts():
        facts: dict[str, Any] = {"mountpoint": mount.mountpoint, "session": mount.session, "problem": mount.problem}
        if held := _ask_holder(mount.mountpoint):
            facts |= {name: held.get(name) for name in ("state", "generation", "restarts", "daemon_pid")}
        try:
            books = ask_books(mount, ca=ca)
        except AlluxioLikeError as error:
            facts["problem"] = mount.problem or error.message
        else:
            facts |= {name: books[name] for name in ("open", "why_not", "total", "readers") if name in books}
        found.append(facts)
    return found


def _ask_holder(place: str) -> dict[str, Any] | None:
    """What the holder of a mount says of its daemons; None where there is none, or it is another user's."""
    try:
        return ask_status(place)
    except AlluxioLikeError:
        return None


def print_local_mounts(mounts: "Sequence[dict[str, Any]]") -> None:
    """The mounts of this machine as a table."""
    rows = []
    for one in mounts:
        if "open" not in one:
            rows.append([show_name(one["mountpoint"]), one["problem"], "", "", ""])
            continue
        passing, total, notes = one["open"]["passthrough"], one["total"], list(one.get("why_not") or [])
        if one.get("readers"):
            notes.append(f"{1 + len(one['readers'])} processes")
        if one.get("restarts"):
            notes.append(f"its daemon was restarted {one['restarts']} times")
        if one.get("state") not in {None, "serving"}:
            notes.append(str(one["state"]))
        rows.append(
            [
                show_name(one["mountpoint"]),
                one["session"] + (f" ({'; '.join(notes)})" if notes else ""),
                f"{sum(one['open'].values()):,}",
                f"{passing:,}",
                ("~" if total["passthrough_bytes"] else "") + show_size(total["read_bytes"] + total["passthrough_bytes"]),
            ]
        )
    if rows:
        print()
        print_table(["MOUNT ON THIS MACHINE", "SESSION", "OPEN", "BY KERNEL", "READ"], rows, left=(0, 1))


def workers(master: MasterOption = "", as_json: JsonOption = False) -> None:
    """The workers: where they are, whether they live, what they hold.

    \b
    Example:
      alluxio-like workers --json
    """

    async def run() -> None:
        async with open_client(master) as client:
            found = await client.get_cluster()
        print_json(found) if as_json else print_workers(found)

    run_async(run())


def print_workers(cluster: "Cluster") -> None:
    """Workers as a table."""
    rows = [
        [
            worker.address,
            "live" if worker.live else f"dead for {show_seconds(worker.last_seen_s)}",
            show_percent(worker.used_bytes, worker.capacity_bytes) if worker.capacity_bytes else "-",
            show_size(worker.used_bytes),
            show_size(worker.capacity_bytes),
            show_size(worker.guest_bytes),
            show_size(worker.pinned_bytes),
            f"{worker.file_count:,}",
            show_unpersisted(worker),
            worker.worker_id,
        ]
        for worker in cluster.workers
    ]
    print_table(
        ["WORKER", "STATE", "FULL", "USED", "CAPACITY", "GUEST", "PINNED", "FILES", "TO UPLOAD", "ID"], rows, left=(0, 1, 9)
    )


def show_unpersisted(worker: "Worker") -> str:
    """What a worker has still to upload, and how much that may be."""
    limit = worker.unpersisted_limit_bytes
    return show_size(worker.unpersisted_bytes) + (f" of {show_size(limit)}" if limit is not None else "")


def print_directories(details: "Sequence[WorkerStatus]") -> None:
    """Cache directories as a table; of many only those that there is something to say of."""
    rows = []
    many = sum(len(status.directories) for status in details) > MOST_DIRECTORIES
    for status in details:
        for one in status.directories:
            if many and one.state == "ok" and not one.held_bytes and one.passthrough != "no":
                continue
            passthrough = one.passthrough + (f": {one.passthrough_reason}" if one.passthrough == "no" else "")
            # Files held are counted for the directory, what was handed out to other users for the worker.
            held = f"{show_size(one.held_bytes)} in {one.held_files}" if one.held_files else "-"
            state = one.state if one.state == "ok" else f"{one.state}: {one.reason}"
            rows.append(
                [
                    one.path,
                    status.info.address,
                    one.file_system or "-",
                    show_size(one.used_bytes),
                    held,
                    str(status.leases),
                    state,
                    passthrough,
                ]
            )
    if rows:
        print()
        print_table(["DIRECTORY", "WORKER", "DISK", "USED", "HELD", "LEASES", "STATE", "PASSTHROUGH"], rows, left=(0, 1, 2, 6, 7))
