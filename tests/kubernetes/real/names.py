"""Names of Services, for the pods of a real node: a DNS server that asks the API server, and knows addresses of Services alone.

    python names.py ADDRESS SERVER KEYS

Runs on the node, as the cluster's DNS; started by node.py, with the directory of its keys. One thread; asks at most twice a
second.
"""

import contextlib
import json
import socket
import ssl
import struct
import sys
import time
import urllib.request
from pathlib import Path
from typing import Protocol

_ASK_S = 0.5
_SUFFIX = ".svc.cluster.local"


class Services:
    """Addresses by name."""

    def __init__(self, server: str, keys: Path) -> None:
        self._url = f"{server}/api/v1/services"
        self._tls = ssl.create_default_context(cafile=str(keys / "ca.crt"))
        self._tls.load_cert_chain(keys / "admin.crt", keys / "admin.key")
        self._addresses: dict[str, str] = {}
        self._asked_s = 0.0

    def lookup(self, name: str) -> str | None:
        now = time.monotonic()
        if now - self._asked_s > _ASK_S:
            self._asked_s = now
            # While nobody answers, what was known is.
            with contextlib.suppress(OSError), urllib.request.urlopen(self._url, timeout=2, context=self._tls) as reply:
                items = json.load(reply)["items"]
                self._addresses = {
                    f"{one['metadata']['name']}.{one['metadata']['namespace']}{_SUFFIX}": one["spec"]["clusterIP"]
                    for one in items
                }
        return self._addresses.get(name.lower())


class Known(Protocol):
    """Who knows addresses."""

    def lookup(self, name: str) -> str | None: ...


def answer(question: bytes, services: Known) -> bytes:
    """To one query of one name: an address, nothing of that kind, or no such name."""
    number, end, labels = question[:2], 12, []
    while length := question[end]:
        labels.append(question[end + 1 : end + 1 + length].decode("ascii", "replace"))
        end += 1 + length
    asked = question[12 : end + 5]
    (kind,) = struct.unpack("!H", question[end + 1 : end + 3])
    address = services.lookup(".".join(labels))
    found = b""
    if address is not None and kind == 1:
        found = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(address)
    flags = 0x8580 | (0 if address is not None else 3)
    return number + struct.pack("!HHHHH", flags, 1, 1 if found else 0, 0, 0) + asked + found


def main() -> None:
    address, url, keys = sys.argv[1:]
    services = Services(url, Path(keys))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            question, caller = server.recvfrom(4096)
            try:
                server.sendto(answer(question, services), caller)
            except (IndexError, struct.error):
                continue


if __name__ == "__main__":
    main()
