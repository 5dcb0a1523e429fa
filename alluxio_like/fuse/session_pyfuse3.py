"""The pyfuse3 session: adapts the operations to pyfuse3, and pyfuse3 to this process's event loop.

Owns the conversion of attributes and errors, the loop that takes requests from the kernel, and the end of a mount. Knows
nothing of the namespace. One session a process (pyfuse3 keeps its session in globals), on one event loop.

pyfuse3 takes requests through the part of trio's interface that `pyfuse3.asyncio` imitates. `_Port` is such an imitation with
what that one lacks:
- a request whose caller is killed between the device becoming readable and being read is gone, and the read finds nothing. On a
  blocking device it would stop the whole process (the GIL is held) until somebody makes another request; on a non-blocking one,
  as uvloop makes it, pyfuse3's task fails. Here it is non-blocking on any loop, and the task goes on;
- a failing task is noticed, where asyncio's would vanish and leave requests unanswered for ever;
- a request that is already waiting is taken without a turn of the event loop.

Every handler answers, whatever happens in it: the kernel's caller waits in state D otherwise.
"""

import asyncio
import collections
import contextlib
import errno
import logging
import os
import select
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NoReturn, Self, TypeVar

import pyfuse3

from alluxio_like.errors import ConfigError
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.answers import STATFS_BLOCK_BYTES, get_space
from alluxio_like.fuse.attributes import PREFERRED_IO_BYTES, count_stat_blocks, get_stat_mode
from alluxio_like.fuse.kernel_memory import ROOT_NODE
from alluxio_like.fuse.meter import Meter
from alluxio_like.fuse.operations import NAME_MAX_BYTES, Operations
from alluxio_like.metrics import Metrics
from alluxio_like.types import Attr

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_MAX_TASKS = 2000
"""Requests under way at once. Each waits for its answer in a task with a buffer of its own (1 MiB of address space, of which
one page is touched), so that cold reads, however many, never stand in the way of warm ones."""
_MIN_TASKS = 4
"""Idle tasks that are kept waiting for requests. A guess."""
_BURST = 16
"""Requests taken one after the other before the event loop gets its turn. A guess."""


class _ClosedResourceError(Exception):
    """The session ends; pyfuse3's tasks take it for the end of the device."""


class _Lock:
    """The lock under which pyfuse3's tasks wait for requests, held by one at a time.

    asyncio's would hand itself to the next waiting task with each request. This one stays with the task that answers at once and
    comes back for more; another one is woken only when that task had to wait for something. Saves two switches of tasks a
    request.
    """

    def __init__(self) -> None:
        self._locked = False
        self._checking = False
        self._waiters: collections.deque[asyncio.Future[None]] = collections.deque()

    async def __aenter__(self) -> None:
        while self._locked:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except BaseException:
                self._check_soon()  # if it was this one's turn, it is another's now
                raise
            finally:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
        self._locked = True

    async def __aexit__(self, *exc: object) -> None:
        self._locked = False
        self._check_soon()

    def _check_soon(self) -> None:
        if self._waiters and not self._checking:
            self._checking = True
            asyncio.get_running_loop().call_soon(self._check)

    def _check(self) -> None:
        self._checking = False
        if not self._locked:
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return


