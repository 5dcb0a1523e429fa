"""Namespaces for a cluster in miniature: a network that is nobody else's, and nodes with mounts and processes of their own.

Owns one process for each namespace, which does nothing and ends with this program; with a node's all of its processes end. What
runs in them is containers.py's. Needs root. Threads may share them.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str | Path, text: str = "", check: bool = True) -> str:
    """A command's output. Raises RuntimeError with what it said when it failed."""
    done = subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def list_children(pid: int) -> list[int]:
    """By this machine's numbers; none of a process that is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def read_space(pid: int | str, kind: str = "mnt") -> str:
    """Which namespace a process is in; "" of one that is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    except OSError:
        return ""


def find_below(pid: int, is_it: Callable[[int], bool]) -> int:
    """The first process of a chain of children that is what is looked for, by this machine's numbers; 0 while there is none."""
    while pid and not is_it(pid):
        child = next(iter(list_children(pid)), 0)
        if is_it(pid):
            return pid  # it has become so just now, and the child may be one of its own
        pid = child
    return pid


class Anchor:
    """A process that keeps namespaces. Must be made in a thread that outlives it: the kernel ends it with that."""

    def __init__(self, *options: str) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *options, "sleep", "infinity"]
        # At its end unshare complains that it cannot die of SIGKILL by a handler.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.pid = 0
        while not self.pid:
            assert self._process.poll() is None, f"{options} failed"
            self.pid = find_below(self._process.pid, _is_sleep)
            time.sleep(0.005)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait(60)


def _is_sleep(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    return False


class Network:
    """A bridge that all pods are on, in a network namespace of its own; `address` is its own on it."""

    address = "10.244.0.1"

    def __init__(self) -> None:
        self._anchor = Anchor("--net")
        self._numbers = itertools.count(1)
        self._hosts = itertools.count(2)
        lines = ["link set lo up", "link add br0 type bridge", f"addr add {self.address}/16 dev br0", "link set br0 up"]
        run("nsenter", f"--net=/proc/{self._anchor.pid}/ns/net", "ip", "-batch", "-", text="\n".join(lines))
        self._inside = ThreadPoolExecutor(4, thread_name_prefix="network", initializer=self._enter)
        self._closing = threading.Event()
        self._flowing = threading.Event()
        self._flowing.set()

    @property
    def pid(self) -> int:
        """Of the process that keeps it."""
        return self._anchor.pid

    def stall(self) -> None:
        """Pass nothing on, to and from ports of this machine, until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def _enter(self) -> None:
        with open(f"/proc/{self._anchor.pid}/ns/net") as space:
            if _libc.setns(space.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def call(self, function: Callable[[], T]) -> T:
        """Call something in a thread that is on the network, as the node's kubelet would be."""
        return self._inside.submit(function).result(60)

    def attach(self, pid: int) -> str:
        """Put the network namespace of a process on the bridge; its address."""
        number, host = next(self._numbers), next(self._hosts)
        address = f"10.244.{host // 250}.{host % 250 + 2}"
        lines = [f"link add v{number} type veth peer name eth0 netns {pid}", f"link set v{number} master br0 up"]
        run("nsenter", f"--net=/proc/{self._anchor.pid}/ns/net", "ip", "-batch", "-", text="\n".join(lines))
        inside = ["link set lo up", f"addr add {address}/16 dev eth0", "link set eth0 up"]
        run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-", text="\n".join(inside))
        return address

    def give(self, pid: int, address: str) -> None:
        """Let a pod answer at the address of a Service too; whoever had it has it no more, and is forgotten by all."""
        run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "addr", "add", f"{address}/32", "dev", "eth0")

    def forget(self, pids: Sequence[int]) -> None:
        """Have pods ask anew who is at which address."""
        for pid in pids:
            run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "neigh", "flush", "all", check=False)

    @contextlib.contextmanager
    def forwarded(self, port: int) -> Iterator[int]:
        """Reach a port of this machine's 127.0.0.1 from pods: at `address`, and the port that is given."""
        listener = self.call(lambda: socket.create_server((self.address, 0), backlog=256))
        thread = threading.Thread(target=self._accept, args=(listener, port), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            self._closing.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)
            listener.close()

    def _accept(self, listener: socket.socket, port: int) -> None:
        while not self._closing.is_set():
            try:
                ours, _ = listener.accept()
                theirs = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            threading.Thread(target=_forward, args=(ours, theirs, self._flowing), daemon=True).start()

    def close(self) -> None:
        self._flowing.set()
        self._inside.shutdown()
        self._anchor.close()


def _forward(ours: socket.socket, theirs: socket.socket, flowing: threading.Event) -> None:
    """Pass on what comes, both ways, until both have ended."""
    with ours, theirs:
        back = threading.Thread(target=_pass, args=(theirs, ours, flowing), daemon=True)
        back.start()
        _pass(ours, theirs, flowing)
        back.join()


def _pass(source: socket.socket, target: socket.socket, flowing: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            flowing.wait()
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class NodeSpace:
    """A node's mounts and processes. `files` is its file system: what hostPath names lies below that, and is shared with
    containers as a node's root is."""

    def __init__(self, files: Path) -> None:
        self.files = files
        files.mkdir(parents=True)
        self._anchor = Anchor("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")
        # Mounts of others that were here when this began are nothing to it, and must not live longer for it.
        for place in self.list_mounts():
            self.enter("umount", "-l", place, check=False)
        self.enter("sh", "-c", 'mount --bind "$1" "$1" && mount --make-shared "$1"', "sh", files)

    @property
    def pid(self) -> int:
        return self._anchor.pid

    def prefix(self) -> list[str]:
        """What runs a command among the node's mounts and processes."""
        return ["nsenter", f"--target={self._anchor.pid}", "--mount", "--pid"]

    def enter(self, *command: str | Path, check: bool = True) -> str:
        """Run a command on the node."""
        return run(*self.prefix(), *command, check=check)

    def list_mounts(self) -> list[str]:
        """File systems of ours that are mounted on the node."""
        lines = Path(f"/proc/{self._anchor.pid}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if " - fuse.alluxio_like " in line]

    def list_processes(self) -> list[str]:
        """The commands that run on the node, but for what keeps it and asks this."""
        look = 'for process in /proc/[0-9]*; do tr "\\0" " " <"$process/cmdline" 2>/dev/null; echo; done'
        lines = [line.strip() for line in self.enter("sh", "-c", look, check=False).splitlines()]
        return [line for line in lines if line and not line.startswith(("sleep infinity", "sh -c for process", "tr "))]

    def close(self) -> None:
        self._anchor.close()
