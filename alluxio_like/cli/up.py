"""The command `up`: master, workers and a mount on this machine, in one command.

Owns what runs, with which settings, in which order, and the home directory's lock. The processes are the supervisor's. One event
loop in the main thread; signals only set events, so that stopping is never interrupted half-way.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from alluxio_like.cli.common import JsonOption, print_json, run_async
from alluxio_like.cli.finding import recorded, to_local
from alluxio_like.cli.mounts import OptionsOption, SyncOption, parse_options, parse_sync_interval
from alluxio_like.cli.render import show_size
from alluxio_like.cli.supervisor import Service, Supervisor, end_leftovers
from alluxio_like.config import (
    DEFAULT_MASTER_ADDRESS,
    FuseConfig,
    MasterConfig,
    WorkerConfig,
    load_config,
    parse_duration,
    parse_size,
    save_config,
)
from alluxio_like.errors import AlluxioLikeError, ConfigError, Conflict, InvalidArgument
from alluxio_like.logs import setup_logging
from alluxio_like.rpc.auth import read_token

if TYPE_CHECKING:
    from alluxio_like.fuse.mountpoint import Mounted

log = logging.getLogger(__name__)

C = TypeVar("C", bound=BaseModel)

_DISK_FRACTION = 0.8
_PORTS_TRIED = 200
_DETACH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be mounted at `path` of the namespace."""

    path: str
    uri: str
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` was asked for, checked."""

    home: Path
    mounts: tuple[Wanted, ...]
    sync_interval_s: float
    workers: int
    quota_bytes: int | None
    cache_dirs: tuple[Path, ...]
    mountpoint: str
    shown_path: str
    bind: str
    config: Path | None
    common: dict[str, Any]
    insecure: bool = False
    processes: int | None = None
    metadata: str = field(default="", repr=False)
    token_file: Path | None = None

    @property
    def run_dir(self) -> Path:
        return self.home / "run"


def up(
    uri: Annotated[
        str, typer.Argument(help="A store to mount, with MOUNTPOINT; the same as --mount /=URI.", show_default=False)
    ] = "",
    mountpoint: Annotated[str, typer.Argument(help="Where on this machine; the same as --fuse.", show_default=False)] = "",
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="All that is kept; the next start with it is warm.")
    ] = None,
    mount: Annotated[
        list[str], typer.Option("--mount", metavar="/PATH=URI", help="A store in the namespace. May be repeated.")
    ] = [],  # noqa: B006
    options: OptionsOption = [],  # noqa: B006
    sync_interval: SyncOption = "",
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Worker processes.")] = 1,
    cache_size: Annotated[
        str, typer.Option("--cache-size", metavar="SIZE", help="Of all workers together; default: 80 % of the disk.")
    ] = "",
    cache_dir: Annotated[
        list[Path], typer.Option("--cache-dir", metavar="DIR", help="Disk for cache files; default: in --home. May be repeated.")
    ] = [],  # noqa: B006
    fuse: Annotated[str, typer.Option("--fuse", metavar="MOUNTPOINT", help="Mount on this directory.")] = "",
    fuse_path: Annotated[
        str, typer.Option("--fuse-path", metavar="/PATH", help="Show only this part of the namespace there.")
    ] = "",
    processes: Annotated[
        int | None, typer.Option("--processes", metavar="N", help="Processes that serve the mount, as of the command fuse; 1.")
    ] = None,
    bind: Annotated[
        str, typer.Option("--bind", metavar="HOST:PORT", help="The master's; default: the first free one from 19998.")
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Let --bind be other than loopback, in the clear.")] = False,
    metadata: Annotated[
        str, typer.Option("--metadata", metavar="URL", help="Where the metadata is, such as postgresql://…; default: in --home.")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="The cluster's token, mode 0600; default: in --home.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", envvar="ALLUXIO_LIKE_CONFIG", help="TOML file with more settings.")
    ] = None,
    io_timeout: Annotated[
        str, typer.Option("--io-timeout", metavar="TIME", help="Longest any operation takes before it fails; 30s.")
    ] = "",
    log_level: Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Run master, workers and a mount on this machine until Ctrl-C.

    Where MOUNTPOINT ends in the path of a --mount, it shows that mount; else it shows the whole namespace. With --json one line
    with addresses and pids is printed once everything is ready.

    \b
    Examples:
      alluxio-like up s3://bucket/prefix /mnt/data
      alluxio-like up s3://bucket /mnt/data -o endpoint=http://10.0.0.5:7480 -o profile=ceph
      alluxio-like up --home /srv/al --mount /data=s3://bucket/prefix --fuse /mnt/data \\
          --workers 2 --cache-size 200GB
    """
    setup_logging("up", level=log_level or "warning")
    if mountpoint and fuse:
        raise InvalidArgument("MOUNTPOINT and --fuse are the same: give one of them")
    plan = make_plan(
        uri=uri,
        mountpoint=mountpoint or fuse,
        home=home,
        mounts=mount,
        options=parse_options(options),
        sync_interval=sync_interval,
        workers=workers,
        cache_size=cache_size,
        cache_dirs=cache_dir,
        fuse_path=fuse_path,
        processes=processes,
        bind=bind,
        config=config,
        common={"io_timeout_s": parse_duration(io_timeout) if io_timeout else None, "log_level": log_level or None},
        insecure=insecure,
        metadata=metadata,
        token_file=token_file,
    )
    raise typer.Exit(run_async(_Up(plan, as_json).run()))


def make_plan(
    *,
    uri: str,
    mountpoint: str,
    home: Path | None,
    mounts: list[str],
    options: dict[str, str],
    sync_interval: str,
    workers: int,
    cache_size: str,
    cache_dirs: list[Path],
    fuse_path: str,
    bind: str,
    config: Path | None,
    common: dict[str, Any],
    processes: int | None = None,
    insecure: bool = False,
    metadata: str = "",
    token_file: Path | None = None,
) -> Plan:
    """Check what was asked for, without changing anything. Raises InvalidArgument, ConfigError."""
    named = [("/", uri)] if uri else []
    for text in mounts:
        path, equals, store = text.partition("=")
        if not equals or not path.startswith("/") or not store:
            raise InvalidArgument(f"--mount {text}: write --mount /PATH=URI, such as /data=s3://bucket/prefix", subject=text)
        named.append((os.path.normpath("/" + path.strip("/")), store))
    if not named and home is None:
        raise InvalidArgument("nothing to mount: alluxio-like up s3://bucket/prefix /mnt/data")
    if uri and not mountpoint:
        raise InvalidArgument(f"where to? alluxio-like up {uri} MOUNTPOINT (without a mount: --mount /={uri} --home DIR)")
    if len({path for path, _ in named}) < len(named):
        raise InvalidArgument("two stores at one path: give each --mount its own")
    wanted = _make_wanted(named, options)
    place = to_local(mountpoint) if mountpoint else ""
    shown = fuse_path or next((w.path for w in wanted if w.path != "/" and place.endswith(w.path)), "/")
    total = parse_size(cache_size) if cache_size else None
    return Plan(
        home=(home or _get_default_home(wanted)).absolute(),
        mounts=wanted,
        sync_interval_s=parse_sync_interval(sync_interval),
        workers=workers,
        quota_bytes=total // workers // max(1, len(cache_dirs)) if total is not None else None,
        cache_dirs=tuple(directory.absolute() for directory in cache_dirs),
        mountpoint=place,
        shown_path=shown,
        processes=processes,
        bind=bind,
        config=config,
        common=common,
        insecure=insecure,
        metadata=metadata,
        token_file=token_file.absolute() if token_file is not None else None,
    )


def _make_wanted(named: list[tuple[str, str]], options: dict[str, str]) -> tuple[Wanted, ...]:
    """Each store with those options that its scheme knows; one that none knows is an error."""
    from alluxio_like.ufs.open import describe_options, parse_uri, split_secrets

    wanted, used = [], set()
    for path, uri in named:
        store = f"file://{os.path.abspath(uri)}" if uri.startswith(("/", "./", "../")) else uri  # noqa: PTH100
        scheme = parse_uri(store).scheme
        known = {option.name for option in describe_options(scheme)}
        mine = {key: value for key, value in options.items() if key in known}
        split_secrets(scheme, mine)
        used |= set(mine)
        wanted.append(Wanted(path, store, mine))
    unused = {key: value for key, value in options.items() if key not in used}
    if unused and wanted:
        split_secrets(parse_uri(wanted[0].uri).scheme, unused)
    return tuple(wanted)


def _get_default_home(wanted: tuple[Wanted, ...]) -> Path:
    """A home of its own for what is mounted, so that the next start finds it warm."""
    what = json.dumps([[w.path, w.uri.rstrip("/"), w.options.get("endpoint", "")] for w in wanted])
    name = re.sub(r"[^A-Za-z0-9]+", "-", wanted[0].uri).strip("-")[:40]
    return Path.home() / ".alluxio-like" / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold a home directory; raises Conflict with the pid of who holds it."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot use the home directory {home} ({error.strerror}): give another --home", subject=str(home)
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        raise Conflict(
            f"the home directory {home} is in use by process {holder}: stop it, or give another --home", subject=str(home)
        ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def reserve_master_bind(bind: str, held: contextlib.ExitStack) -> str:
    """The address asked for, else the first free one from the default's port on: below the range of outgoing connections, so that
    the same one is free again when the master is started anew.

    Until `held` is closed no other `up` of this machine takes it, though the master binds to it only after a while: a name among
    the abstract unix sockets says so, which goes with this process. Raises Conflict.
    """
    if bind:
        return bind
    host, _, port = DEFAULT_MASTER_ADDRESS.rpartition(":")
    for candidate in range(int(port), int(port) + _PORTS_TRIED):
        with contextlib.ExitStack() as taken, socket.socket() as probe:
            reservation = taken.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                reservation.bind(f"\0alluxio-like/{host}:{candidate}")
                probe.bind((host, candidate))
                probe.listen(1)
            except OSError:
                continue
            held.push(taken.pop_all())
            return f"{host}:{candidate}"
    raise Conflict(f"no free port from {port} on: give --bind HOST:PORT")


def _make_token(file: Path, given: Path | None) -> None:
    """The cluster's token: a copy of the given one, where commands look for it, or one made once."""
    token = read_token(given) if given is not None else secrets.token_hex(32)
    if given is not None and given != file:
        file.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(token + "\n")


class _Up:
    """One run of `up`."""

    def __init__(self, plan: Plan, as_json: bool) -> None:
        self._plan = plan
        self._json = as_json
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._master: Service | None = None
        self._workers: list[Service] = []
        self._fuse: Service | None = None
        self._held = contextlib.ExitStack()
        self._may_detach = False
        """Whether what is mounted at our mountpoint is ours: it was free, or our daemon was ready there."""

    async def run(self) -> int:
        """Until stopped; the exit code. Raises what made the start fail, after everything was taken down again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        plan = self._plan
        with _locked(plan.home), self._held:
            for directory in (plan.run_dir, plan.home / "log"):
                directory.mkdir(exist_ok=True, mode=0o700)
            pids_file = plan.run_dir / "pids.json"
            end_leftovers(pids_file)
            self._supervisor = Supervisor(pids_file, self._save_state)
            try:
                return await self._run()
            finally:
                await self._supervisor.stop(force=self._force)
                await self._clean_mountpoint()
                (plan.home / "up.json").unlink(missing_ok=True)

    async def _run(self) -> int:
        starting = asyncio.create_task(self._start())
        stopped = asyncio.create_task(self._stop.wait())
        left = asyncio.create_task(self._supervisor.left_by_itself.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return 1
            address = starting.result()
            with recorded(
                "up", master=address, home=str(self._plan.home), mountpoint=self._plan.mountpoint, path=self._plan.shown_path
            ):
                self._announce()
                await asyncio.wait({stopped, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done() and not stopped.done():
                log.warning("%s was unmounted: stopping", self._plan.mountpoint)
            return 0
        finally:
            for task in (starting, stopped, left):
                task.cancel()
            await asyncio.gather(starting, stopped, left, return_exceptions=True)

    def _on_signal(self) -> None:
        (self._force if self._stop.is_set() else self._stop).set()

    async def _start(self) -> str:
        """Start everything in order; the master's address once all of it is ready."""
        plan = self._plan
        address = reserve_master_bind(plan.bind, self._held)
        token_file = plan.home / "token"
        _make_token(token_file, plan.token_file)
        common = {**plan.common, "token_file": token_file, "bind": "127.0.0.1:0", "http_bind": "127.0.0.1:0"}
        master_flags = {**common, "home": plan.home / "master", "bind": address, "insecure": plan.insecure}
        if plan.metadata:
            master_flags["metadata_url"] = plan.metadata
        self._master = self._make_service("master", "master", MasterConfig, master_flags)
        self._workers = [
            self._make_service(f"worker-{number}", "worker", WorkerConfig, self._get_worker_flags(number, common, address))
            for number in range(1, plan.workers + 1)
        ]
        # Workers wait for their master by themselves; starting them with it saves their start-up time.
        await asyncio.gather(*(self._supervisor.start(service) for service in (self._master, *self._workers)))
        await self._supervisor.wait_ready(self._master)
        address = str(self._master.facts.get("address", address))
        if any(":" in wanted.options.get("write", "") for wanted in plan.mounts):
            # The master counts them.
            await asyncio.gather(*(self._supervisor.wait_ready(service) for service in self._workers))
        await self._mount_all(address, token_file)
        if plan.mountpoint:
            client = {"master": address, "token_file": token_file, "io_timeout_s": plan.common["io_timeout_s"]}
            flags = {**common, "mountpoint": plan.mountpoint, "path": plan.shown_path, "client": client}
            flags["processes"] = plan.processes
            self._fuse = self._make_service("fuse", "fuse", FuseConfig, flags)
            self._may_detach = _find_mounted(plan.mountpoint) is None
            await self._supervisor.start(self._fuse)
        ready = [*self._workers, *([self._fuse] if self._fuse else [])]
        await asyncio.gather(*(self._supervisor.wait_ready(service) for service in ready))
        self._may_detach = True
        return address

    def _make_service(self, name: str, kind: str, model: type[C], flags: dict[str, Any]) -> Service:
        plan = self._plan
        ready_file = plan.run_dir / f"{name}.ready"
        config = load_config(model, file=plan.config, flags={**flags, "ready_file": ready_file})
        file = plan.run_dir / f"{name}.json"
        save_config(config, file)
        return Service(
            name, kind, file, ready_file, plan.home / "log" / f"{name}.log", stop_first=kind == "fuse", stop_last=kind == "master"
        )

    def _get_worker_flags(self, number: int, common: dict[str, Any], master: str) -> dict[str, Any]:
        plan = self._plan
        home = plan.home / f"worker-{number}"
        home.mkdir(exist_ok=True, mode=0o700)
        places = [directory / f"worker-{number}" for directory in plan.cache_dirs] or [home / "cache"]
        quota = plan.quota_bytes
        if quota is None and plan.workers > 1:
            # All of them on one disk: what one worker would take by itself, shared out.
            nearest = next(parent for parent in places[0].parents if parent.exists())
            quota = int(shutil.disk_usage(nearest).total * _DISK_FRACTION / plan.workers)
        cache_dirs = [{"path": place, "quota_bytes": quota} for place in places]
        return {**common, "home": home, "master": master, "allow_root_disk": True, "cache_dirs": cache_dirs}

    async def _mount_all(self, address: str, token_file: Path) -> None:
        """Mount what is not there yet. Raises what the store or the master say, ConfigError for another store in its place."""
        if not self._plan.mounts:
            return
        from alluxio_like.client import Client
        from alluxio_like.config import ClientConfig
        from alluxio_like.rpc.messages import MountSpec
        from alluxio_like.ufs.open import parse_uri

        client = Client.open(
            load_config(ClientConfig, file=self._plan.config, flags={"master": address, "token_file": token_file})
        )
        try:
            there = {mount.path: mount for mount in await client.list_mounts()}
            for wanted in sorted(self._plan.mounts, key=lambda one: one.path):
                known = there.get(wanted.path)
                spec = MountSpec(
                    path=wanted.path, uri=wanted.uri, options=wanted.options, sync_interval_s=self._plan.sync_interval_s,
                    uid=int(wanted.options.get("uid", os.getuid())), gid=int(wanted.options.get("gid", os.getgid())),
                )  # fmt: skip
                if known is None:
                    if trouble := (await client.mount(spec)).trouble:
                        log.warning("%s: %s", wanted.path, trouble)
                    continue
                options = {name: value for name, value in wanted.options.items() if name != "write"}
                write = wanted.options.get("write", known.write)
                if str(parse_uri(known.uri)) != str(parse_uri(wanted.uri)) or not _is_same(dict(known.options), options):
                    raise ConfigError(
                        f"{self._plan.home} has {known.uri} at {wanted.path}, mounted otherwise than asked for now: "
                        f"give another --home, or start it without this mount and 'alluxio-like unmount {wanted.path}'",
                        subject=wanted.path,
                    )
                if "***" in known.options.values() or write != known.write:
                    # Secrets are not shown, so they cannot be compared here; nothing happens where they are the same.
                    await client.mount(replace(spec, update=True))
        finally:
            await client.close()

    async def _clean_mountpoint(self) -> None:
        """Take the mount away if the daemon could not; never one of somebody else's, which may be there before us or after us."""
        if self._fuse is None or not self._may_detach or (self._fuse.process and self._fuse.process.returncode == 0):
            return
        from alluxio_like.fuse.mountpoint import FSTYPE, detach

        place = Path(self._plan.mountpoint)
        top = _find_mounted(place)
        if top is None or top.fstype != FSTYPE:
            return
        try:
            async with asyncio.timeout(_DETACH_TIMEOUT_S):
                await asyncio.to_thread(detach, place)
        except (AlluxioLikeError, TimeoutError, OSError) as error:
            log.error("%s is still mounted (%s): umount -l %s", place, error, place)

    def _describe(self) -> dict[str, Any]:
        """What runs where, as --json prints it and HOME/up.json keeps it up to date."""

        def describe(service: Service) -> dict[str, Any]:
            return {**service.facts, "name": service.name, "pid": service.pid, "log": str(service.log_file)}

        state: dict[str, Any] = {"pid": os.getpid(), "home": str(self._plan.home)}
        if self._master:
            state["master"] = describe(self._master)
        state["workers"] = [describe(worker) for worker in self._workers]
        if self._fuse:
            state["fuse"] = {**describe(self._fuse), "mountpoint": self._plan.mountpoint, "path": self._plan.shown_path}
        state["mounts"] = [{"path": wanted.path, "uri": wanted.uri} for wanted in self._plan.mounts]
        return state

    def _save_state(self) -> None:
        with contextlib.suppress(OSError):
            temporary = self._plan.home / "up.json.new"
            temporary.write_text(json.dumps(self._describe()) + "\n")
            temporary.replace(self._plan.home / "up.json")

    def _announce(self) -> None:
        if self._json:
            print_json(self._describe())
            return
        plan = self._plan
        state = self._describe()
        for wanted in plan.mounts:
            below = wanted.path.removeprefix(plan.shown_path.rstrip("/")).lstrip("/")
            inside = plan.mountpoint and (wanted.path + "/").startswith(plan.shown_path.rstrip("/") + "/")
            where = Path(plan.mountpoint) / below if inside else f"{wanted.path} of the namespace"
            print(f"{where} shows {wanted.uri}")
        if not plan.mounts and plan.mountpoint:
            print(f"{plan.mountpoint} shows {plan.shown_path} of the namespace")
        size = (
            f", {show_size(plan.quota_bytes * plan.workers * max(1, len(plan.cache_dirs)))} of cache" if plan.quota_bytes else ""
        )
        count = f"{plan.workers} worker{'s' * (plan.workers > 1)}"
        print(f"master at {state['master'].get('address')}, {count}{size}; all of it is kept in {plan.home}")
        print("stop with Ctrl-C", flush=True)


def _find_mounted(place: str | Path) -> "Mounted | None":
    from alluxio_like.fuse.mountpoint import find_top

    return find_top(Path(place))


def _is_same(known: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether a mount's options are those wanted, as far as they are shown: secrets read ***."""
    return known.keys() == wanted.keys() and all(value in {"***", wanted[key]} for key, value in known.items())


__all__ = ["Plan", "make_plan", "reserve_master_bind", "up"]
