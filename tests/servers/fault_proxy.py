"""A proxy in front of an object store that logs, counts, slows down and breaks what passes through it, in a process of its own.

    python fault_proxy.py --upstream HOST:PORT [--port N] [--style s3|gs|az] [--keep]
                                                               prints one JSON line: {"port": …, "control_port": …}

Owns its connections, the log of requests and the rules. Plain HTTP/1.1 on loopback; signatures stay valid because nothing of a
request is changed. Without --keep it ends when its standard input does, so that it never outlives who started it. Inside: one
event loop, one task a connection; rules and log are changed only between awaits. `FaultProxy` in fault_control.py drives it.

Control (JSON over HTTP on control_port): POST /rules, POST /limits, POST /reset, GET /log, GET /counts. A rule is

    {"op": "GET", "key": "part of the key", "range_start": 0, "skip": 0, "times": 1, ...one or more actions...}

`op`, `key`, `query` (part of what follows the question mark) and `range_start` narrow it down (absent: any); it strikes after
`skip` matching requests, `times` times (absent: always); the first rule that strikes is taken. Actions:

    status, code          answer this status with the store's XML error of that code, without asking the server
    drop                  close the connection without an answer
    drop_answer           let the server do it, then close the connection without an answer
    flip_request_byte     invert this byte of the request's body
    latency_s             wait before passing the request on
    stall_s               wait so long before the answer's first byte (then go on)
    stall_after_bytes     with stall_s: wait inside of the body instead, after so many bytes
    cut_after_bytes       close the connection inside of the body
    short_by              announce and send so many bytes less
    flip_byte             invert this byte of the body
    set_status            pass the answer on with another status
    set_headers           pass the answer on with these headers replaced, e.g. {"etag": "\\"0\\""}
    replace_body          pass the answer on with this text as its body
    keep_body             remember the answer's body under this name (until the next reset)
    give_body             pass the answer on with the body that was remembered under this name: an answer to another request
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_PIECE_BYTES = 256 << 10
_LIMIT_BYTES = 1 << 20


@dataclass
class Head:
    """The first line and the headers of a request or answer; header names in lower case, `lines` as they came."""

    first: str
    lines: list[tuple[str, str]]

    @classmethod
    def parse(cls, raw: bytes) -> "Head":
        first, *rest = raw.decode("latin-1").split("\r\n")
        return cls(first, [(name, value.strip()) for name, _, value in (line.partition(":") for line in rest if line)])

    def get(self, name: str) -> str:
        return next((value for key, value in self.lines if key.lower() == name), "")

    def set(self, name: str, value: str) -> None:
        self.lines = [(key, old) for key, old in self.lines if key.lower() != name]
        self.lines.append((name, value))

    def drop(self, name: str) -> None:
        self.lines = [(key, old) for key, old in self.lines if key.lower() != name]

    def encode(self) -> bytes:
        return "\r\n".join([self.first, *(f"{key}: {value}" for key, value in self.lines), "", ""]).encode("latin-1")


@dataclass
class Entry:
    """One request in the log."""

    op: str
    bucket: str
    key: str
    range: str
    if_match: str
    started_s: float
    query: str = ""
    host: str = ""
    payer: str = ""
    status: int = 0
    sent_bytes: int = 0
    body_bytes: int = 0
    seconds: float = 0.0
    rule: int = -1
    method: str = ""


@dataclass
class State:
    """All that changes."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    log: list[Entry] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, bytes] = field(default_factory=dict)
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    next_free_s: float = 0.0
    in_flight: int = 0
    max_in_flight: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def choose(self, entry: Entry) -> dict[str, Any]:
        """The rule that strikes this request, or {}."""
        for number, rule in enumerate(self.rules):
            if rule.get("op", entry.op) != entry.op or rule.get("key", "") not in entry.key:
                continue
            if rule.get("query", "") not in entry.query:
                continue
            start = rule.get("range_start")
            if start is not None and not entry.range.startswith(f"bytes={start}-"):
                continue
            rule["seen"] = rule.get("seen", 0) + 1
            if rule["seen"] <= rule.get("skip", 0) or rule.get("times", 1) <= 0:
                continue
            if "times" in rule:
                rule["times"] -= 1
            entry.rule = number
            return rule
        return {}

    def set_rules(self, rules: list[dict[str, Any]]) -> None:
        """Replace all rules; requests that a former rule holds back go on."""
        self.rules = rules
        self.released.set()
        self.released = asyncio.Event()

    async def pace(self, size: int) -> None:
        """Wait until `size` more bytes fit under the common bandwidth."""
        if self.bytes_per_s <= 0:
            return
        now = time.monotonic()
        # A pause leaves no more than 5 ms of credit, which hides the coarseness of timers and nothing else.
        self.next_free_s = max(self.next_free_s, now - 0.005) + size / self.bytes_per_s
        if self.next_free_s > now:
            await asyncio.sleep(self.next_free_s - now)


