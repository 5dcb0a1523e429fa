"""The connection to one HDFS: hdfs-native's clients, made when needed, replaced when they hang, never dropped in haste.

Owns how options become the library's configuration, who the process is to HDFS, and the life of the clients. What 0.14.7 of the
library makes necessary (docs/decisions/0027-hdfs.md):

- It has no timeout for the NameNode, and a connection that fell silent stays in use for as long as TCP lets it. So every call has
  a time here, and after one that ran out the clients are made anew.
- Its asynchronous client must not be dropped while one of its threads may be calling into Python: dropping waits for those
  threads, holding the lock that they wait for. So clients that are done with are kept until they have been quiet for a while, and
  at exit they are not dropped at all.
- Listing is 30 times as fast with the blocking client, which cannot be interrupted: it is driven in threads, and only
  while the NameNode answers others.
- The user can only be given by an environment variable, so all mounts of a process act as one.

Used on one event loop; only what the docstring says runs in threads.
"""

import asyncio
import atexit
import ctypes
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

from hdfs_native import AsyncClient, Client

from alluxio_like import errors
from alluxio_like.ufs.hdfs_errors import convert_error
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.threads import BlockingPool
from alluxio_like.ufs.uri import StoreUri

T = TypeVar("T")

DEFAULT_PORT = 8020
_QUIET_S = 60.0
"""A client may be dropped so long after its last call: no thread of it can still be on its way into Python then, nor looking up
a name (the resolver gives up after 30 s), which dropping would wait for."""
_LISTING_THREADS = 4
"""A guess: a listing waits for the NameNode, a millisecond a thousand names."""
_SOCKET_TIMEOUT = "dfs.client.socket-timeout"
_USER = "HADOOP_USER_NAME"


@dataclass(frozen=True, slots=True)
class HdfsSettings:
    """What it takes to connect; built from a URI and its parsed options."""

    authority: str
    config: Mapping[str, str]
    config_dir: str | None
    user: str | None
    principal: str | None
    keytab: str | None
    ticket_cache: str | None
    io_timeout_s: float

    @classmethod
    def make(cls, uri: StoreUri, values: Mapping[str, OptionValue], io_timeout_s: float) -> "HdfsSettings":
        """Raises ConfigError where URI and options do not fit together."""

        def text(name: str) -> str | None:
            return str(values[name]) if name in values else None

        has_port = uri.authority.rpartition("]")[2].count(":") == 1
        config_dir = text("config_dir")
        if config_dir is not None and not (Path(config_dir) / "core-site.xml").is_file():
            raise errors.ConfigError("config_dir has no core-site.xml in it", subject=config_dir)
        silence_s = float(values.get("timeout_s", io_timeout_s / 5))
        config = {
            _SOCKET_TIMEOUT: str(max(1, int(silence_s * 1000))),
        }
        if values.get("use_datanode_hostname"):
            config["dfs.client.use.datanode.hostname"] = "true"
        if "principal" in values:
            config["hadoop.security.authentication"] = "kerberos"
        if "namenodes" in values:
            if has_port:
                raise errors.ConfigError("with namenodes the URI names the nameservice, without a port", subject=str(uri))
            config.update(_make_nameservice(uri.authority, str(values["namenodes"])))
        return cls(
            uri.authority,
            config,
            config_dir,
            text("user"),
            text("principal"),
            text("keytab"),
            text("ticket_cache"),
            io_timeout_s,
        )

    @property
    def address(self) -> str:
        return f"hdfs://{self.authority}"


def _make_nameservice(name: str, namenodes: str) -> dict[str, str]:
    addresses = [address.strip() for address in namenodes.split(",")]
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit()):
            raise errors.ConfigError(f"option namenodes: {address!r} is not HOST:PORT", subject="namenodes")
    names = [f"nn{number}" for number in range(1, len(addresses) + 1)]
    prefix = f"dfs.namenode.rpc-address.{name}"
    return {f"dfs.ha.namenodes.{name}": ",".join(names)} | {
        f"{prefix}.{nn}": address for nn, address in zip(names, addresses, strict=True)
    }


