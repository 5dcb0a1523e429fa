"""The demo: a real S3 server, a small training set, the file system in front of it, a cold epoch, a load, a warm epoch.

    make demo                            leaves nothing behind, also after Ctrl-C or a failure
    make demo DEMO_URI=s3://b/prefix     your own bucket, only read; DEMO_OPTIONS="endpoint=… profile=…"
    make demo KEEP=1                     leaves everything up; make demo-stop ends it

Owns every process, mount and directory it makes, all below one temporary directory.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NoReturn

import xxhash
from rich import box
from rich.console import Console
from rich.table import Table

from bench.stack import SAMPLE_BYTES, put_large
from tests.servers.ceph import Cluster, install_packages
from tests.servers.fixtures import S3Server
from tests.servers.stack import PROGRAMS

SAMPLES = int(os.environ.get("DEMO_SAMPLES", "3000"))
SHARDS = 3
SHARD_BYTES = 256_000_000
READERS = 4
"""Reading processes, as a DataLoader has workers."""
MAX_FILES, MAX_BYTES = 5000, 3_000_000_000
"""Of the user's own bucket no more than this is read."""
KEPT = Path(__file__).resolve().parent.parent / "run" / "demo.json"

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass
class Pass:
    """What one pass over the data measured; `digest` covers all bytes, whatever the order."""

    name: str
    small_files: int = 0
    small_s: float = 0.0
    large_bytes: int = 0
    large_s: float = 0.0
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    digest: int = 0
    hit_ratio: float | None = None


def read_files(root: str, names: Sequence[str]) -> tuple[int, int]:
    """Read files as a training job does; bytes read and a digest of names and contents that does not depend on the order."""
    total = digest = 0
    for name in names:
        content = xxhash.xxh3_64(os.fsencode(name))
        with open(f"{root}/{name}", "rb", buffering=0) as stream:
            while data := stream.read(4 << 20):
                total += len(data)
                content.update(data)
        digest ^= content.intdigest()
    return total, digest