def classify(head: Head, style: str = "s3") -> Entry:
    """What a request is about."""
    method, target, version = head.first.split(" ", 2)
    if target.startswith("http://"):
        # From a client that takes this for its HTTP proxy: then the bucket may stand in the host's name.
        target = "/" + "".join(target.split("/", 3)[3:])
        head.first = f"{method} {target} {version}"
    parts = urlsplit(target)
    place = {"s3": _place_s3, "gs": _place_gs, "az": _place_az}[style]
    op, bucket, key = place(method, parts.path, parse_qs(parts.query, keep_blank_values=True), head)
    return Entry(
        op,
        bucket,
        key,
        head.get("range"),
        head.get("if-match"),
        time.time(),
        parts.query,
        head.get("host"),
        head.get("x-amz-request-payer"),
        method=method,
        body_bytes=int(head.get("content-length") or 0),
    )


def _place_s3(method: str, path: str, query: dict[str, list[str]], _head: Head) -> tuple[str, str, str]:
    """Operation, bucket and key of a path-style S3 request."""
    bucket, _, key = unquote(path).lstrip("/").partition("/") if not path.startswith("//") else ("", "", path)
    op = method
    if method == "GET" and not key:
        op = "LIST" if "list-type" in query or "prefix" in query or not query else "GET_BUCKET"
    elif not key:
        op = f"{method}_BUCKET"
    return op, bucket, key


def _place_gs(method: str, path: str, query: dict[str, list[str]], _head: Head) -> tuple[str, str, str]:
    """The same of Google's JSON API, and of a read over the XML API."""
    below = path.removeprefix("/upload").removeprefix("/storage/v1/b/")
    if below == path:
        bucket, _, key = path.lstrip("/").partition("/")
        return ("BATCH" if bucket == "batch" else method), bucket, unquote(key)
    bucket, _, rest = below.partition("/")
    key, _, verb = rest.removeprefix("o").removeprefix("/").partition("/")
    if path.startswith("/upload"):
        return "PUT", bucket, query.get("name", [""])[0]
    op = {"compose": "COMPOSE", "rewriteTo": "COPY"}.get(verb.partition("/")[0]) or (method if method != "GET" else "HEAD")
    return (op if key else "LIST"), bucket, unquote(key)


def _place_az(method: str, path: str, query: dict[str, list[str]], head: Head) -> tuple[str, str, str]:
    """The same of Azure, the account in the path."""
    _, bucket, key = ([*path.lstrip("/").split("/", 2), "", ""])[:3]
    kind = query.get("comp", [""])[0]
    if not key:
        return ("LIST" if kind == "list" else f"{method}_CONTAINER"), bucket, ""
    if method == "PUT" and head.get("x-ms-copy-source"):
        return "COPY", bucket, unquote(key)
    return {"block": "PART", "blocklist": "BLOCKS" if method == "GET" else "FINISH"}.get(kind, method), bucket, unquote(key)