@dataclass(slots=True, eq=False)
class Clients:
    """The clients of one connection, by how many they are in use, and when the last use ended. `writer` and `lister` are made in
    a thread, holding `lock`. (A writer waits for a DataNode as long as for a store: syncing a block takes its time.)"""

    client: AsyncClient
    pool: BlockingPool
    writer: AsyncClient | None = None
    lister: Client | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    uses: int = 0
    used_s: float = 0.0
    is_retired: bool = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While it lasts they are in use."""
        self.uses += 1
        try:
            yield
        finally:
            self.uses -= 1
            self.used_s = time.monotonic()


class HdfsLink:
    """Calls to one HDFS, each within the time, its errors as ours."""

    def __init__(self, settings: HdfsSettings) -> None:
        self._settings = settings
        self._clients: Clients | None = None
        self._connecting: asyncio.Task[Clients] | None = None
        self._user_claimed = False
        self._is_closed = False

    async def call(self, ask: Callable[[AsyncClient], Awaitable[T]], subject: str) -> T:
        """What the NameNode answers to `ask`."""
        clients = await self.get_clients()
        return await self.call_on(clients, ask(clients.client), subject)

    async def call_on(self, clients: Clients, answer: Awaitable[T], subject: str) -> T:
        """What the NameNode answers to these clients."""
        return await self._watch(clients, answer, subject, is_rpc=True)

    async def transfer(self, clients: Clients, answer: Awaitable[T], subject: str) -> T:
        """What DataNodes answer to something that was opened with these clients."""
        return await self._watch(clients, answer, subject, is_rpc=False)

    async def call_blocking(self, ask: Callable[[Client], T], subject: str) -> T:
        """What `ask` answers in a thread, with the blocking client."""
        clients = await self.get_clients()

        def run() -> T:
            with clients.lock:
                lister = clients.lister or _make_client(Client, self._settings)
                clients.lister = lister
            return ask(lister)

        # The thread would go on for as long as a silent NameNode lets it wait; the time is kept by `_watch`, a little earlier.
        answer = clients.pool.run(run, timeout_s=self._settings.io_timeout_s + 1)
        return await self._watch(clients, answer, subject, is_rpc=True)

    async def get_writer(self, clients: Clients) -> AsyncClient:
        """What files are created and appended to with."""

        def make() -> AsyncClient:
            config = {**self._settings.config, _SOCKET_TIMEOUT: str(int(self._settings.io_timeout_s * 1000))}
            with clients.lock:
                made = clients.writer or _make_client(AsyncClient, replace(self._settings, config=config))
                clients.writer = made
            return made

        if clients.writer is not None:
            return clients.writer
        return await clients.pool.run(make, timeout_s=self._settings.io_timeout_s)

    async def close(self) -> None:
        """Calls under way are not waited for."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._clients is not None:
            self._retire(self._clients)
        if self._user_claimed:
            self._user_claimed = False
            _release_user()

    async def _watch(self, clients: Clients, answer: Awaitable[T], subject: str, *, is_rpc: bool) -> T:
        try:
            with clients.hold():
                async with asyncio.timeout(self._settings.io_timeout_s):
                    return await answer
        except TimeoutError:
            if is_rpc:
                self._retire(clients)
            what = "the NameNode" if is_rpc else "a DataNode"
            raise errors.StoreUnavailable(f"{what} stopped answering", subject=subject) from None
        except errors.AlluxioLikeError:
            raise
        except Exception as error:
            raise convert_error(error, subject, self._settings.address) from error
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # the library's own defect, which is no Exception
                raise errors.StoreProtocol(f"hdfs-native broke off: {error}", subject=subject) from error
            raise

    async def get_clients(self) -> Clients:
        """Made by the first call; callers share the attempt, and a failed one is made again by the next."""
        if self._clients is not None:
            return self._clients
        if self._is_closed:
            raise errors.StoreUnavailable("the store is closed", subject=self._settings.address)
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._finish_connecting)
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Clients:
        _bury(time.monotonic())
        if not self._user_claimed and self._settings.principal is None:
            _claim_user(self._settings.user)
            self._user_claimed = True
        pool = BlockingPool(self._settings.address, _LISTING_THREADS)
        try:
            client = await pool.run(partial(_make_client, AsyncClient, self._settings), timeout_s=self._settings.io_timeout_s)
        except BaseException:
            pool.close()
            raise
        clients = Clients(client, pool, used_s=time.monotonic())
        _kept.append(clients)
        return clients

    def _finish_connecting(self, task: "asyncio.Task[Clients]") -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._clients = task.result()

    def _retire(self, clients: Clients) -> None:
        if self._clients is clients:
            self._clients = None
            clients.pool.close()
            clients.used_s = time.monotonic()
            clients.is_retired = True


