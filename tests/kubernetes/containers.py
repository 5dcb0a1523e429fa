"""One container: a process with the root, mounts, user, capabilities and environment that a pod's specification gives it.

Owns the way from a container of a rendered pod to a running process. Its image is this machine with this checkout's commands: a
root of its own over this machine's, in which only what the pod mounts can be seen besides. What a container engine does that is
not done here: cgroups (limits), seccomp, AppArmor. Needs root.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kubernetes.spaces import NodeSpace, find_below, list_children, read_space, run

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROPAGATION = {"None": "rprivate", "HostToContainer": "rslave", "Bidirectional": "rshared"}
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


@dataclass(frozen=True, slots=True)
class Mount:
    """One of volumeMounts: a directory or file of the node, at a place of the container."""

    source: Path
    place: str
    read_only: bool = False
    propagation: str = "None"


@dataclass(slots=True)
class Wanted:
    """What a container is to be."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    mounts: Sequence[Mount]
    security: Mapping[str, Any]
    user: Mapping[str, Any]
    """The pod's securityContext."""
    host_pid: bool = False
    hosts: Mapping[str, str] = field(default_factory=dict)

    @property
    def privileged(self) -> bool:
        return bool(self.security.get("privileged"))

    def get(self, name: str, default: Any) -> Any:
        """A setting of its own securityContext, or of the pod's."""
        return self.security.get(name, self.user.get(name, default))


