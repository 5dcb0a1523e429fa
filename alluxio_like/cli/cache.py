"""The command line `cache`: load ahead of use, look at jobs, and say what stays.

Owns options and output; the master plans and owns the jobs, so ending this command ends no job. One command a process.
"""

import asyncio
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from alluxio_like.cli import writing
from alluxio_like.cli.common import (
    JsonOption,
    MasterOption,
    PathArgument,
    make_app,
    open_client,
    print_json,
    run_app,
    run_async,
    to_known_path,
    to_plain,
)
from alluxio_like.cli.finding import to_namespace_path
from alluxio_like.cli.render import (
    LoadProgress,
    count_files,
    describe_counts,
    print_table,
    show_name,
    show_percent,
    show_seconds,
    show_size,
)
from alluxio_like.cli.waiting import MountedOption, WaitOption, get_deadline, wait_mounted
from alluxio_like.config import parse_size
from alluxio_like.errors import InvalidArgument, TimedOut, Unavailable
from alluxio_like.types import SNAPSHOT_FOLDER, JobId

if TYPE_CHECKING:
    from alluxio_like.client import Client
    from alluxio_like.rpc.messages import CacheStatus, Job, JobProblem

app = make_app(
    """Warm data before it is used, and see and steer what is cached.

A master that does not answer, such as one that is being replaced, is waited for: 10 s, or ALLUXIO_LIKE_MASTER_WAIT_S."""
)

AWAY_LIMIT_S = 300.0
"""How long a watching command waits for a master that went away; the job outlives both."""
SHOWN_PROBLEMS = 20

PathsArgument = Annotated[list[str] | None, typer.Argument(help="Paths of the namespace, paths below a mount, or stores' URIs.")]


