#!/usr/bin/env python3
"""A real HDFS on this machine: NameNodes and DataNodes of Hadoop, from its Maven artifacts.

    hdfs.py install                 install Java and Maven where they are missing, and fetch the artifacts
    hdfs.py up --root DIR           install, start from scratch, leave running; prints one JSON line with the URI
    hdfs.py down --root DIR         stop what `up` started there, only by the pids it recorded, and remove DIR

Owns everything below DIR (wiped at every start), the processes whose pids it recorded there, and the directory of artifacts,
outside of the checkout and shared by all: ~/.cache/alluxio-like/servers (XDG_CACHE_HOME). All addresses are loopback. Needs
nothing but the standard library. One caller per DIR; several directories at once do not disturb each other.
"""

import argparse
import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

if __package__:
    from tests.servers.ceph import CephError, install_packages
    from tests.servers.net import find_ports, is_listening, wait_until
else:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from ceph import CephError, install_packages  # type: ignore[import-not-found,no-redef]
    from net import find_ports, is_listening, wait_until  # type: ignore[import-not-found,no-redef]

POM = Path(__file__).resolve().parent / "hadoop" / "pom.xml"
START_TIMEOUT_S = 120.0
NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
ARCHIVE = "namenode.jsa"
DATANODE = "org.apache.hadoop.hdfs.server.datanode.DataNode"
_JVM = (
    *("java", "-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.net.preferIPv4Stack=true"),
    *("-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"),
)


class HdfsError(RuntimeError):
    """The cluster could not be installed or started; the message says which step, and where its log is."""


# -- artifacts ------------------------------------------------------------------------------------------------------------------


def get_home() -> Path:
    """Where the artifacts of this pom are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "alluxio-like" / "servers" / f"hadoop-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}"


def install() -> Path:
    """The directory of artifacts, made where it is not there yet. Raises HdfsError."""
    home = get_home()
    missing = [
        package for program, package in (("java", "default-jre-headless"), ("mvn", "maven")) if shutil.which(program) is None
    ]
    if (home / "done").exists() and "default-jre-headless" not in missing:
        return home
    try:
        install_packages(tuple(missing))
    except CephError as error:
        raise HdfsError(str(error)) from None
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{home}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            shutil.rmtree(home, ignore_errors=True)
            _fetch(home)
            _format(home)
            _archive(home)
            (home / "done").touch()
    return home


def _fetch(home: Path) -> None:
    print("hdfs: fetching Hadoop from Maven", file=sys.stderr)  # noqa: T201
    goal = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
    _run(["mvn", "-B", "-q", "-f", str(POM), goal, f"-DoutputDirectory={home / 'lib'}"], cwd=home.parent, timeout_s=1200)


def _format(home: Path) -> None:
    """An empty namespace, to be copied: formatting takes as long as starting."""
    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory)
        _write_site(conf, {"dfs.namenode.name.dir": f"file://{home / 'name'}", "fs.defaultFS": "hdfs://127.0.0.1:1"})
        command = [*_JVM, _get_hosts_option(conf), "-cp", f"{home / 'lib'}/*:{conf}"]
        _run([*command, NAMENODE, "-format", "-nonInteractive"], cwd=home, timeout_s=120)


def _archive(home: Path) -> None:
    """The classes that a NameNode loads, ready to map: 3.1 s of CPU until it serves become 1.8 (OpenJDK 17). Another version of
    Java does without."""
    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory)
        port = find_ports(2)[0]
        shutil.copytree(home / "name", conf / "name")
        settings = {
            "dfs.namenode.name.dir": f"file://{conf}/name",
            "fs.defaultFS": f"hdfs://127.0.0.1:{port}",
            "dfs.namenode.http-address": f"127.0.0.1:{port + 1}",
        }
        _write_site(conf, settings)
        # No directory may be among the paths of an archive, so the configuration comes by name.
        command = [*_JVM, _get_hosts_option(conf), f"-XX:ArchiveClassesAtExit={home / ARCHIVE}", "-cp", f"{home / 'lib'}/*"]
        with (conf / "log").open("wb") as log:
            process = subprocess.Popen([*command, NAMENODE, "-conf", str(conf / "hdfs-site.xml")], stdout=log, stderr=log)

            def ready() -> bool:
                if process.poll() is not None:
                    said = "\n".join(line for line in (conf / "log").read_text().splitlines() if "[cds]" not in line)
                    raise HdfsError(f"a NameNode ended with status {process.returncode}:\n{said[-2000:]}")
                return is_listening(port + 1)

            try:
                wait_until("a NameNode to learn its classes from", ready, timeout_s=START_TIMEOUT_S)
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(120)
                process.kill()
                process.wait(60)


def _run(command: list[str], *, cwd: Path, timeout_s: float) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise HdfsError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _write_site(conf: Path, settings: dict[str, str]) -> None:
    """The same in both files: Hadoop reads its own defaults for HDFS between the two."""
    conf.mkdir(parents=True, exist_ok=True)
    properties = "".join(
        f"<property><name>{escape(name)}</name><value>{escape(value)}</value></property>\n" for name, value in settings.items()
    )
    for name in ("core-site.xml", "hdfs-site.xml"):
        (conf / name).write_text(f"<configuration>\n{properties}</configuration>\n")
    # Hadoop does not start where the machine's own name resolves to nothing, as without a line for it in /etc/hosts.
    (conf / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")


def _get_hosts_option(conf: Path) -> str:
    """A JVM's option: the names that it resolves are those that `_write_site` wrote."""
    return f"-Djdk.net.hosts.file={conf / 'hosts'}"