Made = TypeVar("Made", AsyncClient, Client)


def _make_client(kind: type[Made], settings: HdfsSettings) -> Made:
    """In a thread: reads configuration files, and may look up names."""

    def make(url: str, namenodes: int) -> Made:
        return kind(
            url,
            # Each NameNode is tried once; repeating is the caller's. (The library would wait before the second round, which its
            # asynchronous client does not survive.)
            {**settings.config, "dfs.client.failover.max.attempts": str(max(0, namenodes - 1))},
            settings.config_dir,
            kerberos_principal=settings.principal,
            kerberos_keytab=settings.keytab,
            kerberos_cache=settings.ticket_cache,
        )

    try:
        try:
            return make(settings.address, _count_namenodes(settings))
        except RuntimeError as error:
            if ":" in settings.authority or not str(error).startswith('InvalidArgument("No NameNode'):
                raise
        # No nameservice of that name is configured: then it is a host, on the port that NameNodes have.
        return make(f"{settings.address}:{DEFAULT_PORT}", 1)
    except (RuntimeError, OSError) as error:
        raise errors.ConfigError(f"hdfs-native does not take the configuration: {error}", subject=settings.address) from error


def _count_namenodes(settings: HdfsSettings) -> int:
    """How many a nameservice has, by the options or else the files that the library reads; 1 where it is none."""
    name = f"dfs.ha.namenodes.{settings.authority}"
    found = settings.config.get(name, "")
    home = os.environ.get("HADOOP_HOME")
    directory = settings.config_dir or os.environ.get("HADOOP_CONF_DIR") or (f"{home}/etc/hadoop" if home else None)
    for file in ("hdfs-site.xml", "core-site.xml") if directory else ():
        with suppress(OSError, ElementTree.ParseError):
            for entry in ElementTree.parse(Path(directory or "") / file).iter("property"):
                if entry.findtext("name") == name:
                    found = found or entry.findtext("value", "")
    return max(1, len([nn for nn in found.split(",") if nn.strip()]))


# -- what belongs to the process ------------------------------------------------------------------------------------------------
#
# On the event loop's thread (or, in tests, one loop after the other): a process has one environment, and clients outlive their
# stores.

_kept: list[Clients] = []
_user_before: list[str | None] = []
_users = 0


def _bury(now_s: float) -> None:
    """Drop the clients that nobody will use again and that have been quiet for long enough."""
    _kept[:] = [clients for clients in _kept if not clients.is_retired or clients.uses or now_s - clients.used_s < _QUIET_S]


def _claim_user(user: str | None) -> None:
    """Make `user` (None: whoever the process is) the one that the library acts as. Raises ConfigError while stores of another
    are open."""
    global _users
    if _users == 0:
        _user_before[:] = [os.environ.get(_USER)]
        if user is not None:
            os.environ[_USER] = user
    elif (user or _user_before[0]) != os.environ.get(_USER):
        raise errors.ConfigError(
            "without Kerberos all HDFS mounts of a process act as one user, and others are mounted with another one",
            subject=user or "the default user",
        )
    _users += 1


def _release_user() -> None:
    global _users
    _users -= 1
    if _users == 0:
        (before,) = _user_before
        if before is None:
            os.environ.pop(_USER, None)
        else:
            os.environ[_USER] = before


@atexit.register
def _keep_forever() -> None:
    """At exit nobody drops a client: the end of the process ends its threads."""
    for clients in _kept:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(clients))
