"""A Kerberos key server on loopback, MIT's from the distribution's packages: for a secured HDFS.

Owns everything below its directory, and its process for as long as its context lasts.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.servers.ceph import install_packages
from tests.servers.net import find_ports, is_listening, wait_until

_PACKAGES = ("krb5-kdc", "krb5-admin-server", "krb5-user")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_KRB5_CONF = """\
[libdefaults]
 default_realm = TEST
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
[realms]
 TEST = {{
  kdc = 127.0.0.1:{port}
 }}
"""
_KDC_CONF = """\
[kdcdefaults]
 kdc_listen = 127.0.0.1:{port}
 kdc_tcp_listen = 127.0.0.1:{port}
[realms]
 TEST = {{
  database_name = {root}/db
  key_stash_file = {root}/stash
  acl_file = {root}/acl
 }}
"""


class Kdc:
    """A running key server of the realm TEST. Each principal's key is in a file of its first component's name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def config(self) -> Path:
        return self._root / "krb5.conf"

    def get_keytab(self, name: str) -> Path:
        """The key of NAME, or of NAME/localhost."""
        return self._root / f"{name}.keytab"

    def get_ticket(self, name: str) -> str:
        """A cache with a ticket for NAME, as kinit gets it."""
        cache = f"FILE:{self._root}/{name}.cache"
        self.run("kinit", "-k", "-t", str(self.get_keytab(name)), "-c", cache, name)
        return cache

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": _PATH, "KRB5_CONFIG": str(self.config), "KRB5_KDC_PROFILE": f"{self._root}/kdc.conf"}

    def run(self, *command: str) -> None:
        """One of Kerberos' programs, for this realm."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def start_kdc(root: Path, *principals: str) -> Iterator[Kdc]:
    """A key server for as long as the context lasts; installs what is missing."""
    if any(shutil.which(program, path=_PATH) is None for program in ("krb5kdc", "kadmin.local", "kinit")):
        install_packages(_PACKAGES)
    (port,) = find_ports(1)
    kdc = Kdc(root)
    root.mkdir(parents=True, exist_ok=True)
    kdc.config.write_text(_KRB5_CONF.format(port=port))
    (root / "kdc.conf").write_text(_KDC_CONF.format(port=port, root=root))
    (root / "acl").touch()
    kdc.run("kdb5_util", "create", "-s", "-P", "master", "-r", "TEST")
    for principal in principals:
        kdc.run("kadmin.local", "-q", f"addprinc -randkey {principal}")
        kdc.run("kadmin.local", "-q", f"ktadd -k {kdc.get_keytab(principal.partition('/')[0])} {principal}")
    with (root / "log").open("wb") as log:
        command = ["setpriv", "--pdeathsig", "KILL", "--", "krb5kdc", "-n"]
        process = subprocess.Popen(command, env=kdc.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(f"the key server; its log is {root}/log", lambda: is_listening(port), timeout_s=60)
        yield kdc
    finally:
        process.kill()
        process.wait(60)
