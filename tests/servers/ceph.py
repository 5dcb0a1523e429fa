#!/usr/bin/env python3
"""A real Ceph on this machine: mon, osd (in memory), radosgw, and on demand an mds with CephFS, from the distribution's packages.

    ceph.py install                 install the packages that are missing (root; Debian 12, Ubuntu 24.04)
    ceph.py up --root DIR [...]     install, start from scratch, leave running; prints one JSON line with endpoint and keys
    ceph.py down --root DIR         stop what `up` started there, only by the pids it recorded, and remove DIR

Owns everything below DIR (wiped at every start) and the processes whose pids it recorded there. All addresses are loopback. No
systemd, no other directory. Needs nothing but the standard library, so that any python3 runs it before a set-up is there. One
caller per DIR; several directories at once do not disturb each other.
"""

import argparse
import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

if __package__:
    from tests.servers.net import find_ports, is_listening, wait_until
else:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from net import find_ports, is_listening, wait_until  # type: ignore[import-not-found,no-redef]

PACKAGES = ("ceph-mon", "ceph-osd", "ceph-mds", "radosgw", "ceph-common", "python3-rados", "python3-cephfs", "openssl")
SYSTEM_PYTHON = "/usr/bin/python3"
"""The one with the rados and the cephfs bindings."""
FILE_SYSTEM = "cephfs"
START_TIMEOUT_S = 120.0


class CephError(RuntimeError):
    """The cluster could not be installed or started; the message says which step, and where its log is."""


# -- packages ---------------------------------------------------------------------------------------------------------------


def get_missing_packages(packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """Those that are not installed."""
    command = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *packages]
    known = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [package for package in packages if f"{package} installed" not in known]


def install_packages(packages: tuple[str, ...] = PACKAGES) -> None:
    """Install what is missing, by apt, without letting any daemon start by itself. Raises CephError."""
    missing = get_missing_packages(packages) if packages else []
    if not missing:
        return
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if sudo and shutil.which("sudo") is None:
        raise CephError(f"not installed, and neither root nor sudo to do it: {' '.join(missing)}")
    print(f"servers: installing {' '.join(missing)}", file=sys.stderr)  # noqa: T201
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300", "-q"]
    with _no_autostart(sudo):
        if not any(Path("/var/lib/apt/lists").glob("*Packages*")):
            _run_apt([*apt, "update"])
        install = [*apt, "install", "-y", "--no-install-recommends", *missing]
        try:
            _run_apt(install)
        except CephError:  # lists that are older than the mirror: fresh ones, once
            _run_apt([*apt, "update"])
            _run_apt(install)


