"""What tests use to start and drive the fault proxy (fault_proxy.py).

Blocking calls of well under a millisecond to a loopback address; usable from any thread, from async tests as well.
"""

import contextlib
import http.client
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class LoggedRequest:
    """A request that passed; `range` is the header's text, `rule` the number of the rule that struck, or -1."""

    op: str
    bucket: str
    key: str
    range: str
    if_match: str
    started_s: float
    query: str
    host: str
    payer: str
    status: int
    sent_bytes: int
    body_bytes: int
    seconds: float
    rule: int
    method: str


class FaultProxy:
    """A running proxy. A context manager; `stop` ends its process."""

    def __init__(self, upstream: str, *, port: int = 0, style: str = "s3") -> None:
        """Start one in front of `upstream`, "http://host:port", a store that speaks as "s3", "gs" or "az"."""
        command = [sys.executable, str(Path(__file__).with_name("fault_proxy.py"))]
        self._process = subprocess.Popen(
            [*command, "--upstream", upstream.removeprefix("http://"), "--port", str(port), "--style", style],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(60)
            raise RuntimeError("the fault proxy did not start")
        ports = json.loads(line)
        self._control_port: int = ports["control_port"]
        self.port: int = ports["port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def set_rules(self, *rules: dict[str, Any]) -> None:
        """Replace all rules (see fault_proxy.py for what a rule is)."""
        self._call("POST", "/rules", list(rules))

    def set_limits(self, *, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Latency added to each request and bandwidth of all answers together; 0: none."""
        self._call("POST", "/limits", {"latency_s": latency_s, "bytes_per_s": bytes_per_s})

    def reset(self) -> None:
        """No rules, no limits, an empty log."""
        self.set_rules()
        self.set_limits()
        self._call("POST", "/reset")

    def reset_log(self) -> None:
        """Empty the log and the counts."""
        self._call("POST", "/reset")

    def get_counts(self) -> Counter[str]:
        """Requests by kind since the last reset: GET, LIST, HEAD, PUT, …"""
        return Counter(self._call("GET", "/counts")["counts"])

    def get_max_in_flight(self) -> int:
        """Most requests under way at once since the last reset."""
        return int(self._call("GET", "/counts")["max_in_flight"])

    def get_log(self, op: str | None = None) -> list[LoggedRequest]:
        """Requests since the last reset, in the order of their arrival."""
        entries = [LoggedRequest(**entry) for entry in self._call("GET", "/log")]
        return [entry for entry in entries if op is None or entry.op == op]

    def stop(self) -> None:
        """End the process; idempotent."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(60)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._control_port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