@app.command()
def load(
    paths: PathsArgument = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="Copies, each on another worker.")] = 1,
    glob: Annotated[str, typer.Option("--glob", metavar="PATTERN", help="Only these names; with a /, paths below PATH.")] = "",
    from_file: Annotated[
        str,
        typer.Option(
            "--from-file", metavar="LIST", help="Paths from a file, one a line (or NUL-separated); - is standard input."
        ),
    ] = "",
    bandwidth: Annotated[str, typer.Option("--bandwidth", metavar="SIZE", help="Bytes per second of the whole job: 500MB.")] = "",
    hosts: Annotated[str, typer.Option("--hosts", metavar="H1,H2", help="Only on these workers (ids or host names).")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how much it is, how long it takes and whether it fits (exit code 1: no).")
    ] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Load what fits instead of refusing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and return.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every page again and compare checksums.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    wait: WaitOption = "",
    mounted: MountedOption = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Fetch data into the workers' caches and check that all of it is there.

    Exit code 0 only if every page is on a worker's disk; else 1, with the list of what is missing and why. What is there
    already is not fetched again. The job belongs to the master: it goes on when this command ends (cache cancel stops it).

    \b
    Examples:
      cache load /data/train
      cache load s3://bucket/prefix --glob '*.tar' --replicas 2
      cache load /mnt/data/val --bandwidth 500MB --detach
      cache load --from-file epoch1.txt --dry-run
      cache load /data/train --wait 30m --mounted /mnt/data     before a job starts, when the node may be new
    """
    from alluxio_like.rpc.messages import LoadSpec

    if not paths and not from_file:
        raise InvalidArgument("nothing to load: give a PATH or --from-file LIST")
    wanted = [to_namespace_path(path) for path in paths or []]
    if from_file:
        wanted += list(_read_list(from_file))
    if not wanted:
        raise InvalidArgument(f"no paths in {from_file}", subject=from_file)
    spec = LoadSpec(
        replicas=replicas,
        glob=glob,
        bandwidth_bytes_s=parse_size(bandwidth) if bandwidth else 0,
        hosts=tuple(host for host in hosts.split(",") if host),
        dry_run=dry_run,
        fit=fit,
        verify=verify,
    )

    deadline = get_deadline(wait)

    async def run() -> int:
        if mounted:
            await wait_mounted(mounted, deadline)
        async with open_client(master, *(paths or []), deadline=deadline) as client:
            job_id = await client.submit_load(spec, wanted)
            if detach:
                print_json({"job_id": job_id}) if as_json else print(job_id)
                return 0
            job = await _watch(client, job_id, quiet=quiet or as_json)
            return await _report_end(client, job, as_json)

    raise typer.Exit(run_async(run()))


def _read_list(source: str) -> Iterator[str]:
    """Paths from a file or standard input, without empty lines; names that are not UTF-8 survive."""
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read the list {source} ({error.strerror})", subject=source) from None
    for line in data.split(b"\0" if b"\0" in data else b"\n"):
        if line.strip():
            yield to_namespace_path(line.rstrip(b"\r").decode("utf-8", "surrogateescape"))


async def _watch(client: "Client", job_id: JobId, *, quiet: bool) -> "Job":
    """Show the job until it has ended. A master that is away is waited for, AWAY_LIMIT_S at most."""
    loop = asyncio.get_running_loop()
    seen = loop.time()
    away = False
    with LoadProgress(quiet=quiet) as progress:
        try:
            while True:
                try:
                    async for job in client.watch_job(job_id):
                        seen, away = loop.time(), False
                        progress.update(job)
                        if job.state.ended:
                            return job
                except (Unavailable, TimedOut) as error:
                    if loop.time() - seen > AWAY_LIMIT_S:
                        raise Unavailable(
                            f"the master has been away for {show_seconds(AWAY_LIMIT_S)}; {job_id} goes on when it is back: "
                            f"cache jobs {job_id}"
                        ) from error
                    if not away:
                        progress.say("the master is away; waiting for it")
                    away = True
                await asyncio.sleep(0.5)
        except (asyncio.CancelledError, KeyboardInterrupt):
            progress.say(f"{job_id} goes on; stop it with: cache cancel {job_id}")
            raise


async def _report_end(client: "Client", job: "Job", as_json: bool) -> int:
    """Say how a job ended; the exit code."""
    from alluxio_like.rpc.messages import JobState

    done = job.state is JobState.DONE
    if job.spec.dry_run:
        if as_json:
            print_json(job)
        else:
            _print_plan(job)
        # As the load itself would end: whether it fits is what is asked.
        return 0 if done and not job.reason else 1
    if as_json:
        print_json(job)
        return 0 if done else 1
    seconds = max(0.0, (job.ended_ns - job.created_ns) / 1e9)
    there = f", {job.skipped_files:,} of them were there" if job.skipped_files else ""
    left = f"; {count_files(job.unfit_files)} ({show_size(job.unfit_bytes)}) left out by --fit" if job.unfit_files else ""
    if done:
        checked = "verified" if job.spec.verify else "checked"
        print(f"loaded and {checked}: {describe_counts(job)}{there}, {job.requests:,} requests, {show_seconds(seconds)}{left}")
        return 0
    reason = f": {job.reason}" if job.reason else ""
    print(f"cache: {job.job_id} {job.state.name.lower()}{reason} ({describe_counts(job)}{there}{left})", file=sys.stderr)
    if job.failed_files:
        await _print_problems(client, job.job_id, SHOWN_PROBLEMS, sys.stderr)
        if job.failed_files > SHOWN_PROBLEMS:
            print(f"  … all {job.failed_files:,}: cache jobs {job.job_id} --problems", file=sys.stderr)
    return 1


def _print_plan(job: "Job") -> None:
    todo = max(0, job.total_bytes - job.skipped_bytes)
    # Whether each worker has room for its part, the master has said: all of them together may have it, and one not.
    answer = "not known" if job.failed_files else "NO" if job.reason else "yes"
    rows = [
        ("files", f"{job.total_files:,}, {job.skipped_files:,} of them are there already"),
        ("bytes", f"{show_size(job.total_bytes)}, {show_size(todo)} to fetch"),
        ("requests", f"{job.requests:,}"),
        ("time", f"about {job.eta_s / 60:.1f} minutes" if job.eta_s >= 0 else "not known yet: nothing was fetched so far"),
        ("fits", f"{answer}: {show_size(job.free_bytes)} free" + ("; --fit loads what fits" if answer == "NO" else "")),
    ]
    for name, value in rows:
        print(f"{name:10} {value}")
    if job.reason:
        print(job.reason)


async def _iter_problems(client: "Client", job_id: JobId) -> "list[JobProblem]":
    found: list[JobProblem] = []
    cursor = 0
    while True:
        page = await client.list_job_problems(job_id, cursor)
        found.extend(page.problems)
        cursor = page.next_cursor
        if not cursor:
            return found


async def _print_problems(client: "Client", job_id: JobId, limit: int, stream: "object") -> None:
    page = await client.list_job_problems(job_id, 0)
    for problem in page.problems[:limit]:
        print(f"  {show_name(problem.path)}: {problem.message} [{problem.code}]", file=stream)  # type: ignore[call-overload]


@app.command()
def jobs(
    job_id: Annotated[str, typer.Argument(help="One job; without it, all that are known.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show its progress until it has ended.")] = False,
    problems: Annotated[bool, typer.Option("--problems", help="Every file that could not be loaded, with the reason.")] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show load jobs, or one in detail.

    \b
    Examples:
      cache jobs
      cache jobs load-7 --watch
      cache jobs load-7 --problems
    """
    if (watch or problems) and not job_id:
        raise InvalidArgument("--watch and --problems need a job: cache jobs ID")

    async def run() -> int:
        async with open_client(master) as client:
            if problems:
                found = await _iter_problems(client, JobId(job_id))
                if as_json:
                    print_json(found)
                else:
                    for problem in found:
                        print(f"{show_name(problem.path)}: {problem.message} [{problem.code}]")
                return 0
            if watch:
                return await _report_end(client, await _watch(client, JobId(job_id), quiet=as_json), as_json)
            if job_id:
                job = await client.get_job(JobId(job_id))
                print_json(job) if as_json else _print_job(job)
                return 0
            known = await client.list_jobs()
        print_json(known) if as_json else print_jobs(known)
        return 0

    raise typer.Exit(run_async(run()))