@contextmanager
def start_readers() -> Iterator[Executor]:
    """The reading processes. An interrupted pass is not read to its end: they are killed, whatever they wait for."""
    # A Ctrl-C in the terminal is for us alone.
    pool = ProcessPoolExecutor(READERS, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with pool:
        try:
            yield pool
        except BaseException:
            for reader in active_children():
                reader.kill()
            raise


def measure_pass(pool: Executor, name: str, root: Path, small: list[str], large: list[str]) -> Pass:
    """One epoch: small files in random order over all readers, then large files one after the other."""
    result = Pass(name)
    shuffled = random.Random(name).sample(small, len(small))
    for files in (shuffled, large):
        start = time.monotonic()
        parts = [files[number::READERS] for number in range(READERS)]
        answers = list(pool.map(read_files, [str(root)] * READERS, parts))
        seconds, total = time.monotonic() - start, sum(answer[0] for answer in answers)
        for _, digest in answers:
            result.digest ^= digest
        result.files += len(files)
        result.bytes += total
        result.seconds += seconds
        if files is large:
            result.large_bytes, result.large_s = total, seconds
        else:
            result.small_files, result.small_s = len(files), seconds
    return result


def drop_page_cache() -> bool:
    """Forget what the kernel has cached, so that a pass reads what it says; whether we may."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        done = subprocess.run(["sudo", "-n", "sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"], capture_output=True, check=False)
        return done.returncode == 0
    return True


@dataclass
class Demo:
    """One run. `stack` undoes everything in reverse."""

    stack: ExitStack
    directory: Path
    keep: bool
    uri: str = ""
    options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    cluster: Cluster | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def mountpoint(self) -> Path:
        return self.directory / "mnt"

    @property
    def local(self) -> Path:
        return self.directory / "local"

    def start_store(self) -> None:
        """A real S3 server with a small training set, which lies on the local disk too, for comparison."""
        started = time.monotonic()
        install_packages()
        self.cluster = Cluster(self.directory / "ceph", size_bytes=4 << 30, die_with_parent=not self.keep)
        self.stack.callback(self.cluster.stop)
        self.cluster.start()
        say(f"Ceph radosgw at {self.cluster.endpoint}, up after {time.monotonic() - started:.1f} s")
        started = time.monotonic()
        server = S3Server(self.cluster.endpoint, self.cluster.access_key, self.cluster.secret_key, self.cluster)
        self.stack.callback(server.close)
        server.client.create_bucket(Bucket="training")
        self._fill(server)
        size = f"{(SAMPLES * SAMPLE_BYTES + SHARDS * SHARD_BYTES) / 1e9:.1f} GB"
        say(f"{SAMPLES:,} samples of 110 KB and {SHARDS} shards of 256 MB: {size}, in {time.monotonic() - started:.0f} s")
        self.uri = "s3://training/set"
        self.options = [f"endpoint={self.cluster.endpoint}", "region=us-east-1"]
        self.environment |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}

    def _fill(self, server: S3Server) -> None:
        stopped = threading.Event()

        def put_samples(numbers: range) -> None:
            for number in numbers:
                if stopped.is_set():
                    return
                name = f"samples/{number // 1000:03d}/{number:06d}.jpg"
                body = random.Random(number).randbytes(SAMPLE_BYTES)
                server.client.put_object(Bucket="training", Key=f"set/{name}", Body=body)
                (self.local / name).write_bytes(body)

        for number in range(0, SAMPLES, 1000):
            (self.local / f"samples/{number // 1000:03d}").mkdir(parents=True)
        (self.local / "shards").mkdir()
        with ThreadPoolExecutor(8) as pool:
            try:
                list(pool.map(put_samples, [range(first, SAMPLES, 8) for first in range(8)]))
            except BaseException:
                stopped.set()
                raise
        for number in range(SHARDS):
            name = f"shards/{number:03d}.tar"
            put_large(server, "training", f"set/{name}", number, SHARD_BYTES)
            server.client.download_file("training", f"set/{name}", str(self.local / name))

    def start_file_system(self) -> None:
        """`alluxio-like up` with two workers, mounted."""
        started = time.monotonic()
        self.mountpoint.mkdir()
        command = [str(PROGRAMS / "alluxio-like"), "up", "--json", "--home", str(self.directory / "home"), "--workers", "2"]
        command += ["--cache-size", "8GB", "--mount", f"/={self.uri}", "--fuse", str(self.mountpoint)]
        for option in self.options:
            command += ["-o", option]
        say("$ " + " ".join(["alluxio-like", *command[1:]]).replace(" --json", ""))
        log = self.stack.enter_context((self.directory / "up.log").open("ab"))
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        self.stack.callback(stop_process, process.pid, process.wait)
        assert process.stdout is not None
        line = process.stdout.readline()
        process.stdout.close()
        if not line:
            text = (self.directory / "up.log").read_text(errors="replace").strip()
            fail(text.splitlines()[-1] if text else "up ended without a word")
        self.ready = json.loads(line)
        self.environment["ALLUXIO_LIKE_MASTER"] = self.ready["master"]["address"]
        say(f"master, two workers and the mount are ready after {time.monotonic() - started:.1f} s")

    def run(self, *command: str, quiet: bool = False) -> None:
        """A command of ours, as a person would type it."""
        if not quiet:
            say("$ " + " ".join(command))
        output = subprocess.DEVNULL if quiet else None
        done = subprocess.run([str(PROGRAMS / command[0]), *command[1:]], env=self.environment, stdout=output, check=False)
        if done.returncode:
            fail(f"{' '.join(command)} ended with {done.returncode}")

    def list_files(self) -> tuple[list[str], list[str]]:
        """Small and large files, as the mount shows them; of a large bucket the first ones."""
        small: list[str] = []
        large: list[str] = []
        total = 0
        found = ((Path(where) / name, where) for where, _, names in os.walk(self.mountpoint) for name in names)
        for path, _ in islice(found, MAX_FILES):
            size = path.stat().st_size
            if total + size > MAX_BYTES:
                continue
            total += size
            (large if size >= 8 << 20 else small).append(str(path.relative_to(self.mountpoint)))
        return small, large

    def get_store_bytes(self) -> float:
        """Bytes that the workers have fetched from the store so far."""
        total = 0.0
        for worker in self.ready["workers"]:
            with urllib.request.urlopen(f"http://{worker['http_address']}/metrics", timeout=10) as reply:
                text = reply.read().decode()
            total += sum(float(value) for value in re.findall(r"^alluxio_like_store_bytes_total(?:\{.*\})? (\S+)$", text, re.M))
        return total

    def measure(self, pool: Executor) -> list[Pass]:
        """Cold epoch, load, warm epoch, local disk."""
        small, large = self.list_files()
        if not small and not large:
            fail(f"{self.uri} has no files")
        total = sum((self.mountpoint / name).stat().st_size for name in small + large)
        if not self.local.exists():
            self._copy(small + large)
            self.run("cache", "free", "/", quiet=True)
        list(pool.map(read_files, ["/"] * READERS, [()] * READERS))
        dropped = drop_page_cache()
        cold = self._epoch(pool, "cold", small, large)
        self.run("cache", "free", "/", quiet=True)
        load = Pass("load", files=len(small + large), bytes=total)
        names = self.directory / "names"
        names.write_bytes(b"\0".join(os.fsencode(f"/{name}") for name in small + large))
        started = time.monotonic()
        if self.cluster:
            self.run("cache", "load", str(self.mountpoint))
        else:
            self.run("cache", "load", "--from-file", str(names))
        load.seconds = time.monotonic() - started
        drop_page_cache()
        warm = self._epoch(pool, "warm", small, large)
        drop_page_cache()
        local = measure_pass(pool, "local disk", self.local, small, large)
        if not dropped:
            say("(not root: the page cache could not be dropped between the passes)")
        if not cold.digest == warm.digest == local.digest:
            fail("the passes did not read the same bytes")
        return [cold, load, warm, local]

    def _epoch(self, pool: Executor, name: str, small: list[str], large: list[str]) -> Pass:
        before = self.get_store_bytes()
        say(f"one {name} epoch: {len(small):,} small files in random order, {len(large):,} large ones, {READERS} readers")
        result = measure_pass(pool, name, self.mountpoint, small, large)
        result.hit_ratio = max(0.0, 1 - (self.get_store_bytes() - before) / max(1, result.bytes))
        return result

    def _copy(self, names: list[str]) -> None:
        for name in names:
            target = self.local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.mountpoint / name, target)


def render(passes: list[Pass]) -> Table:
    """The passes as a table; each ratio is to the same readers on the local disk."""
    local = passes[-1]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # Narrow enough for a terminal of 80 columns.
    for title in ("", "files", "MB", "seconds", "MB/s", "small\nfiles/s", "large\nMB/s", "hit\nratio", "of local\ndisk"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    for one in passes:
        table.add_row(
            one.name,
            f"{one.files:,}",
            f"{one.bytes / 1e6:,.0f}",
            f"{one.seconds:.2f}",
            f"{one.bytes / 1e6 / max(one.seconds, 1e-9):,.0f}",
            f"{one.small_files / one.small_s:,.0f}" if one.small_s and one.small_files else "",
            f"{one.large_bytes / 1e6 / one.large_s:,.0f}" if one.large_s and one.large_bytes else "",
            f"{one.hit_ratio:.3f}" if one.hit_ratio is not None else "",
            f"{local.seconds / one.seconds:.2f}" if one.seconds and one.name != "load" else "",
        )
    return table


def say(line: str) -> None:
    """A line of progress."""
    console.print(line, markup=False, soft_wrap=True)


def fail(line: str) -> NoReturn:
    """End with a reason; everything is taken down on the way out."""
    raise SystemExit(f"demo: {line}")


def stop_process(pid: int, wait: Callable[..., Any] | None = None) -> None:
    """SIGTERM, then SIGKILL after a while (up stops its services in less)."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 40
    while Path(f"/proc/{pid}").exists():
        if wait is not None:
            with suppress(subprocess.TimeoutExpired):
                wait(0.1)
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def is_kept_up() -> bool:
    """Whether what KEEP=1 left up still runs."""
    try:
        kept = json.loads(KEPT.read_text())
        return str(kept["directory"]).encode() in Path(f"/proc/{kept['pid']}/cmdline").read_bytes()
    except OSError:
        return False


def stop_kept() -> None:
    """End what KEEP=1 left up, or what a restart of the machine has left of it."""
    try:
        kept = json.loads(KEPT.read_text())
    except FileNotFoundError:
        say("no demo is up")
        return
    directory = Path(kept["directory"])
    if is_kept_up():
        stop_process(kept["pid"])
    if (directory / "ceph").exists():
        Cluster(directory / "ceph").stop()
    shutil.rmtree(directory, ignore_errors=True)
    KEPT.unlink()
    say("stopped")


def describe_kept(demo: Demo) -> None:
    """How to look around and how to stop."""
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps({"directory": str(demo.directory), "pid": demo.ready["pid"]}))
    say("\nIt stays up. Look around:")
    for line in (
        f"ls {demo.mountpoint}",
        f"{PROGRAMS}/alluxio-like report",
        f"{PROGRAMS}/cache status {demo.mountpoint}",
        f"curl http://{demo.ready['workers'][0]['http_address']}/metrics",
        f"less {demo.directory}/home/log/worker-1.log",
    ):
        say(f"  {line}")
    say("Stop it and remove everything:\n  make demo-stop")


def end_once(number: int, _: object) -> NoReturn:
    """A signal that ends the demo; no second one hinders the taking down, of which each step is bounded."""
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(143)


def main() -> int:
    """Run the demo, or stop one that was kept."""
    if sys.argv[1:] == ["stop"]:
        stop_kept()
        return 0
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    if is_kept_up():
        fail("a demo is up already: make demo-stop")
    if KEPT.exists():
        stop_kept()
    for number in _ENDINGS:
        signal.signal(number, end_once)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="alluxio-like-demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        demo = Demo(stack, directory, keep)
        demo.uri = os.environ.get("DEMO_URI", "")
        demo.options = os.environ.get("DEMO_OPTIONS", "").split()
        try:
            with start_readers() as pool:
                if not demo.uri:
                    demo.start_store()
                demo.start_file_system()
                passes = demo.measure(pool)
        except KeyboardInterrupt:
            say("interrupted: taking everything down")
            return 130
        console.print(render(passes))
        say("every pass read the same bytes, told by their checksums")
        if keep:
            describe_kept(demo)
            stack.pop_all()
        else:
            demo.run("alluxio-like", "report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
