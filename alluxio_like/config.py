"""One frozen, typed configuration per service.

Owns names, types, defaults and checks of settings, and where they come from (TOML file, environment, flags; the later wins).
Unknown keys fail. Units stand in the names. Plain data after loading; safe from any thread.

A TOML file has one table for each service, [master], [worker], [fuse], [client], and [common] for what all services have.
Environment variables are ALLUXIO_LIKE_ and the setting's name in capitals, two underscores before a nested one:
ALLUXIO_LIKE_LOG_LEVEL=debug, ALLUXIO_LIKE_TLS__CA=/etc/ca.pem; lists are JSON.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from alluxio_like.errors import ConfigError, InvalidArgument

DEFAULT_MASTER_ADDRESS = "127.0.0.1:19998"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsConfig(_Frozen):
    """Certificates, PEM files, read again when they are replaced. All three are needed but where `client_auth` is off."""

    certificate: Path | None = Field(
        None,
        description="what this service, or client, shows to the others: its certificate, with what leads up to the authority",
    )
    key: Path | None = Field(None, description="the certificate's private key, without a password")
    ca: Path | None = Field(None, description="authority that signed the others' certificates; empty: no TLS to them")
    server_name: str = Field(
        "",
        description="name that certificates of services have, checked instead of the host that is called: for services whose "
        "addresses no certificate can name, as those of pods; empty: the host",
    )
    client_auth: str = Field(
        "require",
        pattern="^(require|off)$",
        description="require: a master or worker that has a certificate answers only who shows one of the authority in `ca`; "
        "off: everybody who can connect",
    )


class ServiceConfig(_Frozen):
    """What every service of the cluster has."""

    bind: str = Field("127.0.0.1:0", description="host:port to listen on; port 0 picks a free one")
    advertise: str = Field("", description="host:port under which others reach this service; empty: what it bound to")
    http_bind: str = Field("127.0.0.1:0", description="host:port of /metrics and /healthz; empty: none")
    insecure: bool = Field(False, description="allow an address other than loopback without TLS")
    tls: TlsConfig = Field(TlsConfig(), description="PEM files")
    token_file: Path | None = Field(None, description="file with the cluster's token, shared by master and workers; mode 0600")
    client_token_file: Path | None = Field(
        None,
        description="file with tokens, one a line, of which clients must show one to master and workers for reading too (the "
        "cluster's token does as well); mode 0600, read again when it changes; empty: reading needs none",
    )
    io_timeout_s: float = Field(
        30.0, gt=0, description="longest that any read, open or lookup takes before it fails with a clear error"
    )
    log_level: str = Field("info", description="debug, info, warning or error")
    log_format: str = Field("text", pattern="^(text|json)$", description="text or json, one line an event, on standard error")
    ready_file: Path | None = Field(
        None, description="written, as one JSON line with addresses and pid, once the service is ready"
    )


class MasterConfig(ServiceConfig):
    bind: str = Field(DEFAULT_MASTER_ADDRESS, description="host:port to listen on")
    home: Path = Field(description="directory of the namespace and the mount table")
    metadata_url: str = Field(
        "", repr=False, description="empty: lmdb://HOME/meta; or postgresql://USER@HOST/DATABASE, for a master that may move"
    )
    sync_interval_s: float = Field(300.0, description="how long a listing is believed, where a mount does not say otherwise")
    whole_file_limit_bytes: int = Field(1 << 30, description="files up to this size are placed whole, larger ones by block")
    worker_timeout_s: float = Field(5.0, description="a worker that was silent for so long is taken for dead")
    page_entries: int = Field(1000, description="entries asked of a store in one listing request")


class CacheDirConfig(_Frozen):
    """One cache directory; `quota_bytes` None: 80 % of the disk."""

    path: Path = Field(description="the directory; one worker's alone")
    quota_bytes: int | None = Field(None, description="most it may hold; empty: 80 % of the disk")
    tier: str = Field("SSD", pattern="^(MEM|SSD|HDD)$", description="what it is made of: MEM, SSD or HDD")


class WorkerConfig(ServiceConfig):
    master: str = Field(DEFAULT_MASTER_ADDRESS, description="host:port of the master to join")
    home: Path = Field(description="directory of the worker's lock and unix socket")
    cache_dirs: tuple[CacheDirConfig, ...] = Field((), description="where cache files go; empty: HOME/cache")
    allow_root_disk: bool = Field(False, description="accept a cache directory on the root file system")
    keep_free_fraction: float = Field(0.1, description="of each disk, never used")
    high_watermark: float = Field(0.95, description="of a directory's quota: eviction starts")
    low_watermark: float = Field(0.90, description="of a directory's quota: eviction ends")
    fetch_concurrency: int = Field(16, description="requests to stores under way at once for somebody who waits")
    load_concurrency: int = Field(12, description="requests to stores under way at once for loads")
    max_request_bytes: int = Field(8 << 20, description="largest range asked of a store in one request")
    data_bind: str = Field(
        "",
        description="host:port of the data socket; empty: the host of `bind` and a free port; off: none, gRPC carries the bytes",
    )
    heartbeat_interval_s: float = Field(1.0, description="between two messages to the master")
    door_users: tuple[str, ...] = Field(
        (),
        description="users and groups (@name) of this machine that may open cached files directly, one by one",
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        description="told to stop, a worker first uploads what programs have written, what was written last first, for at most "
        "so long; what is left is taken up after the next start",
    )
    cap_unpersisted: bool = Field(
        False,
        description="let no more wait for its upload (write=back) than goes to the store within drain_s at the speed measured: "
        "where there is more, a close takes until its own file is in the store",
    )
    upload_guess_bytes_s: int = Field(
        100_000_000, gt=0, description="bytes per second that uploads are taken to make, until measured"
    )
    upload_part_bytes: int = Field(
        32 << 20,
        ge=1 << 20,
        description="what programs have written goes to its store in parts of this length, or longer ones where the store wants "
        "that, several at once; what is shorter than that and than 16 MiB goes in one request",
    )
    scrub_period_s: float = Field(
        7 * 86400.0, gt=0, description="within this time every cached page is read again and compared with its checksum"
    )


class ClientConfig(_Frozen):
    """What the client library needs, be it in the FUSE daemon, the CLI or a training process."""

    master: str = Field(DEFAULT_MASTER_ADDRESS, description="host:port of the master")
    tls: TlsConfig = Field(TlsConfig(), description="PEM files")
    token_file: Path | None = Field(
        None, description="file with a client's token, or the cluster's, which also lets it mount; mode 0600"
    )
    io_timeout_s: float = Field(30.0, gt=0, description="longest that a call takes before it fails with a clear error")
    readahead_max_bytes: int = Field(128 << 20, description="furthest that one reader's sequential reads run ahead")
    buffer_bytes: int = Field(256 << 20, description="memory for bytes in flight, of the whole process")
    master_wait_s: float = Field(
        10.0, ge=0, description="how long a command waits for a master that does not answer, such as one that is starting anew"
    )
    use_local_cache: bool = Field(True, description="read cache files of workers on this machine directly")
    strict: bool = Field(
        False, description="names: fail with ETIMEDOUT rather than answer from memory while the master cannot be asked"
    )
    open_files: int = Field(
        16384, ge=0, description="small files that read_many keeps open; it leaves 2,048 of what `ulimit -n` allows, or half"
    )


class FuseConfig(ServiceConfig):
    mountpoint: Path = Field(description="directory to mount on; made, and removed again, where it does not exist")
    path: str = Field("/", description="the namespace's path that is mounted")
    client: ClientConfig = Field(ClientConfig(), description="as [client], for this mount")
    session: str = Field(
        "auto",
        pattern="^(auto|kernel|pyfuse3)$",
        description="how to talk to the kernel; auto: kernel where we may, else pyfuse3",
    )
    passthrough: str = Field(
        "auto",
        pattern="^(auto|on|off)$",
        description="let the kernel read wholly local files by itself; on: fail where it cannot, auto: where it can",
    )
    processes: int = Field(
        1, ge=1, le=64, description="processes that serve the mount: the daemon, and readers beside it (kernel session)"
    )
    fill_at_open_bytes: int = Field(
        8 << 20,
        description="a file up to this size that is not local is brought when it is opened, and read by the kernel at once; "
        "one up to 1 MiB that another machine holds is read from there, and brought when it is read again",
    )
    fill_in_background: bool = Field(
        True,
        description="bring larger files that are read to this machine, so that the kernel reads them from their next open on",
    )
    verify_open: bool = Field(
        False, description="compare a file with its checksums at each open before the kernel reads it by itself"
    )
    open_wait_bytes: int = Field(
        0, description="an open waits, at most io_timeout_s, until a file up to this size is on this machine"
    )
    read_only: bool = Field(False, description="refuse to change anything, also where the namespace can be written")
    delegated_directories: bool = Field(
        True,
        description="small files in directories that the mount has just made are made without asking the master, which hears of "
        "them in batches (policies `cache` and `back`); off: each is made by asking",
    )
    follow_interval_s: float = Field(
        5.0,
        ge=0,
        description="what is written to a file of up to 64 MiB that stays open is seen by who opens it on other mounts after so "
        "long, twice that at the latest; 0: once it is closed",
    )
    allow_other: bool | None = Field(None, description="let other users in; empty: where we may")
    suid: bool = Field(
        False,
        description="set-id bits and capabilities of programs on the mount count (needs root): who may set them on any machine "
        "that writes is trusted here",
    )
    read_ahead_kb: int = Field(4096, description="the kernel's read-ahead for the mount (needs root)")
    entry_timeout_s: float = Field(
        86_400.0, description="longest time the kernel keeps a name or attributes without asking; the master's answers bound it"
    )
    give_up_s: float = Field(
        10.0, gt=0, description="how long requests wait while no daemon serves the mount; then they fail with EIO until one does"
    )
    standby: bool = Field(
        True, description="keep a second process of the daemon ready, so that a restart takes a moment on a busy machine too"
    )
    resend: bool = Field(
        True, description="have what a daemon that died left unanswered sent again to the next (Linux 6.9); off: it fails"
    )

    @property
    def shares_locks(self) -> bool:
        """Whether locks of files are seen by all mounts: where the mount can be written, and the cluster's token is known."""
        return not self.read_only and self.client.token_file is not None


