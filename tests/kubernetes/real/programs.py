"""Programs of a real Kubernetes: built of its published Go modules, and unpacked from the distribution's packages.

Owns a directory of unpacked packages in the cache of tests/servers/tools.py. Nothing is installed: no service of this machine
comes or goes. Blocks, the first time for a quarter of an hour.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.servers.tools import HERE, GoProgram, find_go, get_cache, hash_files, make_directory, run

VERSION = "1.34.4"
_VERSION = "k8s.io/component-base/version"
_NUMBERS = {"gitVersion": f"v{VERSION}", "gitMajor": "1", "gitMinor": "34"}
KUBERNETES = GoProgram(
    "kubernetes",
    "kubernetes",
    costs="eleven minutes of one processor",
    variables=tuple((f"{_VERSION}.{name}", value) for name, value in _NUMBERS.items()),
)
PARTS = GoProgram("node-parts", "node-parts")
CERT_MANAGER = GoProgram("cert-manager", "cert-manager", costs="five minutes of one processor")
_CERT_MANAGER_MODULE = "github.com/cert-manager/cert-manager"
_PACKAGES: tuple[str, ...] = ("runc", "containerd", "etcd-server", "containernetworking-plugins", "nftables", "libnftables1")
_PACKAGES += ("libseccomp2", "libjansson4", "libnftnl11", "libmnl0", "libxtables12")


def get_packages() -> Path:
    """A root directory with what containerd, etcd and kube-proxy need; unpacked where it is missing."""
    directory = get_cache() / f"node-{hashlib.sha256(' '.join(_PACKAGES).encode()).hexdigest()[:16]}"
    if not directory.exists():
        with make_directory(directory) as made:
            subprocess.run(["apt-get", "download", "-q", *_PACKAGES], cwd=made, check=True, capture_output=True)
            for package in made.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, made], check=True)
                package.unlink()
    return directory


def get_definitions() -> list[Path]:
    """What tells an API server of cert-manager's objects: the files of its module."""
    directory = get_cache() / f"cert-manager-crds-{hash_files('cert-manager/go.mod')}"
    if not directory.exists():
        place, go = HERE / "cert-manager", find_go()
        run([go, "mod", "download", _CERT_MANAGER_MODULE], cwd=place)
        found = subprocess.run(
            [go, "list", "-m", "-f", "{{.Dir}}", _CERT_MANAGER_MODULE], cwd=place, check=True, capture_output=True
        )
        with make_directory(directory) as made:
            for file in Path(found.stdout.decode().strip(), "deploy/crds").glob("*.yaml"):
                shutil.copyfile(file, made / file.name)
    return sorted(directory.iterdir())


def make_environment(packages: Path) -> dict[str, str]:
    """Of a process of the node: it finds the unpacked programs, and they find their libraries."""
    places = [f"{packages}/usr/{name}" for name in ("sbin", "bin")]
    path = ":".join([*places, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
    return {
        "PATH": path,
        "LD_LIBRARY_PATH": f"{packages}/usr/lib/x86_64-linux-gnu",
        "HOME": "/root",
        "LANG": os.environ.get("LANG", "C"),
    }
