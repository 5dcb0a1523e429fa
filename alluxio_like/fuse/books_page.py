"""The books of a mount as JSON: what /jobs.json shows, and `top` and `why` read.

Owns the form of it. Bounded: jobs by what the ledger remembers, files by MOST_FILES; one job or file in detail where it is asked
for by `pid` or `inode`. All counts grow from the mount's start on: whoever wants rates asks twice.

Rule of concurrency: `make_page` is called on the event loop; what it gives is called from threads of the HTTP server, and has the
loop look into the books.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from alluxio_like.errors import NotFound, TimedOut
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.accounts import FileAccount, JobAccount, Mode, Tally
from alluxio_like.metrics import Page
from alluxio_like.waits import Cause

FORMAT = 1
MOST_FILES = 100
"""Of those that were waited for most, and again of those most was read of."""
_WORST = 10
_MOST_WAITING = 100
_WAITING_S = 0.1
"""A request that has not waited for so long is not worth showing. A guess."""
_ANSWER_S = 5.0


def make_page(accounting: Accounting, get_facts: Callable[[], dict[str, Any]]) -> Page:
    """The page, for the running event loop. `get_facts` says what mount it is; called on the loop."""
    loop = asyncio.get_running_loop()

    def page(query: dict[str, str]) -> Any:
        shown: Future[Any] = Future()

        def show() -> None:
            try:
                shown.set_result({**get_facts(), **show_books(accounting, query)})
            except Exception as error:  # noqa: BLE001  told to whoever asked
                shown.set_exception(error)

        loop.call_soon_threadsafe(show)
        try:
            return shown.result(_ANSWER_S)
        except TimeoutError:
            raise TimedOut(f"the daemon did not answer within {_ANSWER_S:g} s") from None

    return page


def show_waiting(accounting: Accounting, waiting: list[tuple[int, str, float]]) -> list[dict[str, Any]]:
    """Requests that wait now, the longest wait first: whose waits are in the books only once they have ended."""
    longest = sorted(waiting, key=lambda one: one[2], reverse=True)[:_MOST_WAITING]
    return [
        {"pid": accounting.get_pid(thread), "thread": thread, "what": what, "seconds": round(seconds, 3)}
        for thread, what, seconds in longest
        if seconds >= _WAITING_S
    ]


def show_books(accounting: Accounting, query: dict[str, str]) -> dict[str, Any]:
    """The books by now, as plain values. Raises NotFound for a job or file that is asked for and not remembered."""
    accounting.refresh()
    ledger = accounting.ledger
    if "pid" in query:
        return {"format": FORMAT, "job": _show_one_job(accounting, int(query["pid"]))}
    if "inode" in query:
        return {"format": FORMAT, "file": _show_one_file(accounting, int(query["inode"]))}
    files = ledger.files
    chosen = {id(one): one for one in sorted(files, key=lambda one: one.tally.wait_s, reverse=True)[:MOST_FILES]}
    chosen |= {id(one): one for one in sorted(files, key=lambda one: one.tally.all_bytes, reverse=True)[:MOST_FILES]}
    others = Tally()
    others.add(ledger.other_files.tally)
    for file in files:
        if id(file) not in chosen:
            others.add(file.tally)
    return {
        "format": FORMAT,
        "clock_s": time.monotonic(),
        "open": {mode.name.lower(): accounting.open_now[mode] for mode in Mode},
        "total": show_tally(ledger.get_total()),
        "jobs": [_show_job(accounting, job) for job in ledger.jobs],
        "other_jobs": show_tally(ledger.other_jobs.tally),
        "files": [_show_file(file) for file in chosen.values()],
        "other_files": show_tally(others),
        "names": show_tally(ledger.names.tally),
    }


def show_tally(tally: Tally) -> dict[str, Any]:
    """`read_bytes` were given by READs, exactly; `passthrough_bytes` are estimated from /proc/PID/io."""
    return {
        "opens": {mode.name.lower(): tally.opens[mode] for mode in Mode},
        "read_bytes": tally.read_bytes,
        "waited_bytes": tally.waited_bytes,
        "passthrough_bytes": tally.passed_bytes,
        "brought_bytes": tally.brought_bytes,
        "hit_ratio": tally.get_hit_ratio(),
        "waits_s": {cause.name.lower(): round(tally.waits[cause], 6) for cause in Cause},
        "open_wait_s": round(tally.open_wait_s, 6),
        "metadata_waits": tally.metadata_waits,
    }


def _show_job(accounting: Accounting, job: JobAccount) -> dict[str, Any]:
    details = accounting.details.get((job.info.pid, job.info.birth))
    return {
        "pid": job.info.pid,
        "birth": job.info.birth,
        "name": job.info.name,
        "command": details.command if details is not None else "",
        "group": details.group if details is not None else "",
        "parent": job.info.parent,
        "uid": job.info.uid,
        "ended": job.gone,
        "open": job.open_count,
        "first_s": job.first_s,
        "last_s": job.last_s,
        "unseen_disk_bytes": job.unseen_bytes,
        **show_tally(job.tally),
    }


def _show_file(file: FileAccount) -> dict[str, Any]:
    return {**_name_file(file), "open": file.open_count, "first_s": file.first_s, **show_tally(file.tally)}


def _name_file(file: FileAccount) -> dict[str, Any]:
    info = file.info
    if info is None:
        return {"inode": 0, "key": "", "mount_id": 0, "size": 0}
    return {"inode": info.inode, "key": info.key, "mount_id": info.mount_id, "size": info.size}


def _show_one_job(accounting: Accounting, pid: int) -> dict[str, Any]:
    # Of several processes with that number, the latest.
    found = max((job for job in accounting.ledger.jobs if job.info.pid == pid), key=lambda job: job.last_s, default=None)
    if found is None:
        raise NotFound("no job of that number is remembered", subject=str(pid))
    worst = sorted(found.worst.items(), key=lambda item: (item[1].wait_s, item[1].all_bytes), reverse=True)[:_WORST]
    return {
        **_show_job(accounting, found),
        "worst": [{**_name_file(file), **show_tally(tally)} for file, tally in worst],
    }


def _show_one_file(accounting: Accounting, inode: int) -> dict[str, Any]:
    found = accounting.ledger.lookup_file(inode)
    if found is None:
        raise NotFound("nothing is remembered of that file", subject=str(inode))
    jobs = [(job, job.worst[found]) for job in accounting.ledger.jobs if found in job.worst]
    jobs.sort(key=lambda item: (item[1].wait_s, item[1].all_bytes), reverse=True)
    return {
        **_show_file(found),
        "jobs": [{"pid": job.info.pid, "name": job.info.name, **show_tally(tally)} for job, tally in jobs[:_WORST]],
    }