def _run_apt(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise CephError(f"{' '.join(command)} failed:\n{tail}")


@contextlib.contextmanager
def _no_autostart(sudo: list[str]) -> Iterator[None]:
    """While packages are configured, no service may start (where nobody has a policy yet)."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    try:
        subprocess.run([*sudo, "install", "-m", "755", "/dev/stdin", str(policy)], input=b"#!/bin/sh\nexit 101\n", check=True)
        yield
    finally:
        subprocess.run([*sudo, "rm", "-f", str(policy)], check=True)


# -- the cluster ------------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """One cluster below `root`. `start` returns with radosgw ready; `stop` leaves nothing.

    With `die_with_parent` the daemons are killed by the kernel when the thread that started them ends, so that not even a
    SIGKILL of the test run leaves them behind.
    """

    root: Path
    size_bytes: int = 4 << 30
    die_with_parent: bool = False
    rgw_port: int = 0
    tls_port: int = 0
    access_key: str = "testaccess"
    secret_key: str = "testsecret0123456789"
    with_gateway: bool = True
    _mon_port: int = 0
    _osd_ports: tuple[int, int] = (0, 0)
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.rgw_port}"

    @property
    def tls_endpoint(self) -> str:
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def ca_file(self) -> Path:
        return self.root / "tls.crt"

    @property
    def monitors(self) -> str:
        """The monitor's address, by the older protocol too: clients choose."""
        return f"[v2:127.0.0.1:{self._mon_port}/0,v1:127.0.0.1:{self._mon_port + 1}/0]"

    def start(self) -> None:
        """Start from scratch; a lost race for a port is tried again. Raises CephError with what failed."""
        fixed = bool(self.rgw_port)
        for attempt in range(3):
            try:
                self._start_once(fixed)
                return
            except BaseException as error:
                self.stop(keep_logs=True)
                if attempt == 2 or not isinstance(error, (RuntimeError, OSError, subprocess.SubprocessError)):
                    raise
                print(f"ceph: {error}; once more", file=sys.stderr)  # noqa: T201

    def stop(self, *, keep_logs: bool = False) -> None:
        """Kill the daemons and remove the directory. Idempotent; also for a cluster that another process has started."""
        pids = self.root / "pids"
        for path in sorted(pids.iterdir()) if pids.is_dir() else ():
            self._kill(path)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        self._processes.clear()
        if not keep_logs and (self.root / "ceph.conf").exists():
            shutil.rmtree(self.root, ignore_errors=True)

    def restart_gateway(self) -> None:
        """Kill radosgw and start it again on the same ports: a store that was away for a moment."""
        self._kill(self.root / "pids" / "rgw")
        self._processes.pop("rgw").wait(60)
        self._spawn("rgw", "radosgw", "-f", "-n", "client.rgw")
        self._wait_port("rgw", self.rgw_port)

    def stop_gateway(self) -> None:
        """Kill radosgw; `restart_gateway` is not for this: call `start_gateway`."""
        self._kill(self.root / "pids" / "rgw")
        self._processes.pop("rgw").wait(60)

    def start_gateway(self) -> None:
        """Start radosgw after `stop_gateway`."""
        self._spawn("rgw", "radosgw", "-f", "-n", "client.rgw")
        self._wait_port("rgw", self.rgw_port)

    def start_file_system(self) -> None:
        """Make a CephFS and start its mds, if that is not done yet; returns once it can be mounted. 1 to 2 s."""
        if "mds" in self._processes:
            return
        self._mon_commands("fs", FILE_SYSTEM)
        self.start_daemon("mds")
        self._mon_commands("mds", FILE_SYSTEM)

    def signal_daemon(self, name: str, number: int) -> None:
        """Send a signal to "mon", "osd" or "mds"."""
        self._processes[name].send_signal(number)

    def kill_daemon(self, name: str) -> None:
        """Kill a daemon; `start_daemon` starts it again. (The osd keeps its data in memory: it would come back empty.)"""
        self._kill(self.root / "pids" / name)
        self._processes.pop(name).wait(60)

    def start_daemon(self, name: str) -> None:
        """Start "mds" or "mon"; does not wait for it."""
        self._spawn(name, f"ceph-{name}", "-f", "-i", "a")

    def make_client(self, name: str, **capabilities: str) -> str:
        """A further Ceph user, client.NAME; the path of its keyring."""
        path = self.root / f"{name}.keyring"
        caps = [text for service, cap in capabilities.items() for text in (service, cap)]
        self._run("ceph", "--connect-timeout", "60", "auth", "get-or-create", f"client.{name}", *caps, "-o", str(path))
        return str(path)

    # -- steps --------------------------------------------------------------------------------------------------------------

    def _start_once(self, fixed_ports: bool) -> None:
        ports = find_ports(14)
        self._mon_port = ports[0]
        self._osd_ports = (ports[4], ports[13])
        if not fixed_ports:
            self.rgw_port = ports[2]
        self.tls_port = ports[3]
        self._prepare()
        self._start_mon()
        osd_uuid = str(uuid.uuid4())
        with (self.root / "log/osd-mkfs.out").open("wb") as out:
            mkfs = subprocess.Popen(
                ["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            self._mon_commands("osd", osd_uuid)
            if mkfs.wait(START_TIMEOUT_S):
                raise CephError(f"ceph-osd --mkfs failed: {self.root}/log/osd-mkfs.out")
        finally:
            if mkfs.poll() is None:
                mkfs.kill()
                mkfs.wait()
        self._spawn("osd", "ceph-osd", "-f", "-i", "0")
        self._mon_commands("up", osd_uuid)
        if not self.with_gateway:
            return
        self._spawn("rgw", "radosgw", "-f", "-n", "client.rgw")
        self._wait_port("rgw", self.rgw_port)
        # After radosgw's own start: two makers of the realm and the pools at once get in each other's way.
        self.make_user("test", self.access_key, self.secret_key)

    def make_user(self, uid: str, access_key: str, secret_key: str) -> None:
        """A further S3 user."""
        self._run(
            *("radosgw-admin", "-n", "client.rgw", "user", "create", f"--uid={uid}", f"--display-name={uid}"),
            *(f"--access-key={access_key}", f"--secret-key={secret_key}"),
        )

    def add_key(self, uid: str, access_key: str, secret_key: str) -> None:
        """A further key of a user."""
        admin = ("radosgw-admin", "-n", "client.rgw", "key", "create", f"--uid={uid}", "--key-type=s3")
        self._run(*admin, f"--access-key={access_key}", f"--secret-key={secret_key}")

    def remove_key(self, access_key: str) -> None:
        """Take a key of a user away."""
        self._run("radosgw-admin", "-n", "client.rgw", "key", "rm", f"--access-key={access_key}", "--key-type=s3")

    def make_role(self, name: str, uid: str) -> str:
        """A role that this user may assume, and that may do everything; its ARN."""
        trust = {"Effect": "Allow", "Principal": {"AWS": [f"arn:aws:iam:::user/{uid}"]}, "Action": ["sts:AssumeRole"]}
        may = {"Effect": "Allow", "Action": ["s3:*"], "Resource": "arn:aws:s3:::*"}
        admin = ("radosgw-admin", "-n", "client.rgw")
        self._run(*admin, "role", "create", f"--role-name={name}", f"--assume-role-policy-doc={_make_policy(trust)}")
        policy = ("--policy-name=all", f"--policy-doc={_make_policy(may)}")
        self._run(*admin, "role-policy", "put", f"--role-name={name}", *policy)
        return f"arn:aws:iam:::role/{name}"

    def _prepare(self) -> None:
        root = self.root
        if root.exists() and not (root / "ceph.conf").exists() and any(root.iterdir()):
            raise SystemExit(f"ceph: {root} is not empty and not one of mine")
        shutil.rmtree(root, ignore_errors=True)
        for name in ("pids", "log", "sock", "mon", "osd", "mds", "rgw", "crash"):
            (root / name).mkdir(parents=True)
        # The resolved path: sockets below it must stay under the 107 bytes of a unix address.
        self.root = root = root.resolve()
        if len(str(root)) > 70:
            raise SystemExit(f"ceph: {root}: too long a path for unix sockets")
        (root / "ceph.conf").write_text(self._make_conf())
        keyring = root / "keyring"
        keyring.touch(0o600)
        keyring.write_text(_make_keyring())
        self._run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", str(root / "tls.key"), "-out", str(root / "tls.crt")),
        )

    def _start_mon(self) -> None:
        address = f"[v2:127.0.0.1:{self._mon_port},v1:127.0.0.1:{self._mon_port + 1}]"
        fsid = (self.root / "fsid").read_text()
        monmap = str(self.root / "monmap")
        self._run(
            *("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address),
            *("--enable-all-features", monmap),
        )
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", str(self.root / "keyring"))
        self._spawn("mon", "ceph-mon", "-f", "-i", "a")
        self._wait_port("mon", self._mon_port)

    def _mon_commands(self, step: str, subject: str) -> None:
        self._run(SYSTEM_PYTHON, "-c", _MON_COMMANDS, step, subject)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CEPH_", "VIRTUAL_ENV"))}
        return {**kept, "CEPH_CONF": str(self.root / "ceph.conf"), "PYTHONNOUSERSITE": "1"}

    def _run(self, *command: str) -> None:
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=START_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CephError(f"{command[0]} took more than {START_TIMEOUT_S:g} s; logs are in {self.root}/log") from None
        if done.returncode:
            raise CephError(f"{command[0]} failed: {done.stderr.strip()[-500:]}; logs are in {self.root}/log")

    def _spawn(self, name: str, *command: str) -> None:
        # A session of its own: Ctrl-C in the terminal reaches the caller alone, who then stops the daemons in order.
        prefix = ("setpriv", "--pdeathsig", "KILL", "--") if self.die_with_parent else ()
        with (self.root / f"log/{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [*prefix, *command],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        (self.root / "pids" / name).write_text(str(process.pid))
        self._processes[name] = process

    def _wait_port(self, name: str, port: int) -> None:
        process = self._processes[name]

        def ready() -> bool:
            if process.poll() is not None:
                raise CephError(f"{name} ended with status {process.returncode}; logs are in {self.root}/log")
            return is_listening(port)

        wait_until(f"{name} listening on port {port}; logs are in {self.root}/log", ready, timeout_s=START_TIMEOUT_S)

    def _kill(self, pid_file: Path) -> None:
        try:
            pid = int(pid_file.read_text())
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            pid_file.unlink(missing_ok=True)
            return
        if f"CEPH_CONF={self.root.resolve()}/ceph.conf".encode() in environment:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until(f"process {pid} gone", lambda: _is_gone(pid), timeout_s=60)
        pid_file.unlink(missing_ok=True)

    def _make_conf(self) -> str:
        fsid = str(uuid.uuid4())
        (self.root / "fsid").write_text(fsid)
        return _CONF.format(
            root=self.root,
            fsid=fsid,
            mon=self._mon_port,
            mon_v1=self._mon_port + 1,
            low=self._osd_ports[0],
            high=self._osd_ports[1],
            size=self.size_bytes,
            rgw=self.rgw_port,
            tls=self.tls_port,
            sts_key=secrets.token_hex(8),
        )


def _make_policy(statement: dict[str, object]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def _make_keyring() -> str:
    """Fresh keys for every daemon and client. A key is type 1, creation time, length 16, 16 random bytes."""
    capabilities = {
        "mon.": {"mon": "allow *"},
        "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *", "mds": "allow *"},
        "osd.0": {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"},
        "mds.a": {"mon": "allow profile mds", "mgr": "allow profile mds", "osd": "allow *", "mds": "allow *"},
        "client.rgw": {"mon": "allow rw", "mgr": "allow rw", "osd": "allow rwx"},
    }
    lines = []
    for name, caps in capabilities.items():
        key = struct.pack("<hiih", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)
        lines += [f"[{name}]", f"\tkey = {base64.b64encode(key).decode()}"]
        lines += [f'\tcaps {service} = "{cap}"' for service, cap in caps.items()]
    return "\n".join(lines) + "\n"


_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}/0,v1:127.0.0.1:{mon_v1}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv4 = true
ms bind ipv6 = false
ms bind port min = {low}
ms bind port max = {high}
ms async op threads = 2
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {root}/keyring
run dir = {root}/sock
admin socket = {root}/sock/$name.$pid.asok
log file = {root}/log/$name.log
log to stderr = false
err to stderr = true
crash dir = {root}/crash
# one node, one copy
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000

[mon]
mon data = {root}/mon
mon data avail warn = 2
mon data avail crit = 1
mon cluster log file = {root}/log/cluster.log
auth allow insecure global id reclaim = false
mon osd min in ratio = 0
# one mon: decide at once
paxos propose interval = 0.05
paxos min wait = 0.01
mon tick interval = 1
mon memory target = 536870912

[osd]
osd data = {root}/osd
osd objectstore = memstore
memstore device bytes = {size}
osd max object name len = 2048
osd class load list = *
osd class default list = *
osd op num shards = 2
osd op num threads per shard = 2

[mds]
mds data = {root}/mds
mds cache memory limit = 268435456
mds beacon interval = 1
# what one client has just changed is shown to another when the journal was written: by default up to 5 s later
mds tick interval = 0.1
# a restarted mds waits so long for clients that were killed
mds reconnect timeout = 2

[client]
admin socket = {root}/sock/$name.$pid.$cctid.asok
# a client that meets a dead cluster must not hang for 300 s
client mount timeout = 15
rados mon op timeout = 30

[client.rgw]
rgw data = {root}/rgw
rgw frontends = beast endpoint=127.0.0.1:{rgw} ssl_endpoint=127.0.0.1:{tls} ssl_certificate={root}/tls.crt \
ssl_private_key={root}/tls.key tcp_nodelay=1
rgw thread pool size = 32
# buckets in the host name: any name ending in .localhost
rgw dns name = localhost
# roles: AssumeRole and AssumeRoleWithWebIdentity
rgw s3 auth use sts = true
rgw sts key = {sts_key}
rgw enable usage log = false
rgw enable ops log = false
rgw dynamic resharding = false
rgw override bucket index max shards = 1
rgw num rados handles = 1
# by default the data of a deleted or overwritten object stays for two hours
rgw gc obj min wait = 60
rgw gc processor period = 30
rgw gc processor max time = 30
"""

_MON_COMMANDS = """
import json, os, sys, time
import rados
step, subject = sys.argv[1:]
c = rados.Rados(conffile=os.environ["CEPH_CONF"], name="client.admin")
c.connect(timeout=60)
def do(prefix, **kw):
    r, out, err = c.mon_command(json.dumps(dict(kw, prefix=prefix, format="json")), b"", timeout=60)
    if r:
        sys.exit("%s: %d %s" % (prefix, r, err))
    return out and json.loads(out)
def wait(what, is_so):
    end = time.time() + 90
    while not is_so():
        if time.time() > end:
            sys.exit(what + ": not in 90 s")
        time.sleep(0.02)
if step == "osd":
    do("osd new", uuid=subject, id=0)
elif step == "up":
    wait("osd up", lambda: do("osd stat")["num_up_osds"] == 1)
elif step == "fs":
    do("osd pool create", pool=subject + ".meta", pg_num=4)
    do("osd pool create", pool=subject + ".data", pg_num=8)
    do("fs new", fs_name=subject, metadata=subject + ".meta", data=subject + ".data")
    # What a client that was killed has open stalls the others for so long (30 is the least allowed).
    do("fs set", fs_name=subject, var="session_timeout", val="30")
    do("fs set", fs_name=subject, var="session_autoclose", val="30")
elif step == "mds":
    def is_active():
        info = do("fs dump")["filesystems"][0]["mdsmap"]["info"].values()
        return any(i["state"] == "up:active" for i in info)
    wait("mds active", is_active)
c.shutdown()
"""


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install")
    up = commands.add_parser("up")
    up.add_argument("--root", type=Path, required=True)
    up.add_argument("--port", type=int, default=0, help="radosgw's port; default: a free one")
    up.add_argument("--size-bytes", type=int, default=4 << 30, help="memory that objects may take")
    down = commands.add_parser("down")
    down.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.command == "down":
            Cluster(arguments.root).stop()
            return 0
        install_packages()
        if arguments.command == "install":
            return 0
        Cluster(arguments.root).stop()
        cluster = Cluster(arguments.root, rgw_port=arguments.port, size_bytes=arguments.size_bytes)
        cluster.start()
    except (CephError, RuntimeError) as error:
        print(f"ceph: {error}", file=sys.stderr)  # noqa: T201
        return 1
    answer = {
        "endpoint": cluster.endpoint,
        "tls_endpoint": cluster.tls_endpoint,
        "ca_file": str(cluster.ca_file),
        "access_key": cluster.access_key,
        "secret_key": cluster.secret_key,
    }
    print(json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
