"""What `doctor` looks at: all checks there are, among them those of mounts, of the cluster and of stores.

Changes nothing, and works where nothing runs. One command a process; what may hang is asked in threads that are left behind.
"""

import contextlib
import email.utils
import errno
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from alluxio_like import __version__
from alluxio_like.cli.checks import (
    CachePlace,
    Check,
    check_cache_dirs,
    check_certificate,
    check_fuse,
    check_kernel,
    check_kernel_config,
    check_max_pages,
    check_memory,
    check_own_descriptors,
    check_process,
    check_secret,
    has_sys_admin,
)
from alluxio_like.cli.common import load_client_config, open_client, run_async
from alluxio_like.cli.render import show_seconds, show_size
from alluxio_like.errors import AccessDenied, AlluxioLikeError

if TYPE_CHECKING:
    from alluxio_like.config import ServiceConfig
    from alluxio_like.rpc.messages import MountInfo, Report, WorkerStatus

T = TypeVar("T")

ASK_S = 3.0
"""How long a mount or a store is waited for."""
_SKEW_WARN_S = 30.0
_SKEW_FAIL_S = 600.0
"""S3 refuses requests whose time is 15 minutes off."""
_MOST_STORES = 8


def diagnose(master: str, config: Path | None, cache_dirs: list[str]) -> list[Check]:
    """Everything there is to check."""
    report, reached = _ask_cluster(master)
    return list(_check_all(report, reached, config, cache_dirs))


def _check_all(report: "Report | None", reached: Check, config: Path | None, cache_dirs: list[str]) -> Iterator[Check]:
    release, privileged = os.uname().release, has_sys_admin()
    yield check_kernel(release)
    yield check_kernel_config(release)
    yield from check_fuse(privileged=privileged)
    yield check_max_pages()
    yield check_own_descriptors()
    yield check_memory()
    places, more = _read_config(config)
    yield from more
    places += [CachePlace(Path(path).absolute()) for path in cache_dirs]
    here = _list_local(report)
    known = {place.path for place in places}
    places += [
        CachePlace(Path(one.path), one.quota_bytes)
        for status in here
        for one in status.directories
        if Path(one.path) not in known
    ]
    yield from check_cache_dirs(places, privileged=privileged)
    yield from _check_mounts()
    yield reached
    if report is not None:
        yield from _check_cluster(report, here)
        yield from _check_stores(report.mounts)


# configuration


def _read_config(file: Path | None) -> tuple[list[CachePlace], list[Check]]:
    """Cache directories that a configuration names, and what is to be said of it and its files."""
    from alluxio_like.config import FuseConfig, MasterConfig, WorkerConfig, load_config

    if file is None:
        return [], []
    places: list[CachePlace] = []
    checks: list[Check] = []
    seen: set[Path] = set()
    for name, model in (("master", MasterConfig), ("worker", WorkerConfig), ("fuse", FuseConfig)):
        try:
            # What flags usually give is given here.
            flags: dict[str, Any] = {"fuse": {"mountpoint": "/mnt"}}.get(name, {})
            loaded: ServiceConfig = load_config(model, file=file, flags=flags)
        except AlluxioLikeError as error:
            checks.append(Check(f"configuration of the {name}", "fail", error.message, "correct the setting"))
            continue
        checks += _check_files(loaded, seen)
        if isinstance(loaded, WorkerConfig):
            places += [CachePlace(one.path, one.quota_bytes or 0, loaded.allow_root_disk) for one in loaded.cache_dirs]
    if not any(check.state == "fail" for check in checks):
        checks.append(Check("configuration", "ok", f"{file} can be read"))
    return places, checks


def _check_files(config: "ServiceConfig", seen: set[Path]) -> Iterator[Check]:
    tls = config.tls
    for name, path in (("certificate", tls.certificate), ("authority's certificate", tls.ca)):
        if path is not None and path not in seen:
            seen.add(path)
            yield check_certificate(name, path)
    secrets = (("certificate's key", tls.key), ("token", config.token_file), ("clients' tokens", config.client_token_file))
    for name, path in secrets:
        if path is not None and path not in seen:
            seen.add(path)
            yield check_secret(name, path)


# mounts of this machine


def _check_mounts() -> Iterator[Check]:
    from alluxio_like.fuse.mountpoint import FSTYPE, list_mounted

    for mounted in list_mounted():
        if mounted.fstype == FSTYPE:
            yield from check_mount(mounted.place, mounted.device)


def check_mount(place: Path, device: str) -> Iterator[Check]:
    """One mount of ours: does it answer, what serves it, and is the kernel's read-ahead raised?"""
    name = f"mount {place}"
    try:
        session = ask_within(ASK_S, lambda: os.getxattr(place, "user.alluxio_like.session").decode())
    except TimeoutError:
        yield Check(
            name, "fail", f"does not answer within {ASK_S:g} s", "the daemon's log; kill -9 of the daemon, which is started again"
        )
        return
    except OSError as error:
        if error.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
            yield Check(name, "fail", "its daemon is gone", f"start it again at the same place, or umount -l {place}")
            return
        session = ""
    if session == "kernel with passthrough":
        yield Check(name, "ok", f"served by the {session}")
    else:
        said = f"served by {session}" if session else "served by a release that does not say how"
        yield Check(
            name, "warn", f"{said}: reads go through the daemon", "root, Linux 6.9 and a cache on ext4 or xfs, and start it anew"
        )
    with contextlib.suppress(OSError, ValueError):
        ahead_kb = int(Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text())
        if ahead_kb < 1024:
            cure = f"echo 4096 > /sys/class/bdi/{device}/read_ahead_kb"
            yield Check(f"{name}, read-ahead", "warn", f"{ahead_kb} KiB: READs stay that small", cure)
        else:
            yield Check(f"{name}, read-ahead", "ok", f"{ahead_kb} KiB")