class Container:
    """A running container. `pid` is its first process, by this machine's numbers."""

    def __init__(self, node: NodeSpace, network_pid: int, wanted: Wanted, directory: Path, log: Path) -> None:
        self._directory = directory
        self._wanted = wanted
        directory.mkdir(parents=True, exist_ok=True)
        script = directory / "start.sh"
        script.write_text(_write_script(wanted, directory, read_space(node.pid)))
        spaces = ["--propagation", "unchanged", "--mount"]
        if not wanted.host_pid:
            spaces += ["--pid", "--fork", "--kill-child"]
        command = [*node.prefix(), f"--net=/proc/{network_pid}/ns/net", "unshare", *spaces, "sh", str(script)]
        with open(log, "ab") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self.started_s = time.monotonic()
        others = {"", read_space("self"), read_space(node.pid)}
        self.pid = 0
        while not self.pid and self._process.poll() is None:
            # Only what has mounts of its own is the container: nothing else may ever be signalled.
            self.pid = find_below(self._process.pid, lambda pid: read_space(pid) not in others and _is_past(pid))
            time.sleep(0.01)

    def poll(self) -> int | None:
        """Its exit code, once its first process has ended."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Signal its first process."""
        if self.pid and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, grace_s: float) -> int:
        """SIGTERM, and SIGKILL after the grace period; how it ended."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            if not self.pid:
                self._process.kill()
            self._process.wait(60)
        return self._process.returncode

    def enter(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command in it as its user, with its environment, as `kubectl exec` does."""
        environment = dict(
            pair.split("=", 1) for pair in Path(f"/proc/{self.pid}/environ").read_text().rstrip("\0").split("\0") if "=" in pair
        )
        inside = [f"{name}={value}" for name, value in environment.items()]
        prefix = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root", "--wd"]
        words = [*prefix, *_make_user(self._wanted), "env", "-i", *inside, *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def list_pids(self) -> list[int]:
        """Its first process and all below that, by this machine's numbers."""
        found = [self.pid]
        for pid in found:
            found += list_children(pid)
        return found


def _is_past(pid: int) -> bool:
    """Whether a process is not one that only makes namespaces for the one it starts."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() not in {"nsenter\n", "unshare\n"}
    return False


def _write_script(wanted: Wanted, directory: Path, outside: str) -> str:
    """What makes the container's root and becomes its process; never among the mounts `outside`."""
    root, hosts = directory / "root", directory / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {names}\n" for names, address in wanted.hosts.items()))
    lines = [
        "set -e",
        f'case $(readlink /proc/self/ns/mnt) in "{read_space("self")}"|"{outside}") echo no mounts of its own >&2; exit 1;; esac',
        f"mkdir -p {root} {directory}/layer",
        f"mount -t tmpfs layer {directory}/layer",
        f"mkdir {directory}/layer/upper {directory}/layer/work",
        f"mount -t overlay root -o lowerdir=/,upperdir={directory}/layer/upper,workdir={directory}/layer/work {root}",
        f"mount --bind {hosts} {root}/etc/hosts",
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /sys {root}/sys",
        *_write_devices(wanted, root),
        *(line for mount in sorted(wanted.mounts, key=lambda one: one.place) for line in _write_mount(mount, root)),
        *_write_checkout(root),
    ]
    if not wanted.privileged:
        lines.append(f"mount -o remount,bind,ro {root}/sys")
    if wanted.security.get("readOnlyRootFilesystem"):
        lines.append(f"mount -o remount,bind,ro {root}")
    environment = [f"{name}={value}" for name, value in {"PATH": PATH, **wanted.environment}.items()]
    command = ["chroot", str(root), *_make_user(wanted), "env", "-i", *environment, *wanted.command]
    return "\n".join([*lines, "exec " + shlex.join(command)]) + "\n"


def _write_devices(wanted: Wanted, root: Path) -> list[str]:
    if wanted.privileged:
        return [f"mount --rbind /dev {root}/dev"]
    lines = [f"mount -t tmpfs dev {root}/dev"]
    for name in _DEVICES:
        lines += [f"touch {root}/dev/{name}", f"mount --bind /dev/{name} {root}/dev/{name}"]
    return [*lines, f"mkdir {root}/dev/shm", f"mount -t tmpfs shm {root}/dev/shm", f"ln -s /proc/self/fd {root}/dev/fd"]


def _write_mount(mount: Mount, root: Path) -> list[str]:
    # By the links of the container's root, which is this machine's: /var/run is /run.
    place = shlex.quote(f"{root}{os.path.realpath(mount.place)}")
    make = f"mkdir -p {place}" if mount.source.is_dir() else f"mkdir -p $(dirname {place}); touch {place}"
    lines = [
        make,
        f"mount --rbind {shlex.quote(str(mount.source))} {place}",
        f"mount --make-{_PROPAGATION[mount.propagation]} {place}",
    ]
    if mount.read_only:
        lines.append(f"mount -o remount,bind,ro {place}")
    return lines


def _write_checkout(root: Path) -> list[str]:
    """The image's content: this checkout, and the way to it open to everybody, as in an image."""
    lines = []
    for needed in {ROOT, Path(sys.base_prefix).resolve()} - {Path("/usr")}:
        parents = [str(root) + str(parent) for parent in needed.parents if parent != Path("/")]
        place = f"{root}{needed}"
        lines += [f"mkdir -p {place}", f"mount --rbind {needed} {place}"]
        if parents:
            lines.append(f"chmod a+rx {' '.join(parents)}")
    return lines


def _make_user(wanted: Wanted) -> list[str]:
    """How setpriv is called for its user and capabilities."""
    uid, gid = wanted.get("runAsUser", 0), wanted.get("runAsGroup", 0)
    if wanted.get("runAsNonRoot", False) and not uid:
        raise ValueError(f"{wanted.name} would run as root")
    options = [f"--reuid={uid}", f"--regid={gid}"]
    groups = [str(wanted.user["fsGroup"])] if "fsGroup" in wanted.user else []
    options.append(f"--groups={','.join(groups)}" if groups else "--clear-groups")
    if not wanted.privileged:
        capabilities = wanted.security.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"]:
            raise ValueError(f"{wanted.name} drops not all capabilities")
        kept = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities.get("add", []))])
        options += [f"--bounding-set={kept}", f"--inh-caps={kept}"]
        if not wanted.security.get("allowPrivilegeEscalation", True):
            options.append("--no-new-privs")
    return ["setpriv", *options, "--"]


def remove(node: NodeSpace, directory: Path) -> None:
    """Take away what a container's root was made of."""
    node.enter("sh", "-c", f"umount -l {directory}/layer {directory}/root 2>/dev/null; true")
    run("rm", "-rf", directory)