def print_jobs(known: "Iterable[Job]") -> None:
    """Jobs as a table."""
    rows = []
    for job in known:
        where = show_name(job.paths[0]) if job.paths else "-"
        more = f" +{job.path_count - 1}" if job.path_count > 1 else ""
        rate = f"{show_size(job.rate_bytes_s)}/s" if not job.state.ended else "-"
        row = [
            job.job_id,
            job.state.name.lower(),
            describe_counts(job),
            str(job.failed_files),
            rate,
            show_seconds(job.eta_s),
            where + more,
        ]
        rows.append(row)
    print_table(["JOB", "STATE", "PROGRESS", "FAILED", "RATE", "LEFT", "PATHS"], rows, left=(0, 1, 2, 6))


def _print_job(job: "Job") -> None:
    print_jobs([job])
    if job.reason:
        print(f"reason: {job.reason}")
    for problem in job.problems:
        print(f"  {show_name(problem.path)}: {problem.message} [{problem.code}]")


@app.command()
def cancel(job_id: Annotated[str, typer.Argument()], master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Stop a job. What it has loaded stays.

    \b
    Example:
      cache cancel load-7
    """

    async def run() -> None:
        async with open_client(master) as client:
            job = await client.cancel_job(JobId(job_id))
        print_json(job) if as_json else print(f"{job.job_id} {job.state.name.lower()}: {describe_counts(job)}")

    run_async(run())


@app.command()
def status(path: PathArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """How much below a path is cached, where, in how many copies, which version.

    \b
    Example:
      cache status /data/train
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            known = await to_known_path(client, path)
            found = await client.get_cache_status(known)
            # (Of a snapshot nothing is on its way to a store.)
            is_frozen = SNAPSHOT_FOLDER in known.split("/")
            unpersisted = None if is_frozen else await client.changes.list_unpersisted(known, 1)
        if as_json:
            print_json({**to_plain(found), "unpersisted": None if unpersisted is None else to_plain(unpersisted)})
            return
        _print_status(known, found)
        if unpersisted is not None:
            writing.print_unpersisted(unpersisted)

    run_async(run())


def _print_status(known: str, found: "CacheStatus") -> None:
    part = show_percent(found.cached_bytes, found.known_bytes)
    print(f"{show_name(known)}: {count_files(found.files)}, {show_size(found.known_bytes)}")
    if found.summed:
        print(f"cached: at most {part} of the bytes; {show_size(found.stored_bytes)} with all copies")
        print("so many files are summed up, not looked at one by one: ask for a directory to see its copies")
    else:
        whole = count_files(found.cached_files, "whole ")
        print(f"cached: {part} of the bytes, {whole}; {show_size(found.stored_bytes)} with all copies")
    if found.version:
        print(f"version: {found.version}")
    if found.pinned_files:
        print(f"pinned: {count_files(found.pinned_files)}")
    if not found.complete and not found.summed:
        print("not all of it has been listed yet: what is not known is not counted")
    for one in found.replicas:
        print(f"{count_files(one.files)} with {one.replicas} whole {'copy' if one.replicas == 1 else 'copies'}")
    rows = [
        [holder.address, "-" if found.summed else f"{holder.files:,}", show_size(holder.cached_bytes), holder.worker_id]
        for holder in found.holders
    ]
    print_table(["WORKER", "FILES", "BYTES", "ID"], rows, left=(0, 3))


@app.command()
def free(
    path: PathArgument,
    force: Annotated[bool, typer.Option("--force", help="Pinned files too.")] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Drop what is cached below a path. The store is not touched.

    \b
    Example:
      cache free /data/old
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            found = await client.free(await to_known_path(client, path), force=force)
        if as_json:
            print_json(found)
            return
        pinned = count_files(found.kept_pinned_files, "pinned ")
        kept = f"; {pinned} stay (--force drops them too)" if found.kept_pinned_files else ""
        print(f"freed {show_size(found.freed_bytes)} of {count_files(found.files)}{kept}")

    run_async(run())


def _set_pinned(path: str, pinned: bool, master: str, as_json: bool) -> None:
    async def run() -> None:
        async with open_client(master, path) as client:
            files = await client.set_pinned(await to_known_path(client, path), pinned=pinned)
        print_json({"files": files, "pinned": pinned}) if as_json else print(
            f"{'pinned' if pinned else 'unpinned'}: {count_files(files)}"
        )

    run_async(run())


@app.command()
def pin(path: PathArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Keep what is below a path from being evicted once it is cached.

    \b
    Example:
      cache pin /data/val
    """
    _set_pinned(path, True, master, as_json)


@app.command()
def unpin(path: PathArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Let what is below a path be evicted again.

    \b
    Example:
      cache unpin /data/val
    """
    _set_pinned(path, False, master, as_json)


app.command()(writing.policy)


def main() -> NoReturn:
    """Entry point of `cache`."""
    run_app(app, "cache")


if __name__ == "__main__":
    main()