class _Nursery:
    """Tasks that pyfuse3's main loop starts; as a context manager it ends when all of them have."""

    def __init__(self, port: "_Port") -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    def start_soon(self, function: Callable[..., Awaitable[None]], *args: Any, name: str | None = None) -> None:
        task = asyncio.create_task(self._port.run_task(function, *args), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def __aexit__(self, *exc: object) -> None:
        self._port.tasks = self._tasks
        while self._tasks:
            await asyncio.wait(list(self._tasks))


class _Task:
    name = "fuse"


class _Port:
    """What pyfuse3 uses of trio, on the running asyncio loop."""

    ClosedResourceError = _ClosedResourceError
    Lock = _Lock

    def __init__(self) -> None:
        self.lowlevel = self
        self.from_thread = self
        self.closing = False
        self.failure: BaseException | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.device = -1
        self._poll = select.poll()
        self._waiter: asyncio.Future[None] | None = None
        self._burst = 0

    @staticmethod
    def current_trio_token() -> str:
        return "asyncio"

    @staticmethod
    def current_task() -> type[_Task]:
        return _Task

    def open_nursery(self) -> _Nursery:
        return _Nursery(self)

    async def wait_readable(self, fd: int) -> None:
        """Return when a request waits. pyfuse3 calls it under a lock, so there is one waiter at a time."""
        if self.device != fd:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
            self.device = fd
        if self.closing:
            raise _ClosedResourceError
        if self._burst < _BURST and self._poll.poll(0):
            self._burst += 1
            return
        self._burst = 0
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        loop.add_reader(fd, self._wake, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            loop.remove_reader(fd)

    @staticmethod
    def _wake(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    def notify_closing(self, _fd: int) -> None:
        """Wake whoever waits for a request: there will be none."""
        self.closing = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(_ClosedResourceError())

    async def run_task(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run one of pyfuse3's loops; again where the request it was woken for was gone."""
        while True:
            try:
                await function(*args)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOENT, errno.EINTR):
                    self._fail(error)
                    return
            except _ClosedResourceError:
                return
            except Exception as error:  # noqa: BLE001  a defect: it is reported by Session.run
                self._fail(error)
                return

    def _fail(self, error: BaseException) -> None:
        log.critical("the FUSE loop failed", exc_info=error)
        self.failure = self.failure or error
        pyfuse3.terminate()


class _Handlers(pyfuse3.Operations):
    """pyfuse3's view of the operations."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, operations: Operations, io_timeout_s: float, meter: Meter, accounting: Accounting) -> None:
        super().__init__()
        self._operations = operations
        self._io_timeout_s = io_timeout_s
        self._meter = meter
        self._accounting = accounting
        self.ready = asyncio.Event()

    def init(self) -> None:
        self.ready.set()

    async def _run(self, what: str, call: Coroutine[Any, Any, _T], ctx: Any = None) -> _T:
        """`ctx`: whose wait for names and attributes it is."""
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._io_timeout_s):
                return await call
        except BaseException as error:  # noqa: BLE001  the kernel must get an answer whatever it is
            raise self._translate(what, error) from None
        finally:
            self._meter.count(what, started_s)
            if ctx is not None:
                self._accounting.note_wait(ctx.pid, time.perf_counter() - started_s)

    def _translate(self, what: str, error: BaseException) -> "pyfuse3.FUSEError":
        return pyfuse3.FUSEError(self._meter.translate(what, error))

    def _refuse(self) -> NoReturn:
        raise self._translate("write", self._operations.refuse_write())

    # Names and attributes

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> "pyfuse3.EntryAttributes":
        answer = await self._run("lookup", self._operations.lookup(parent_inode, name), ctx)
        if answer.entry is None:
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = answer.valid_s
            return missing
        return make_attributes(answer.entry.attr, answer.valid_s)

    async def getattr(self, inode: int, ctx: Any) -> "pyfuse3.EntryAttributes":
        attr, valid_s = await self._run("getattr", self._operations.getattr(inode), ctx)
        return make_attributes(attr, valid_s)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return await self._run("readlink", self._operations.readlink(inode))

    # Files

    async def open(self, inode: int, flags: int, ctx: Any) -> "pyfuse3.FileInfo":
        started_s = time.perf_counter()
        try:
            handle = self._operations.try_open(inode, flags)
        except BaseException as error:  # noqa: BLE001  the kernel must get an answer whatever it is
            self._meter.count("open", started_s)
            raise self._translate("open", error) from None
        if handle is None:
            handle = await self._run("open", self._operations.open(inode, flags), ctx)
        else:
            self._meter.count("open", started_s)
        file = self._operations.lookup_file(handle)
        keep, direct = True, False
        if file is not None:
            self._accounting.opened(ctx.pid, file)
            keep, direct = self._operations.choose_pages(file)
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep, direct_io=direct)

    async def read(self, fh: int, off: int, size: int) -> Any:
        started_s = time.perf_counter()
        try:
            data = self._operations.try_read(fh, off, size)
            waited = data is None
            if data is None:
                data = await self._operations.read(fh, off, size)
            file = self._operations.lookup_file(fh)
            if file is not None:
                file.read_bytes += len(data)
                file.waited_bytes += len(data) if waited else 0
            return data
        except BaseException as error:  # noqa: BLE001  the kernel must get an answer whatever it is
            raise self._translate("read", error) from None
        finally:
            self._meter.count("read", started_s)

    async def release(self, fh: int) -> None:
        started_s = time.perf_counter()
        try:
            file = self._operations.lookup_file(fh)
            if file is not None:
                self._accounting.closed(file)
            await self._operations.release(fh)  # nobody waits for it, so it needs no time limit
        except BaseException as error:  # noqa: BLE001  the kernel must get an answer whatever it is
            raise self._translate("release", error) from None
        finally:
            self._meter.count("release", started_s)

    # flush and fsync are left out: the kernel learns from the first ENOSYS and saves a round trip for each close.

    # Directories

    async def opendir(self, inode: int, ctx: Any) -> int:
        return await self._run("opendir", self._operations.opendir(inode), ctx)

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        def emit(name: bytes, attr: Attr, valid_s: float, following: int, _counted: bool) -> bool:
            return bool(pyfuse3.readdir_reply(token, name, make_attributes(attr, valid_s), following))

        await self._run("readdir", self._operations.readdir(fh, start_id, emit))

    async def releasedir(self, fh: int) -> None:
        await self._run("releasedir", self._operations.releasedir(fh))

    # The rest

    async def statfs(self, ctx: Any) -> "pyfuse3.StatvfsData":
        # (libfuse does not say of which inode: of the root.)
        space = get_space(await self._run("statfs", self._operations.statfs(ROOT_NODE)))
        data = pyfuse3.StatvfsData()
        free = space.free_bytes // STATFS_BLOCK_BYTES
        data.f_bsize = data.f_frsize = STATFS_BLOCK_BYTES
        data.f_blocks = max(free, space.total_bytes // STATFS_BLOCK_BYTES)
        data.f_bfree = data.f_bavail = free
        data.f_files = space.total_files
        data.f_ffree = data.f_favail = space.free_files
        data.f_namemax = NAME_MAX_BYTES
        return data

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        return await self._run("getxattr", self._operations.getxattr(inode, name))

    async def listxattr(self, inode: int, ctx: Any) -> Sequence[bytes]:
        return await self._run("listxattr", self._operations.listxattr(inode))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        return None

    # Writes. The mount is read-only for the kernel too; these answer where it was remounted.

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> NoReturn:
        self._refuse()

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> NoReturn:
        self._refuse()

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> NoReturn:
        self._refuse()

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> NoReturn:
        self._refuse()

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> NoReturn:
        self._refuse()

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> NoReturn:
        self._refuse()

    async def rename(self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int, ctx: Any) -> NoReturn:
        self._refuse()

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> NoReturn:
        self._refuse()

    async def write(self, fh: int, off: int, buf: bytes) -> NoReturn:
        self._refuse()

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> NoReturn:
        self._refuse()

    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> NoReturn:
        self._refuse()

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> NoReturn:
        self._refuse()


def make_attributes(attr: Attr, valid_s: float) -> "pyfuse3.EntryAttributes":
    """pyfuse3's form of an inode's attributes, valid for so many seconds."""
    made = pyfuse3.EntryAttributes()
    made.st_ino = attr.inode
    made.st_mode = get_stat_mode(attr)
    made.st_nlink = attr.nlink
    made.st_uid = attr.uid
    made.st_gid = attr.gid
    made.st_size = attr.size
    made.st_blocks = count_stat_blocks(attr)
    made.st_blksize = PREFERRED_IO_BYTES
    made.st_mtime_ns = made.st_atime_ns = attr.mtime_ns
    made.st_ctime_ns = attr.ctime_ns
    made.entry_timeout = made.attr_timeout = valid_s
    return made


class Session:
    """A mount and the loop that serves it."""

    def __init__(self, operations: Operations, io_timeout_s: float, metrics: Metrics, accounting: Accounting) -> None:
        self._port = _Port()
        self._handlers = _Handlers(operations, io_timeout_s, Meter(metrics), accounting)
        self._running = False

    @property
    def is_serving(self) -> bool:
        """Whether the kernel's requests are being answered; from any thread."""
        return self._running and self._handlers.ready.is_set() and not self._port.closing and self._port.failure is None

    def mount(self, mountpoint: str, options: set[str]) -> None:
        """Mount. Raises ConfigError where the kernel or fusermount3 refuses; libfuse then says why on stderr."""
        vars(pyfuse3)["trio"] = self._port  # as pyfuse3.asyncio.enable() does with its own
        logging.getLogger("pyfuse3").addFilter(_is_worth_logging)
        try:
            pyfuse3.init(self._handlers, mountpoint, options)
        except RuntimeError as error:
            raise ConfigError(f"cannot mount ({error})", subject=mountpoint) from None

    async def wait_ready(self) -> None:
        """Wait for the kernel's first request, after which the mount works."""
        await self._handlers.ready.wait()

    async def run(self) -> None:
        """Serve until the mount is gone or `stop` is called. Raises what broke the loop."""
        self._running = True
        try:
            await pyfuse3.main(_MIN_TASKS, _MAX_TASKS)
        finally:
            self._running = False
        if self._port.failure is not None:
            raise self._port.failure

    def stop(self) -> None:
        """Take no further request; `run` returns once those under way are answered."""
        if not self._port.closing:
            pyfuse3.terminate()

    def list_waiting(self) -> list[tuple[int, str, float]]:
        """Not known here: pyfuse3 says who asks for some requests only."""
        return []

    def cancel_requests(self) -> None:
        """Answer what is still under way with EINTR."""
        for task in list(self._port.tasks):
            task.cancel()

    def close(self, *, unmount: bool) -> None:
        """Give the device back, after `run` has returned; with `unmount` (lazily) also take the mount away."""
        pyfuse3.close(unmount=unmount)


class Pyfuse3Writer:
    """Notifications that make the kernel ask again, as notify.KernelWriter. They wait for requests under way on the same
    inode."""

    @staticmethod
    def invalidate_entry(parent: int, name: bytes, *, expire_only: bool) -> None:
        del expire_only  # it has no word for that
        pyfuse3.invalidate_entry(parent, name)

    @staticmethod
    def invalidate_inode(node: int, *, attributes_only: bool) -> None:
        pyfuse3.invalidate_inode(node, attributes_only)

    @staticmethod
    def increment_epoch() -> None:
        raise OSError(errno.ENOSYS, "pyfuse3 cannot tell the kernel of all names at once")


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # The caller was killed or the mount aborted before the answer came: nobody is waiting for it any more.
    return not (record.args and os.strerror(errno.ENOENT) in record.args)
