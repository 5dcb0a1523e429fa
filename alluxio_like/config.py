"""One frozen, typed configuration per service.

Owns names, types, defaults and checks of settings, and where they come from (TOML file, environment, flags; the later wins).
Unknown keys fail. Units stand in the names. Plain data after loading; safe from any thread.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MASTER_ADDRESS = "127.0.0.1:19998"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsConfig(_Frozen):
    """Certificates, PEM files. A server needs `certificate` and `key`; whoever calls one needs `ca`."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None


class ServiceConfig(_Frozen):
    """What every service has."""

    bind: str = Field("127.0.0.1:0", description="host:port to listen on; port 0 picks a free one")
    advertise: str = Field("", description="host:port under which others reach this service; empty: what it bound to")
    http_bind: str = Field("127.0.0.1:0", description="host:port of /metrics and /healthz; empty: none")
    insecure: bool = Field(False, description="allow an address other than loopback without TLS")
    tls: TlsConfig = TlsConfig()
    token_file: Path | None = Field(None, description="file with the cluster's token, shared by master and workers; mode 0600")
    io_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """The longest any read, open or lookup takes before it fails with a clear error."""
    log_level: str = "info"
    log_format: str = Field("text", pattern="^(text|json)$")
    ready_file: Path | None = Field(
        None, description="written, as one JSON line with addresses and pid, once the service is ready"
    )


class MasterConfig(ServiceConfig):
    bind: str = DEFAULT_MASTER_ADDRESS
    home: Path = Field(description="directory of the namespace and the mount table")
    metadata_url: str = Field("", description="empty: lmdb://HOME/meta")
    sync_interval_s: float = Field(300.0, description="how long a listing is believed, where a mount does not say otherwise")
    whole_file_limit_bytes: int = 1 << 30
    worker_timeout_s: float = Field(5.0, description="a worker that was silent for so long is taken for dead")
    page_entries: int = Field(1000, description="entries asked of a store in one listing request")


class CacheDirConfig(_Frozen):
    """One cache directory; `quota_bytes` None: 80 % of the disk."""

    path: Path
    quota_bytes: int | None = None
    tier: str = Field("SSD", pattern="^(MEM|SSD|HDD)$")


class WorkerConfig(ServiceConfig):
    master: str = DEFAULT_MASTER_ADDRESS
    home: Path = Field(description="directory of the worker's lock and unix socket")
    cache_dirs: tuple[CacheDirConfig, ...] = ()
    allow_root_disk: bool = Field(False, description="accept a cache directory on the root file system")
    keep_free_fraction: float = Field(0.1, description="of each disk, never used")
    high_watermark: float = Field(0.95, description="of a directory's quota: eviction starts")
    low_watermark: float = Field(0.90, description="of a directory's quota: eviction ends")
    fetch_concurrency: int = Field(16, description="requests to stores under way at once for somebody who waits")
    load_concurrency: int = Field(12, description="requests to stores under way at once for loads")
    max_request_bytes: int = Field(8 << 20, description="largest range asked of a store in one request")
    heartbeat_interval_s: float = 1.0


class ClientConfig(_Frozen):
    """What the client library needs, be it in the FUSE daemon, the CLI or a training process."""

    master: str = DEFAULT_MASTER_ADDRESS
    tls: TlsConfig = TlsConfig()
    token_file: Path | None = None
    io_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    readahead_max_bytes: int = Field(64 << 20, description="furthest that one reader's sequential reads run ahead")
    buffer_bytes: int = Field(256 << 20, description="memory for bytes in flight, of the whole process")
    use_local_cache: bool = Field(True, description="read cache files of workers on this machine directly")


class FuseConfig(ServiceConfig):
    mountpoint: Path
    path: str = Field("/", description="the namespace's path that is mounted")
    client: ClientConfig = ClientConfig()
    session: str = Field("auto", pattern="^(auto|kernel|pyfuse3)$")
    allow_other: bool | None = Field(None, description="None: where we may")
    read_ahead_kb: int = Field(4096, description="the kernel's read-ahead for the mount (needs root)")
    entry_timeout_s: float = Field(5.0, description="longest time the kernel keeps a name or attributes without asking")
