"""A real PostgreSQL server from the distribution's packages, for tests and benchmarks.

Owns a new directory, the server's process (another user's where we are root, since PostgreSQL refuses root) and a port
on loopback. It syncs what it commits, as in production, and is gone when this process is, however that ends. One caller a server.
"""

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.servers.net import find_ports, wait_until

START_TIMEOUT_S = 120.0


class PostgresqlServer:
    """A server that runs from `start` to `stop`, any number of times on the same data; `remove` ends both."""

    def __init__(self) -> None:
        self._bin = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self._root = Path(tempfile.mkdtemp(prefix="al-pg-", dir="/tmp"))
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = itertools.count()
        self.password = secrets.token_hex(12)
        self.port = find_ports(1)[0]
        secret = self._root / "password"
        secret.write_text(self.password + "\n")
        secret.chmod(0o600)
        if self._user is not None:
            for path in (self._root, secret):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-U", "tester", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--no-locale", "--no-sync")

    @property
    def data(self) -> Path:
        return self._root / "data"

    def _command(self, program: str) -> list[str]:
        run_as = [] if self._user is None else [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        return ["setpriv", *run_as, "--pdeathsig", "KILL", str(self._bin / program), "-D", str(self.data)]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._command(program), *arguments], capture_output=True, text=True, cwd=self._root, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Serve, and return once it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 40,
            "shared_buffers": "64MB",
        }
        given = [f"-c{name}={value}" for name, value in settings.items()]
        with open(self._root / "log", "ab") as log:
            self._process = subprocess.Popen([*self._command("postgres"), *given], cwd=self._root, stdout=log, stderr=log)
        wait_until("PostgreSQL's start", self._is_ready, timeout_s=START_TIMEOUT_S)

    def _is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.get_url()).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT as an administrator would, SIGQUIT as a crash (it replays its log at the next start)."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(60)

    def signal(self, number: int) -> None:
        """To the server and all its sessions, which then stand still (SIGSTOP) or go on (SIGCONT)."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def get_url(self, *, port: int | None = None, schema: str = "public", password: bool = True) -> str:
        """The database's URL; with a schema it has tables of its own."""
        login = f"tester:{self.password}" if password else "tester"
        options = "" if schema == "public" else f"?options=-csearch_path%3D{schema}"
        return f"postgresql://{login}@127.0.0.1:{port or self.port}/postgres{options}"

    def make_schema(self) -> str:
        """The name of a new schema: another store in the same database."""
        import psycopg

        name = f"store{next(self._schemas)}"
        with psycopg.connect(self.get_url(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return name

    def remove(self) -> None:
        """End it and remove its data."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._root, ignore_errors=True)


@contextlib.contextmanager
def run_postgresql() -> Iterator[PostgresqlServer]:
    """A server that serves."""
    server = PostgresqlServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
