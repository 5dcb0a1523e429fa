"""The commands that run one service in the foreground: csi, master, worker, fuse, holder.

Owns how flags become a service's configuration, and what ties a supervised service to its supervisor: it ends when the supervisor
does, also if its own end hangs. The services themselves are their app modules. One service per process.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alluxio_like import pauses
from alluxio_like.cli.common import run_async
from alluxio_like.config import (
    CsiConfig,
    FuseConfig,
    MasterConfig,
    ServiceConfig,
    WorkerConfig,
    load_config,
    override,
    parse_duration,
    parse_size,
)
from alluxio_like.descriptors import raise_limit
from alluxio_like.errors import AlluxioLikeError, ConfigError, InvalidArgument
from alluxio_like.fuse import libc
from alluxio_like.logs import setup_logging

log = logging.getLogger(__name__)

ORPHAN_GRACE_S = 15.0
"""How long a service whose supervisor has died may take to end by itself."""

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", envvar="ALLUXIO_LIKE_CONFIG", help="TOML file.")]
# By a parser of its own: a path's usual one asks what is there, and a mount that nobody serves just now would not answer.
PlaceArgument = Annotated[Path | None, typer.Argument(metavar="MOUNTPOINT", parser=Path, help="Directory to mount on.")]
HomeOption = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="Directory for what the service keeps.")]
BindOption = Annotated[str | None, typer.Option("--bind", metavar="HOST:PORT", help="Where to listen; port 0 picks a free one.")]
AdvertiseOption = Annotated[
    str | None, typer.Option("--advertise", metavar="HOST:PORT", help="How others reach it; default: --bind.")
]
HttpOption = Annotated[
    str | None, typer.Option("--http-bind", metavar="HOST:PORT", help="Where /metrics and /healthz are; '' for none.")
]
InsecureOption = Annotated[
    bool | None, typer.Option("--insecure", help="Allow an address other than loopback without TLS.", show_default=False)
]
CertificateOption = Annotated[
    Path | None, typer.Option("--tls-certificate", metavar="PEM", help="Certificate to show to the others.")
]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", metavar="PEM", help="Private key of the certificate.")]
CaOption = Annotated[Path | None, typer.Option("--tls-ca", metavar="PEM", help="Authority that signed the others' certificates.")]
TokenOption = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="The cluster's token, mode 0600.")]
MetadataOption = Annotated[
    str | None,
    typer.Option(
        "--metadata",
        metavar="URL",
        help="Where the metadata is: postgresql://USER@HOST/DATABASE lets the master restart on any machine; default: in --home. "
        "The password belongs into ~/.pgpass or PGPASSWORD.",
    ),
]
ReadyOption = Annotated[
    Path | None, typer.Option("--ready-file", metavar="FILE", help="Gets one JSON line once the service is ready.")
]
LevelOption = Annotated[str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")]
FormatOption = Annotated[str | None, typer.Option("--log-format", metavar="FORMAT", help="text or json.")]
TimeoutOption = Annotated[
    str | None, typer.Option("--io-timeout", metavar="TIME", help="Longest any operation takes before it fails; 30s.")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; a.b=… for nested ones. May be repeated.")
]
SupervisorOption = Annotated[int, typer.Option("--supervisor", hidden=True)]
LifelineOption = Annotated[int, typer.Option("--lifeline", hidden=True)]


def run_master(
    config: ConfigOption = None,
    home: HomeOption = None,
    metadata: MetadataOption = None,
    bind: BindOption = None,
    advertise: AdvertiseOption = None,
    http_bind: HttpOption = None,
    insecure: InsecureOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: KeyOption = None,
    tls_ca: CaOption = None,
    token_file: TokenOption = None,
    ready_file: ReadyOption = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    io_timeout: TimeoutOption = None,
    settings: SetOption = [],  # noqa: B006 (typer reads it, nobody changes it)
    supervisor: SupervisorOption = 0,
    lifeline: LifelineOption = -1,
) -> None:
    """Run a master: the namespace, the mount table, load jobs.

    \b
    Settings come from the file's [master] and [common], then the environment
    (ALLUXIO_LIKE_HOME=…), then flags; the later wins.

    \b
    Examples:
      alluxio-like master --home /var/lib/alluxio-like
      alluxio-like master --home /var/lib/alluxio-like --token-file /etc/alluxio-like.token \\
          --metadata 'postgresql://alluxio@db.example/alluxio?sslmode=verify-full'
      alluxio-like master --config /etc/alluxio-like.toml --bind 0.0.0.0:19998 \\
          --tls-certificate host.pem --tls-key host.key --tls-ca ca.pem
    """
    flags = _common_flags(locals())
    if metadata is not None:
        flags["metadata_url"] = metadata
    loaded = load_config(MasterConfig, file=config, flags=flags)

    def start() -> Coroutine[Any, Any, int]:
        from alluxio_like.master.app import run

        return run(loaded)

    _serve("master", loaded, start, supervisor, lifeline)


def run_worker(
    config: ConfigOption = None,
    home: HomeOption = None,
    master: Annotated[str | None, typer.Option("--master", metavar="HOST:PORT", help="The master to join.")] = None,
    cache_dir: Annotated[
        list[str], typer.Option("--cache-dir", metavar="DIR[=SIZE]", help="Where cache files go, and how much. May be repeated.")
    ] = [],  # noqa: B006
    allow_root_disk: Annotated[
        bool | None,
        typer.Option("--allow-root-disk", help="Accept a cache directory on the root file system.", show_default=False),
    ] = None,
    bind: BindOption = None,
    advertise: AdvertiseOption = None,
    http_bind: HttpOption = None,
    insecure: InsecureOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: KeyOption = None,
    tls_ca: CaOption = None,
    token_file: TokenOption = None,
    ready_file: ReadyOption = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    io_timeout: TimeoutOption = None,
    settings: SetOption = [],  # noqa: B006
    supervisor: SupervisorOption = 0,
    lifeline: LifelineOption = -1,
) -> None:
    """Run a worker: cache files on local disks, fetched from stores and other workers.

    \b
    Examples:
      alluxio-like worker --home /var/lib/alluxio-like/worker --cache-dir /nvme0/cache=2TB
      alluxio-like worker --config /etc/alluxio-like.toml --master master-host:19998
    """
    flags = _common_flags(locals())
    flags["master"] = master
    flags["allow_root_disk"] = allow_root_disk
    if cache_dir:
        flags["cache_dirs"] = [parse_cache_dir(text) for text in cache_dir]
    loaded = load_config(WorkerConfig, file=config, flags=_apply_settings(flags, settings))
    if not loaded.cache_dirs:
        loaded = loaded.model_copy(
            update={
                "cache_dirs": load_config(
                    WorkerConfig, flags={"home": "/", "cache_dirs": [{"path": loaded.home / "cache"}]}
                ).cache_dirs
            }
        )

    def start() -> Coroutine[Any, Any, int]:
        from alluxio_like.worker.app import run

        return run(loaded)

    _serve("worker", loaded, start, supervisor, lifeline)


def run_fuse(
    mountpoint: PlaceArgument = None,
    config: ConfigOption = None,
    master: Annotated[str | None, typer.Option("--master", metavar="HOST:PORT", help="The master.")] = None,
    path: Annotated[str | None, typer.Option("--path", metavar="PATH", help="Show only this part of the namespace.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="auto, kernel or pyfuse3.")] = None,
    passthrough: Annotated[
        str | None,
        typer.Option(
            "--passthrough", metavar="on|off|auto", help="Let the kernel read local files by itself; auto: where it can."
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", help="Processes that answer reads which the kernel does not do by itself; 1."),
    ] = None,
    verify_open: Annotated[
        bool | None,
        typer.Option("--verify-open", help="Compare a file with its checksums at each open.", show_default=False),
    ] = None,
    open_wait: Annotated[
        str | None,
        typer.Option("--open-wait", metavar="SIZE", help="An open waits until a file up to this size is on this machine."),
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option(
            "--strict", help="While the master cannot be asked, fail rather than answer from memory.", show_default=False
        ),
    ] = None,
    read_only: Annotated[
        bool | None,
        typer.Option("--read-only", help="Change nothing, also where the namespace can be written.", show_default=False),
    ] = None,
    allow_other: Annotated[
        bool | None, typer.Option("--allow-other/--no-allow-other", help="Let other users in; default: where we may.")
    ] = None,
    options: Annotated[
        list[str],
        typer.Option("-o", metavar="suid|nosuid", help="As of mount(8): whether set-id programs work on the mount; nosuid."),
    ] = [],  # noqa: B006
    http_bind: HttpOption = None,
    insecure: InsecureOption = None,
    tls_certificate: CertificateOption = None,
    tls_key: KeyOption = None,
    tls_ca: CaOption = None,
    token_file: TokenOption = None,
    ready_file: ReadyOption = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    io_timeout: TimeoutOption = None,
    settings: SetOption = [],  # noqa: B006
    replace: Annotated[
        bool, typer.Option("--replace", help="Have this release and these options take over a mount that is there, and end.")
    ] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Serve the mount of a holder that runs elsewhere: alluxio-like holder MOUNTPOINT.")
    ] = False,
    supervisor: SupervisorOption = 0,
    lifeline: LifelineOption = -1,
) -> None:
    """Mount the namespace, in the foreground until it is unmounted or told to stop.

    Where we may mount by ourselves, this process becomes a small one that keeps the mount and starts the daemon that serves it,
    again if it dies. With --replace a new daemon takes the place of the one that serves MOUNTPOINT; jobs go on, and
    it keeps the settings that no option changes.

    With --join the mount is kept by a process that another command runs, `alluxio-like holder`, in another container, say; of
    several that join, the one that was started last serves, and the others are there in case it ends.

    \b
    Examples:
      alluxio-like fuse /mnt/data --master master-host:19998
      alluxio-like fuse /mnt/imagenet --path /data/imagenet
      alluxio-like fuse /mnt/data --open-wait 4GiB     files up to 4 GiB are read at the disk's speed from their first open on
      alluxio-like fuse /mnt/data -o suid              set-id programs on it work: trust whoever is root where it is written
      alluxio-like fuse /mnt/data --replace            after an upgrade
    """
    flags = _common_flags(locals())
    flags.pop("home", None)
    # One certificate for both: what the client shows to the services, and the HTTP server to its callers.
    client = {"master": master, "tls": flags["tls"], "token_file": token_file, "io_timeout_s": flags["io_timeout_s"]}
    client["strict"] = strict
    flags = _merge_set(
        {**flags, "mountpoint": mountpoint, "path": path, "session": session, "allow_other": allow_other}, "client", client
    )
    flags["passthrough"] = passthrough
    flags["processes"] = processes
    flags["read_only"] = read_only
    flags["suid"] = _parse_suid(options)
    flags["verify_open"] = verify_open
    flags["open_wait_bytes"] = parse_size(open_wait) if open_wait else None
    # Once more: an option that was not given does not take away what --set says.
    flags = _apply_settings(flags, settings)
    if replace:
        _replace(mountpoint, config, flags)
        return
    loaded = load_config(FuseConfig, file=config, flags=flags)
    loaded = loaded.model_copy(update={"mountpoint": Path(os.path.abspath(loaded.mountpoint))})  # noqa: PTH100

    from alluxio_like.cli import mounting
    from alluxio_like.cli.finding import recorded, to_local
    from alluxio_like.fuse.choosing import choose_session

    setup_logging("fuse", level=loaded.log_level, log_format=loaded.log_format)
    if join:
        mounting.join(loaded)
    if choose_session(loaded.session) == "kernel":
        if lifeline >= 0:
            _end_with(supervisor)
        mounting.hold(loaded, lifeline)

    def start() -> Coroutine[Any, Any, int]:
        from alluxio_like.fuse.app import run

        return run(loaded)

    with recorded("fuse", master=loaded.client.master, mountpoint=to_local(str(loaded.mountpoint)), path=loaded.path):
        _serve("fuse", loaded, start, supervisor, lifeline)


def _parse_suid(options: Sequence[str]) -> bool | None:
    """What the last of the options of `fuse` says; None: nothing."""
    for option in options:
        if option not in ("suid", "nosuid"):
            raise InvalidArgument(f"-o {option}: only suid and nosuid can be chosen; options of a store are `mount`'s")
    return options[-1] == "suid" if options else None


def run_holder(
    mountpoint: PlaceArgument = None,
    config: ConfigOption = None,
    ready_file: ReadyOption = None,
    log_format: FormatOption = None,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Keep a mount whose daemons run elsewhere: alluxio-like fuse MOUNTPOINT --join.

    It mounts when the first daemon is ready, and keeps the mount while daemons come and go. Told to stop (SIGTERM), it unmounts
    when its daemons were stopped too; if one still serves 15 s later, it leaves the mount to that one and to the next holder.
    Needs CAP_SYS_ADMIN and /dev/fuse; daemons reach it by a socket in /run/alluxio-like (ALLUXIO_LIKE_RUN_DIR).

    \b
    Examples:
      alluxio-like holder /mnt/data
      alluxio-like fuse /mnt/data --join --master master-host:19998
    """
    given = {"config": config, "ready_file": ready_file, "log_format": log_format, "settings": settings}
    flags = _common_flags({**dict.fromkeys(("http_bind", "insecure", "tls_ca", "token_file", "log_level")), **given})
    flags.pop("home", None)
    loaded = load_config(FuseConfig, file=config, flags={**flags, "mountpoint": mountpoint})

    from alluxio_like.cli import mounting
    from alluxio_like.fuse.choosing import choose_session

    if choose_session(loaded.session) != "kernel":
        raise ConfigError(
            "a holder needs CAP_SYS_ADMIN and /dev/fuse: run it as root (in Kubernetes: privileged)", subject="session"
        )
    mounting.hold(loaded, joined=True)