def ask_within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may hang for ever, in a thread that is left behind then. Raises TimeoutError, and what it
    raises.
    """
    results: list[T | BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 (handed to the caller)
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        raise TimeoutError
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


# the cluster


def _ask_cluster(master: str) -> tuple["Report | None", Check]:
    """The cluster's report, if there is a cluster."""

    async def ask() -> "Report":
        async with open_client(master, deadline=0.0) as client:
            return await client.report()

    try:
        config = load_client_config(master)
        report = run_async(ask())
    except AlluxioLikeError as error:
        return None, Check("master", "skip", str(error))
    if report.software_version != __version__:
        return report, Check(
            "master",
            "warn",
            f"{config.master} runs {report.software_version}, this is {__version__}",
            "the same release everywhere",
        )
    return report, Check("master", "ok", f"{report.software_version}, up for {show_seconds(report.uptime_s)}")


def _list_local(report: "Report | None") -> list["WorkerStatus"]:
    """The workers on this machine, by the running kernel's id."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [one for one in report.details if one.info.host_id == boot_id] if report is not None else []


def _check_cluster(report: "Report", here: list["WorkerStatus"]) -> Iterator[Check]:
    for warning in report.warnings:
        yield Check("cluster", "warn", warning)
    workers = report.cluster.workers
    live = sum(worker.live for worker in workers)
    if not live:
        yield Check(
            "workers",
            "fail",
            "none is live: nothing can be read that is not open",
            "alluxio-like worker on the machines with disks",
        )
    else:
        yield Check("workers", "ok", f"{live} of {len(workers)} live")
    answered = {one.info.worker_id for one in report.details}
    for worker in workers:
        if worker.live and worker.worker_id not in answered and len(report.details) < live <= 256:
            yield Check(f"worker {worker.address}", "warn", "did not answer the master at once", "its log, its machine's load")
    for status in report.details:
        yield from _check_worker(status)
    for status in here:
        yield _check_door(status)
        yield from _check_service(status)


def _check_worker(status: "WorkerStatus") -> Iterator[Check]:
    for one in status.directories:
        name = f"worker {status.info.address}, {one.path}"
        if one.state != "ok":
            yield Check(name, "fail", f"taken out of use: {one.reason}", "its disk; then start the worker again")
        elif one.passthrough == "no":
            yield Check(name, "warn", f"no passthrough: {one.passthrough_reason}", "")
        if one.held_bytes:
            holders = f", {status.leases} handed out to other users" if status.leases else ""
            said = f"{show_size(one.held_bytes)} of {one.held_files} evicted files are still open{holders}"
            yield Check(f"{name}, held", "warn", said, "close what has them open: lsof shows /held/")


def _check_door(status: "WorkerStatus") -> Check:
    from alluxio_like.cache.door import enter_door

    name = f"door of {status.info.address}"
    try:
        greeting = enter_door(status.info.door_path)
    except AccessDenied as error:
        return Check(
            name,
            "warn",
            f"{error.message}: this user reads through the worker",
            "run as the worker's user, or add this one to its door_users",
        )
    except AlluxioLikeError as error:
        return Check(name, "warn", error.message, "let its home be reached from here (in containers: mount it into both)")
    for fd in greeting.directory_fds:
        os.close(fd)
    return Check(name, "ok", "gives single files" if greeting.files_only else "gives its directories")


def _check_service(status: "WorkerStatus") -> Iterator[Check]:
    home = Path(status.info.door_path).parent
    with contextlib.suppress(OSError, ValueError):
        check = check_process(int((home / "lock").read_text()), f"the worker {status.info.address}")
        if check is not None:
            yield check


# stores


def _check_stores(mounts: "tuple[MountInfo, ...]") -> Iterator[Check]:
    """The clock beside the stores', by the Date of an answer to anybody."""
    endpoints = {endpoint for mount in mounts if (endpoint := _get_endpoint(mount))}
    for endpoint in sorted(endpoints)[:_MOST_STORES]:
        yield check_clock(endpoint)


def _get_endpoint(mount: "MountInfo") -> str:
    if not mount.uri.startswith("s3://"):
        return ""
    return mount.options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"


def check_clock(endpoint: str) -> Check:
    """How far this machine's clock is from a store's."""
    name = f"clock beside {endpoint}"
    begun = time.time()
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=ASK_S) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        # Refused, as anybody is; the answer has a date all the same.
        with error:
            date = error.headers.get("Date")
    except (OSError, ValueError) as error:
        return Check(name, "skip", f"does not answer from here: {error}")
    try:
        skew_s = email.utils.parsedate_to_datetime(date or "").timestamp() - (begun + time.time()) / 2
    except ValueError:
        return Check(name, "skip", "its answers have no date")
    if abs(skew_s) > _SKEW_FAIL_S:
        return Check(
            name, "fail", f"{abs(skew_s):.0f} s apart: the store refuses signed requests", "chrony or ntp on this machine"
        )
    if abs(skew_s) > _SKEW_WARN_S:
        return Check(name, "warn", f"{abs(skew_s):.0f} s apart", "chrony or ntp on this machine")
    return Check(name, "ok", "less than half a minute apart")