class CsiConfig(_Frozen):
    """The CSI node plugin, which is no part of the cluster: it shows parts of a mount of its node to pods."""

    endpoint: str = Field("unix:///csi/csi.sock", pattern="^unix:(//)?/.+", description="unix socket that the kubelet calls")
    node_id: str = Field(min_length=1, max_length=256, description="the node's name in the cluster of containers")
    driver_name: str = Field(
        "csi.alluxio-like",
        pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$",
        description="the plugin's name, that of its CSIDriver object",
    )
    mountpoint: Path = Field(description="the node's mount, of which volumes show parts")
    path: str = Field("/", pattern="^/", description="the namespace's path that is mounted there")
    inline_paths: tuple[str, ...] = Field(
        ("/",),
        description="paths of the namespace below which inline volumes may be, {namespace} in them being that of the pod; those "
        "are written by whoever makes a pod, persistent volumes by who runs the cluster",
    )
    check_s: float = Field(5.0, gt=0, description="how long the mount may take to answer before it counts as dead")
    log_level: str = Field("info", description="debug, info, warning or error")
    log_format: str = Field("text", pattern="^(text|json)$", description="text or json, one line an event, on standard error")
    ready_file: Path | None = Field(None, description="written, as one JSON line with socket and pid, once the plugin is ready")