class Proxy:
    """Passes requests on and breaks them by the rules."""

    def __init__(self, host: str, port: int, style: str) -> None:
        self._upstream = (host, port)
        self._style = style
        self.state = State()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection, with one connection to the server behind it."""
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = Head.parse((await reader.readuntil(b"\r\n\r\n"))[:-4])
                entry = classify(head, self._style)
                state = self.state
                state.log.append(entry)
                state.counts[entry.op] += 1
                state.in_flight += 1
                state.max_in_flight = max(state.max_in_flight, state.in_flight)
                try:
                    upstream, goes_on = await self._exchange(head, entry, reader, writer, upstream)
                finally:
                    state.in_flight -= 1
                    entry.seconds = time.time() - entry.started_s
                if not goes_on:
                    return
        except (asyncio.IncompleteReadError, OSError, asyncio.LimitOverrunError):
            return
        finally:
            for stream in (writer, upstream and upstream[1]):
                if stream:
                    stream.close()

    async def _exchange(
        self,
        head: Head,
        entry: Entry,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
    ) -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None, bool]:
        """One request and its answer; returns the connection to the server and whether the client's may be used again."""
        rule = self.state.choose(entry)
        delay_s = self.state.latency_s + rule.get("latency_s", 0)
        if delay_s:
            await asyncio.sleep(delay_s)
        if rule.get("drop"):
            return upstream, False
        if head.get("expect").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head.drop("expect")
        if "status" in rule:
            await self._stall_before(rule, reader)
            await _skip_body(head, reader)
            self._answer_error(writer, entry, rule)
            await writer.drain()
            return upstream, True
        if upstream is None:
            upstream = await asyncio.open_connection(*self._upstream, limit=_LIMIT_BYTES)
        up_reader, up_writer = upstream
        up_writer.write(head.encode())
        await _copy_body(head, reader, up_writer, rule.get("flip_request_byte", -1))
        await up_writer.drain()
        answer = Head.parse((await up_reader.readuntil(b"\r\n\r\n"))[:-4])
        while answer.first.split(" ")[1] == "100":
            answer = Head.parse((await up_reader.readuntil(b"\r\n\r\n"))[:-4])
        if "drop_answer" in rule or not await self._stall_before(rule, reader):
            return upstream, False
        whole = await self._pass_on(answer, entry, rule, up_reader, reader, writer)
        alive = whole and "close" not in (answer.get("connection") + head.get("connection")).lower()
        return (upstream if alive else None), alive

    def _answer_error(self, writer: asyncio.StreamWriter, entry: Entry, rule: dict[str, Any]) -> None:
        code = rule.get("code", {429: "TooManyRequests", 503: "SlowDown"}.get(rule["status"], "InternalError"))
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{escape(code)}</Code><Message>ordered</Message></Error>'.encode()
        )
        entry.status = rule["status"]
        head = f"HTTP/1.1 {rule['status']} Ordered\r\ncontent-type: application/xml\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + (b"" if entry.method == "HEAD" else body))

    async def _stall_before(self, rule: dict[str, Any], reader: asyncio.StreamReader) -> bool:
        return "stall_s" not in rule or "stall_after_bytes" in rule or await self._stall(rule["stall_s"], reader)

    async def _stall(self, seconds: float, reader: asyncio.StreamReader) -> bool:
        """Wait; False where the client has gone meanwhile. New rules end the wait."""
        gone = asyncio.ensure_future(reader.read(1))
        released = asyncio.ensure_future(self.state.released.wait())
        try:
            await asyncio.wait({gone, released}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            for task in (gone, released):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task

    async def _pass_on(
        self,
        answer: Head,
        entry: Entry,
        rule: dict[str, Any],
        source: asyncio.StreamReader,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """The answer, broken by the rule; False where the connection must not be used again."""
        version, status, *reason = answer.first.split(" ", 2)
        has_body = entry.method != "HEAD" and status not in {"204", "304"}
        chunked = "chunked" in answer.get("transfer-encoding").lower()
        length = int(answer.get("content-length") or 0) if has_body else 0
        if any(name in rule for name in ("replace_body", "keep_body", "give_body")) or (chunked and has_body):
            body = await (_read_chunked(source) if chunked else source.readexactly(length))
            if "keep_body" in rule:
                self.state.bodies[rule["keep_body"]] = body
            body = self.state.bodies[rule["give_body"]] if "give_body" in rule else body
            body = rule.get("replace_body", body.decode("latin-1")).encode("latin-1")
            answer.drop("transfer-encoding")
            answer.set("content-length", str(len(body)))
            source = asyncio.StreamReader()
            source.feed_data(body)
            source.feed_eof()
            length = len(body)
        keep = max(0, length - rule.get("short_by", 0)) if "short_by" in rule else length
        if keep != length:
            answer.set("content-length", str(keep))
        for name, value in rule.get("set_headers", {}).items():
            answer.set(name.lower(), value)
        entry.status = rule.get("set_status", int(status))
        answer.first = " ".join([version, str(entry.status), *reason])
        writer.write(answer.encode())
        whole = await self._pass_body(keep, entry, rule, source, reader, writer)
        if whole and keep != length:
            await source.readexactly(length - keep)
        return whole

    async def _pass_body(
        self,
        length: int,
        entry: Entry,
        rule: dict[str, Any],
        source: asyncio.StreamReader,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        stops = {rule[name] for name in ("cut_after_bytes", "stall_after_bytes") if name in rule}
        sent = 0
        while True:
            if sent in stops:
                if rule.get("cut_after_bytes") == sent:
                    await writer.drain()
                    return False
                await writer.drain()
                if not await self._stall(rule["stall_s"], reader):
                    return False
            if sent >= length:
                await writer.drain()
                return True
            end = min([length, sent + _PIECE_BYTES, *(stop for stop in stops if stop > sent)])
            piece = await source.read(end - sent)
            if not piece:
                return False
            if sent <= rule.get("flip_byte", -1) < sent + len(piece):
                at = rule["flip_byte"] - sent
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            await self.state.pace(len(piece))
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            entry.sent_bytes = sent


async def _read_chunked(source: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        size = int((await source.readuntil(b"\r\n")).split(b";")[0], 16)
        if size == 0:
            while await source.readuntil(b"\r\n") != b"\r\n":
                pass
            return body
        body += await source.readexactly(size)
        await source.readexactly(2)


async def _copy_body(head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flip: int = -1) -> None:
    """A request's body as it is, chunked or not; byte `flip` of one that is not is inverted."""
    if "chunked" in head.get("transfer-encoding").lower():
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            writer.write(line + await reader.readexactly(size + 2))
            await writer.drain()
            if size == 0:
                return
    left = int(head.get("content-length") or 0)
    while left:
        piece = await reader.read(min(left, _PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        if 0 <= flip < len(piece):
            piece = piece[:flip] + bytes([piece[flip] ^ 0xFF]) + piece[flip + 1 :]
        flip -= len(piece)
        writer.write(piece)
        await writer.drain()


async def _skip_body(head: Head, reader: asyncio.StreamReader) -> None:
    left = int(head.get("content-length") or 0)
    while left:
        left -= len(await reader.readexactly(min(left, _PIECE_BYTES)))


class Control:
    """The control API."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call a connection."""
        try:
            head = Head.parse((await reader.readuntil(b"\r\n\r\n"))[:-4])
            body = await reader.readexactly(int(head.get("content-length") or 0))
            answer = json.dumps(self._call(head.first.split(" ")[1], json.loads(body or b"null"))).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()

    def _call(self, path: str, body: Any) -> Any:
        state = self._state
        if path == "/rules":
            state.set_rules(body)
        elif path == "/limits":
            state.latency_s = body.get("latency_s", 0.0)
            state.bytes_per_s = body.get("bytes_per_s", 0.0)
        elif path == "/reset":
            state.log.clear()
            state.counts.clear()
            state.max_in_flight = state.in_flight
        elif path == "/log":
            return [vars(entry) for entry in state.log]
        elif path == "/counts":
            return {"counts": state.counts, "in_flight": state.in_flight, "max_in_flight": state.max_in_flight}
        return {}


async def _run(host: str, port: int, listen: int, keep: bool, style: str) -> None:
    proxy = Proxy(host, port, style)
    servers = [
        await asyncio.start_server(proxy.serve, "127.0.0.1", listen, limit=_LIMIT_BYTES),
        await asyncio.start_server(Control(proxy.state).serve, "127.0.0.1", 0),
    ]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    print(json.dumps({"port": ports[0], "control_port": ports[1]}), flush=True)  # noqa: T201
    ended = asyncio.Event()
    if not keep:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()
    else:
        await ended.wait()


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--style", choices=("s3", "gs", "az"), default="s3")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    host, _, port = arguments.upstream.rpartition(":")
    try:
        import uvloop
    except ImportError:
        runner = asyncio.run
    else:
        runner = uvloop.run
    with contextlib.suppress(KeyboardInterrupt):
        runner(_run(host, int(port), arguments.port, arguments.keep, arguments.style))


if __name__ == "__main__":
    main()