# -- the cluster ----------------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """NameNodes and DataNodes below `root`. `start` returns once files can be written; `stop` leaves nothing.

    Two NameNodes (`is_ha`) share a directory of edits, and `make_active` says which of them serves: the nameservice's name is
    NAMESERVICE. `datanode_host` is the host name that DataNodes report beside their address, 127.0.0.1.
    With `die_with_parent` the kernel kills the daemons when the thread that started them ends.
    """

    root: Path
    datanodes: int = 1
    replication: int = 1
    is_ha: bool = False
    datanode_host: str = "localhost"
    settings: dict[str, str] = field(default_factory=dict)
    jvm_options: tuple[str, ...] = ()
    die_with_parent: bool = False
    ports: list[int] = field(default_factory=list)
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    NAMESERVICE = "tests"

    @property
    def uri(self) -> str:
        return f"hdfs://{self.NAMESERVICE}" if self.is_ha else f"hdfs://127.0.0.1:{self.namenode_port}"

    @property
    def namenode_port(self) -> int:
        return self.get_namenode_port(0)

    def get_namenode_port(self, number: int) -> int:
        """Where a NameNode answers clients."""
        return self.ports[2 * number]

    def get_datanode_port(self, number: int) -> int:
        """Where a DataNode gives and takes blocks."""
        return self.ports[4 + 3 * number]

    @property
    def config_dir(self) -> Path:
        """core-site.xml and hdfs-site.xml, as a client needs them too."""
        return self.root / "conf"

    def start(self) -> None:
        """Start from scratch; a lost race for a port is tried again. Raises HdfsError with what failed."""
        home = install()
        for attempt in range(3):
            try:
                self._start_once(home)
                return
            except BaseException as error:
                self.stop(keep_logs=True)
                if attempt == 2 or not isinstance(error, (RuntimeError, OSError)):
                    raise
                print(f"hdfs: {error}; once more", file=sys.stderr)  # noqa: T201

    def stop(self, *, keep_logs: bool = False) -> None:
        """Kill the daemons and remove the directory. Idempotent; also for a cluster that another process has started."""
        pids = self.root / "pids"
        for path in sorted(pids.iterdir()) if pids.is_dir() else ():
            self._signal(path.name, signal.SIGKILL)
            path.unlink(missing_ok=True)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        self._processes.clear()
        if not keep_logs and pids.is_dir():
            shutil.rmtree(self.root, ignore_errors=True)

    def kill(self, name: str) -> None:
        """kill -9 "namenode-0", "datanode-1" and so on."""
        self._signal(name, signal.SIGKILL)
        self._processes.pop(name).wait(60)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """While it lasts, a daemon is stopped: connections are accepted, and nothing is answered."""
        self._signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(name, signal.SIGCONT)

    def start_namenode(self, number: int = 0) -> None:
        """Start a NameNode, also after `kill`; returns once it accepts connections."""
        own = ["-D", f"dfs.ha.namenode.id=nn{number + 1}"] if self.is_ha else []
        name = f"namenode-{number}"
        self._spawn(name, NAMENODE, *own)
        self._wait_ready(name, lambda: is_listening(self.get_namenode_port(number)))

    def start_datanode(self, number: int) -> None:
        """Start a DataNode, also after `kill`; `wait_datanodes` waits for it."""
        port = self.get_datanode_port(number)
        data = self.root / f"data-{number}"
        addresses = {"address": port, "ipc.address": port + 1, "http.address": port + 2}
        settings = [part for name, at in addresses.items() for part in ("-D", f"dfs.datanode.{name}=127.0.0.1:{at}")]
        self._spawn(f"datanode-{number}", DATANODE, "-D", f"dfs.datanode.data.dir=file://{data}", *settings)

    def wait_datanodes(self, count: int) -> None:
        """Until the (first) NameNode counts so many living DataNodes and is out of safe mode."""

        def ready() -> bool:
            state = self.ask_namenode(0, "NameNode", "FSNamesystemState")
            return state.get("NumLiveDataNodes") == count and state["FSState"] == "Operational"

        wait_until(f"{count} DataNodes; logs are in {self.root}/log", ready, timeout_s=START_TIMEOUT_S)

    def wait_copies(self, path: str, count: int) -> None:
        """Until the active NameNode knows so many copies of each of a file's blocks: the writer waits for the first one only."""
        query = urllib.parse.urlencode({"ugi": getpass.getuser(), "path": path})

        def ready() -> bool:
            for port in self.ports[1:4:2]:
                # (One may have been killed, or stand by.)
                with contextlib.suppress(urllib.error.URLError):
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/fsck?{query}", timeout=60) as answer:
                        found = re.search(rb"Average block replication:\s+([0-9.]+)", answer.read())
                    if found is not None:
                        return float(found[1]) >= count
            return False

        wait_until(f"{count} copies of {path}", ready, timeout_s=START_TIMEOUT_S, interval_s=0.1)

    def ask_namenode(self, number: int, service: str, name: str) -> dict[str, Any]:
        """A bean of a NameNode's JMX; empty while it starts."""
        url = f"http://127.0.0.1:{self.ports[2 * number + 1]}/jmx?qry=Hadoop:service={service},name={name}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return dict(*json.load(answer)["beans"])

    def put(self, path: str, data: bytes, **parameters: object) -> None:
        """Write a file with Hadoop's own client, which a DataNode runs for WebHDFS; directories on the way are made, and a file
        that is there is replaced. `parameters` are WebHDFS's: blocksize, replication."""
        query = urllib.parse.urlencode(
            {
                "op": "CREATE",
                "overwrite": "true",
                "user.name": getpass.getuser(),
                "namenoderpcaddress": self.uri.removeprefix("hdfs://"),
                **parameters,
            }
        )
        quoted = urllib.parse.quote(path.encode("utf-8"))
        url = f"http://127.0.0.1:{self.get_datanode_port(0) + 2}/webhdfs/v1{quoted}?{query}"
        request = urllib.request.Request(url, data=data, method="PUT", headers={"Content-Type": "application/octet-stream"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def run_admin(self, *arguments: str) -> None:
        """`hdfs dfsadmin`, or with "-ha" first `hdfs haadmin`."""
        tool, rest = "DFSAdmin", list(arguments)
        if arguments[0] == "-ha":
            tool, rest = "DFSHAAdmin", rest[1:]
        command = [*self._jvm, f"org.apache.hadoop.hdfs.tools.{tool}", *rest]
        _run(command, cwd=self.root, timeout_s=60)

    def make_active(self, number: int) -> None:
        """Of two NameNodes, which one serves; the other is made to stand by, where it lives."""
        other = f"namenode-{1 - number}"
        if other in self._processes:
            self.run_admin("-ha", "-transitionToStandby", f"nn{2 - number}")
        self.run_admin("-ha", "-transitionToActive", "--forceactive", f"nn{number + 1}")

    # -- steps --------------------------------------------------------------------------------------------------------------

    @property
    def _jvm(self) -> tuple[str, ...]:
        home = get_home()
        options = (_get_hosts_option(self.config_dir), *self.jvm_options, f"-XX:SharedArchiveFile={home / ARCHIVE}")
        return (*_JVM, *options, "-cp", f"{home / 'lib'}/*:{self.config_dir}")

    def _start_once(self, home: Path) -> None:
        self.ports = find_ports(4 + 3 * self.datanodes)
        self._prepare(home)
        for number in range(self.datanodes):
            self.start_datanode(number)
        for number in range(2 if self.is_ha else 1):
            self.start_namenode(number)
        if self.is_ha:
            self.make_active(0)
        self.wait_datanodes(self.datanodes)

    def _prepare(self, home: Path) -> None:
        root = self.root
        if root.exists() and not (root / "pids").is_dir() and any(root.iterdir()):
            raise SystemExit(f"hdfs: {root} is not empty and not one of mine")
        shutil.rmtree(root, ignore_errors=True)
        self.root = root = root.resolve()
        for name in ("pids", "log"):
            (root / name).mkdir(parents=True)
        names = ["name-0", *(["name-1", "edits"] if self.is_ha else [])]
        for name in names:
            shutil.copytree(home / "name", root / name)
        _write_site(self.config_dir, self._make_settings())

    def _make_settings(self) -> dict[str, str]:
        settings = {
            "hadoop.tmp.dir": str(self.root / "tmp"),
            "dfs.replication": str(self.replication),
            "dfs.blocksize": str(128 << 20),
            "dfs.namenode.fs-limits.min-block-size": "4096",
            "dfs.namenode.safemode.extension": "0",
            "dfs.ls.limit": "40",
            "dfs.namenode.edits.noeditlogchannelflush": "true",
            "dfs.namenode.resource.du.reserved": "0",
            "dfs.namenode.handler.count": "8",
            "dfs.namenode.redundancy.interval.seconds": "1s",
            "dfs.heartbeat.interval": "1s",
            # how long a writer of Hadoop's waits before it asks again whether the NameNode has heard of a block
            "dfs.client.block.write.locateFollowingBlock.initial.delay.ms": "5",
            "dfs.datanode.hostname": self.datanode_host,
            "dfs.datanode.directoryscan.interval": "-1",
            "dfs.datanode.scan.period.hours": "-1",
            "dfs.block.scanner.volume.bytes.per.second": "0",
            # a DataNode that was up before its NameNode
            "ipc.client.connect.retry.interval": "100",
            "ipc.client.connect.max.retries": "600",
        }
        if self.is_ha:
            name = self.NAMESERVICE
            settings |= {
                "fs.defaultFS": f"hdfs://{name}",
                "dfs.nameservices": name,
                f"dfs.ha.namenodes.{name}": "nn1,nn2",
                "dfs.namenode.shared.edits.dir": f"file://{self.root}/edits",
                "dfs.ha.fencing.methods": "shell(/bin/true)",
                "dfs.ha.tail-edits.period": "1s",
                f"dfs.client.failover.proxy.provider.{name}": (
                    "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider"
                ),
            }
            for number in (0, 1):
                own = f"{name}.nn{number + 1}"
                settings |= {
                    f"dfs.namenode.rpc-address.{own}": f"127.0.0.1:{self.get_namenode_port(number)}",
                    f"dfs.namenode.http-address.{own}": f"127.0.0.1:{self.ports[2 * number + 1]}",
                    f"dfs.namenode.name.dir.{own}": f"file://{self.root}/name-{number}",
                }
        else:
            settings |= {
                "fs.defaultFS": self.uri,
                "dfs.namenode.http-address": f"127.0.0.1:{self.ports[1]}",
                "dfs.namenode.name.dir": f"file://{self.root}/name-0",
            }
        return settings | self.settings

    def _spawn(self, name: str, main: str, *arguments: str) -> None:
        # A session of its own: Ctrl-C in the terminal reaches the caller alone, who then stops the daemons in order.
        prefix = ("setpriv", "--pdeathsig", "KILL", "--") if self.die_with_parent else ()
        with (self.root / f"log/{name}.log").open("ab") as out:
            process = subprocess.Popen(
                [*prefix, *self._jvm, f"-Dalluxio-like.root={self.root}", main, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.root,
            )
        (self.root / "pids" / name).write_text(str(process.pid))
        self._processes[name] = process

    def _wait_ready(self, name: str, condition: Any) -> None:
        process = self._processes[name]

        def ready() -> bool:
            if process.poll() is not None:
                raise HdfsError(f"{name} ended with status {process.returncode}; logs are in {self.root}/log")
            return bool(condition())

        wait_until(f"{name} is ready; logs are in {self.root}/log", ready, timeout_s=START_TIMEOUT_S)

    def _signal(self, name: str, number: signal.Signals) -> None:
        """To a daemon of this cluster, if it lives."""
        try:
            pid = int((self.root / "pids" / name).read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return
        if f"-Dalluxio-like.root={self.root.resolve()}".encode() in command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install")
    for name in ("up", "down"):
        commands.add_parser(name).add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.command == "install":
            install()
            return 0
        cluster = Cluster(arguments.root)
        cluster.stop()
        if arguments.command == "down":
            return 0
        cluster.start()
    except (HdfsError, RuntimeError) as error:
        print(f"hdfs: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps({"uri": cluster.uri, "config_dir": str(cluster.config_dir)}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