def _replace(mountpoint: Path | None, file: Path | None, flags: dict[str, Any]) -> None:
    """Let a mount have another daemon; what no option and no file says stays as it is there."""
    from alluxio_like.cli import mounting

    if mountpoint is None:
        raise InvalidArgument("which mount? alluxio-like fuse MOUNTPOINT --replace")
    place = mounting.resolve_place(mountpoint)
    if file is None:
        there = mounting.ask_status(place)
        known = (there or {}).get("config", {})
        # Another release may have started it: what it had and this one has not is left out.
        flags = override({key: value for key, value in known.items() if key in FuseConfig.model_fields}, flags)
    loaded = load_config(FuseConfig, file=file, flags={**flags, "mountpoint": Path(place)})
    serving = mounting.replace(loaded, place)
    print(f"{place}: served by process {serving['daemon_pid']} now")


def run_csi(
    config: ConfigOption = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="unix:PATH", help="The socket that the kubelet calls.")
    ] = None,
    node_id: Annotated[str | None, typer.Option("--node-id", metavar="NAME", help="The node's name.")] = None,
    mountpoint: Annotated[
        Path | None,
        typer.Option("--mountpoint", metavar="DIR", parser=Path, help="The node's mount, of which volumes show parts."),
    ] = None,
    path: Annotated[
        str | None, typer.Option("--path", metavar="PATH", help="The namespace's path that is mounted there.")
    ] = None,
    inline_path: Annotated[
        list[str], typer.Option("--inline-path", metavar="PATH", help="Below which inline volumes may be. May be repeated.")
    ] = [],  # noqa: B006
    no_inline: Annotated[bool, typer.Option("--no-inline", help="No inline volumes at all.")] = False,
    ready_file: ReadyOption = None,
    log_level: LevelOption = None,
    log_format: FormatOption = None,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Run the CSI node plugin: parts of a node's mount as volumes of pods.

    \b
    A PersistentVolume or an inline volume says what it shows with its attributes:
    path (of the namespace; / without it) and readOnly ("true").

    \b
    Example:
      alluxio-like csi --mountpoint /mnt/data --node-id "$NODE_NAME" --endpoint unix:///csi/csi.sock
    """
    flags: dict[str, Any] = {
        "endpoint": endpoint,
        "node_id": node_id,
        "mountpoint": mountpoint and mountpoint.absolute(),
        "path": path,
    }
    flags |= {
        "inline_paths": () if no_inline else tuple(inline_path) or None,
        "ready_file": ready_file,
        "log_level": log_level,
        "log_format": log_format,
    }
    loaded = load_config(CsiConfig, file=config, flags=_apply_settings(flags, settings))

    def start() -> Coroutine[Any, Any, int]:
        from alluxio_like.csi.app import run

        return run(loaded)

    _serve("csi", loaded, start, 0, -1)


def parse_cache_dir(text: str) -> dict[str, Any]:
    """DIR or DIR=SIZE as a cache directory's settings."""
    path, equals, size = text.rpartition("=")
    if not equals:
        return {"path": Path(text).absolute()}
    return {"path": Path(path).absolute(), "quota_bytes": parse_size(size)}