SERVICES: dict[str, type[BaseModel]] = {
    "master": MasterConfig,
    "worker": WorkerConfig,
    "fuse": FuseConfig,
    "client": ClientConfig,
    "csi": CsiConfig,
}
ENV_PREFIX = "ALLUXIO_LIKE_"

_OTHER_VARIABLES = frozenset({"CONFIG", "HOME", "RUN_DIR"})
# What Kubernetes sets in every pod for a service named alluxio-like-…; none of our settings ends like that.
_KUBERNETES = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)$")

C = TypeVar("C", bound=BaseModel)


def load_config(model: type[C], *, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> C:
    """A service's configuration from its defaults, a TOML file, the environment and flags; the later wins.

    `flags` is nested as the model is; None in it means that the flag was not given. A file ending in .json holds one service's
    settings as `save_config` wrote them, and then the environment counts for nothing. Raises ConfigError, one line that names the
    setting and what would be right.
    """
    name = next(service for service, known in SERVICES.items() if known is model)
    values: dict[str, Any] = {}
    if file is not None and file.suffix == ".json":
        values = json.loads(_read(file))
    else:
        if file is not None:
            values = _from_toml(name, file)
        values = _merge(values, _from_environment(name, model))
    values = _merge(values, _without_none(flags or {}))
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(name, model, error) from None


def save_config(config: BaseModel, file: Path) -> None:
    """Write a configuration for `load_config` to read, unreadable to others (mode 0600)."""
    temporary = file.with_name(file.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(config.model_dump_json(indent=1))
    temporary.replace(file)


def write_ready_file(config: ServiceConfig | CsiConfig, **facts: Any) -> None:
    """Say that a service is ready, if that was asked for: one JSON line with its pid and `facts` (address, http_address, …)."""
    if config.ready_file is None:
        return
    temporary = config.ready_file.with_name(f"{config.ready_file.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"pid": os.getpid(), **facts}) + "\n")
    temporary.replace(config.ready_file)


_UNITS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40, "pi": 1 << 50,
}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes from 500MB (decimal), 20GiB (binary), 1.5T or a plain number; raises InvalidArgument."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?i?)b?\s*(?:/s)?\s*", text, re.IGNORECASE)
    if not match or match[2].lower() not in _UNITS:
        raise InvalidArgument(f"{text!r} is not a size: write 500MB, 20GiB or a number of bytes", subject=text)
    whole = int(match[1]) if match[1].isdecimal() else float(match[1])
    return int(whole * _UNITS[match[2].lower()])


def parse_duration(text: str) -> float:
    """Seconds from 90, 1.5s, 500ms, 5m, 2h or 1d; raises InvalidArgument."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", text)
    if not match:
        raise InvalidArgument(f"{text!r} is not a duration: write 30s, 5m, 2h or a number of seconds", subject=text)
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read the configuration file {file}: {reason}", subject=str(file)) from error


def _from_toml(name: str, file: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(_read(file))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}", subject=str(file)) from error
    for table, value in tables.items():
        if table not in {*SERVICES, "common"}:
            known = f"settings stand in the tables {', '.join(f'[{one}]' for one in ('common', *SERVICES))}"
            raise ConfigError(
                f"{file}: unknown table or key {table!r}{_nearest(table, [*SERVICES, 'common'])}; {known}", subject=table
            )
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: {table!r} must be a table, [{table}]", subject=table)
    common = tables.get("common", {})
    for key in common:
        if key not in ServiceConfig.model_fields:
            raise ConfigError(f"{file}: unknown key {key!r} in [common]{_nearest(key, ServiceConfig.model_fields)}", subject=key)
    fields = SERVICES[name].model_fields
    values = _merge({key: value for key, value in common.items() if key in fields}, tables.get(name, {}))
    if "client" in fields:
        # The client inside needs what [common] says of TLS and the token as much as a client alone.
        shared = {key: value for key, value in common.items() if key in ClientConfig.model_fields}
        values = _merge({"client": _merge(shared, tables.get("client", {}))}, values)
    return values


def _from_environment(name: str, model: type[BaseModel]) -> dict[str, Any]:
    known = {field.upper() for service in SERVICES.values() for field in service.model_fields} | _OTHER_VARIABLES
    for variable in os.environ:
        key = variable.removeprefix(ENV_PREFIX).partition("__")[0]
        if (
            variable.startswith(ENV_PREFIX)
            and key not in known
            and not _KUBERNETES.search(variable)
            and not key.startswith("TEST_")
        ):
            raise ConfigError(f"unknown environment variable {variable}{_nearest(key, known, ENV_PREFIX)}", subject=variable)
    fields: dict[str, Any] = {key: (field.annotation, None) for key, field in model.model_fields.items()}
    settings = create_model(f"{name}_environment", __base__=BaseSettings, **fields)
    try:
        values = EnvSettingsSource(settings, env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True)()
    except SettingsError as error:
        raise ConfigError(f"the environment cannot be used: {error}") from error
    if "client" in model.model_fields:
        client = _from_environment("client", ClientConfig)
        values = _merge({"client": client} if client else {}, values)
    return values


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, tables merged key by key; where both have a value, that of `above`."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def override(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, nested as their model is, with those flags on top that are not None."""
    return _merge(dict(values), _without_none(flags))


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in cleaned.items() if value is not None and value != {}}


def _nearest(word: str, known: Any, prefix: str = "") -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {prefix}{found[0]}?" if found else ""


def _explain(name: str, model: type[BaseModel], error: ValidationError) -> ConfigError:
    # A key that is not known is the likelier reason why another one is missing.
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields: Any = model.model_fields
        for part in first["loc"][:-1]:
            nested = fields[part].annotation if isinstance(part, str) and part in fields else None
            fields = getattr(nested, "model_fields", {})
        return ConfigError(f"{name}: unknown setting {where!r}{_nearest(str(first['loc'][-1]), fields)}", subject=where)
    if first["type"] == "missing":
        return ConfigError(
            f"{name}: {where!r} is not set: give --{where.replace('_', '-')}, {ENV_PREFIX}{where.upper()} "
            f"or {where} in the file's [{name}]",
            subject=where,
        )
    return ConfigError(f"{name}: {where} = {first['input']!r}: {first['msg'].lower()}", subject=where)
