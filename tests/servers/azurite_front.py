"""What Azurite leaves out and Azure has, before an Azurite: Put Block From URL, by which blobs of more than 256 MiB are copied.

Owns its connections and threads, one a request. All else is passed on as it comes, so that signatures stay valid; the block
itself is put by the server's own shared access signature. Conditions of the source are Azurite's to keep, and refused by the
documents' codes.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.servers.fixtures_clouds import AzServer

_PIECE_BYTES = 1 << 20
_PATIENCE_S = 600.0
_CONDITIONS = ("x-ms-source-if-match", "x-ms-source-range", "x-ms-copy-source-authorization")
_READ_BY = dict(zip(_CONDITIONS, ("If-Match", "x-ms-range", "Authorization"), strict=True))


@contextmanager
def start_front(server: AzServer) -> Iterator[AzServer]:
    """The same server, reached through a front for as long as the context lasts."""

    class Handler(_Handler):
        behind = server

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as front:
        thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield replace(server, endpoint=f"http://127.0.0.1:{front.server_address[1]}", _pool=None)
        finally:
            front.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One request a connection (HTTP/1.0)."""

    behind: AzServer

    def _answer(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        length = int(self.headers.get("Content-Length") or 0)
        with ExitStack() as stack:
            if query.get("comp") == ["block"] and self.headers.get("x-ms-copy-source"):
                self._copy_block(stack, query["blockid"][0])
            else:
                headers = {name: text for name, text in self.headers.items() if name.lower() != "connection"}
                self._pass_back(self._ask(stack, self.command, self.path, headers, self.rfile, length))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 (names that the library looks for)

    def _ask(
        self, stack: ExitStack, method: str, target: str, headers: dict[str, str], body: BufferedIOBase, length: int
    ) -> HTTPResponse:
        """A request to Azurite, whose body is the next bytes of a stream."""
        place = urlsplit(self.behind.endpoint)
        upstream = stack.enter_context(closing(HTTPConnection(place.hostname or "", place.port, timeout=_PATIENCE_S)))
        upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, text in {"Host": place.netloc, **headers}.items():
            upstream.putheader(name, text)
        upstream.endheaders()
        while length:
            piece = body.read(min(_PIECE_BYTES, length))
            if not piece:
                raise ConnectionError("the body ended too early")
            upstream.send(piece)
            length -= len(piece)
        return stack.enter_context(closing(upstream.getresponse()))

    def _copy_block(self, stack: ExitStack, block: str) -> None:
        source = urlsplit(self.headers["x-ms-copy-source"])
        version = {"x-ms-version": self.headers["x-ms-version"]}
        conditions = {_READ_BY[name]: self.headers[name] for name in _CONDITIONS if name in self.headers}
        found = self._ask(stack, "GET", f"{source.path}?{source.query}", {**version, **conditions}, self.rfile, 0)
        if found.status >= 300:
            code = "SourceConditionNotMet" if found.status == 412 else "CannotVerifyCopySource"
            self._finish(found.status, [("x-ms-error-code", code), ("Content-Length", "0")])
            return
        length = int(found.headers["Content-Length"])
        target = f"{urlsplit(self.path).path}?{urlencode({'comp': 'block', 'blockid': block})}&{self.behind.signature}"
        headers = {**version, "Content-Length": str(length), "Content-Type": "application/octet-stream"}
        self._pass_back(self._ask(stack, "PUT", target, headers, found, length))

    def _pass_back(self, answer: HTTPResponse) -> None:
        hop_by_hop = {"connection", "keep-alive", "transfer-encoding"}
        self._finish(answer.status, [(name, text) for name, text in answer.getheaders() if name.lower() not in hop_by_hop])
        with contextlib.suppress(ConnectionError):  # who asked may have read enough
            while piece := answer.read(_PIECE_BYTES):
                self.wfile.write(piece)

    def _finish(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response_only(status)
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""