def _common_flags(given: dict[str, Any]) -> dict[str, Any]:
    """The flags that all services have, as their configuration is nested; those not given are None."""
    home, timeout = given.get("home"), given.get("io_timeout")
    flags: dict[str, Any] = {
        "home": home.absolute() if home else None,
        "bind": given.get("bind"),
        "advertise": given.get("advertise"),
        "http_bind": given["http_bind"],
        "insecure": given["insecure"],
        "tls": {"certificate": given.get("tls_certificate"), "key": given.get("tls_key"), "ca": given["tls_ca"]},
        "token_file": given["token_file"],
        "ready_file": given["ready_file"],
        "log_level": given["log_level"],
        "log_format": given["log_format"],
        "io_timeout_s": parse_duration(timeout) if timeout else None,
    }
    return _apply_settings(flags, given["settings"])


def _apply_settings(flags: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Flags with what --set says on top."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"--set {setting}: write --set KEY=VALUE", subject=setting)
        names = key.split(".")
        value: Any = text
        for name in reversed(names[1:]):
            value = {name: value}
        flags = _merge_set(flags, names[0], value)
    return flags


def _merge_set(flags: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    old = flags.get(key)
    both = isinstance(old, dict) and isinstance(value, dict)
    return {**flags, key: {**old, **{k: v for k, v in value.items() if v is not None}} if both else value}  # type: ignore[dict-item]


def _serve(
    service: str, config: ServiceConfig | CsiConfig, start: Callable[[], Coroutine[Any, Any, int]], supervisor: int, lifeline: int
) -> None:
    setup_logging(service, level=config.log_level, log_format=config.log_format)
    raise_limit()
    if lifeline >= 0:
        tie_to_supervisor(supervisor, lifeline)
    try:
        status = run_async(_guard(start))
    except AlluxioLikeError:
        raise
    except Exception:
        log.exception("the %s failed", service)
        status = 1
    sys.stdout.flush()
    sys.exit(status)


async def _guard(start: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run the service; a loop's unhandled errors are logged, with a traceback, and end nothing."""
    asyncio.get_running_loop().set_exception_handler(_log_unhandled)
    service = start()
    # With it everything it needs was imported.
    pauses.keep_short()
    return await service


def _log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.error("unhandled in the event loop: %s", context.get("message"), exc_info=error)


def tie_to_supervisor(supervisor: int, lifeline: int) -> None:
    """End with the supervisor: SIGTERM at its death, and the hard way if that has not ended us in ORPHAN_GRACE_S.

    `lifeline` is the reading end of a pipe whose other end only the supervisor holds.
    """
    _end_with(supervisor)

    def watch() -> None:
        while True:
            with contextlib.suppress(InterruptedError):
                if not os.read(lifeline, 1):
                    break
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _end_with(supervisor: int) -> None:
    """SIGTERM at the supervisor's death; this outlasts an exec."""
    with contextlib.suppress(OSError):
        libc.set_death_signal(signal.SIGTERM)
    if os.getppid() != supervisor:
        sys.exit(1)
