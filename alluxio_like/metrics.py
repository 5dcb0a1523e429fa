"""Prometheus metrics, each defined here with a sentence, and the HTTP server that shows them.

Owns names, labels and help texts, and /metrics and /healthz. Services are given a `Metrics` by their app; nothing is registered
globally. Does not decide what healthy means: the app gives a function. Metrics may be changed from any thread; the HTTP server
answers in threads of its own, so what it is given (the health function, gauges' callbacks) must be safe to call from them.
"""

import contextlib
import json
import ssl
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from socketserver import ThreadingMixIn
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from alluxio_like.certificates import PemFiles
from alluxio_like.errors import AlluxioLikeError, ConfigError, Conflict

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

NAMESPACE = "alluxio_like"

_LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REQUEST_TIMEOUT_S = 10.0
"""A guess: a scraper that neither sends nor takes a byte for so long is cut off."""


class Times:
    """How long requests of one kind took. Counted by one thread, without a lock: 1 us, where a counter and a histogram are 7."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_LATENCY_BUCKETS) + 1)
        self.seconds = 0.0

    def count(self, seconds: float) -> None:
        """One more."""
        self.buckets[bisect_left(_LATENCY_BUCKETS, seconds)] += 1
        self.seconds += seconds


class RequestTimes(Collector):
    """Requests by operation, for where a thousand of them are answered in a few milliseconds: shown as a counter and as a
    histogram, each with its name and sentence."""

    def __init__(self, counter: tuple[str, str], histogram: tuple[str, str], registry: CollectorRegistry) -> None:
        self.named = counter, histogram
        self._times: dict[str, Times] = {}
        registry.register(self)

    def get(self, op: str) -> Times:
        """Of one operation."""
        return self._times.setdefault(op, Times())

    def collect(self) -> Iterable[Metric]:
        (name, sentence), (histogram_name, histogram_sentence) = self.named
        counter = CounterMetricFamily(f"{NAMESPACE}_{name}", sentence, labels=["op"])
        histogram = HistogramMetricFamily(f"{NAMESPACE}_{histogram_name}", histogram_sentence, labels=["op"])
        bounds = [*map(str, map(float, _LATENCY_BUCKETS)), "+Inf"]
        for op, times in list(self._times.items()):
            totals = list(accumulate(times.buckets))
            counter.add_metric([op], totals[-1])
            histogram.add_metric([op], list(zip(bounds, totals, strict=True)), times.seconds)
        return counter, histogram


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self, *, process: bool = False) -> None:
        """`process`: also show this process's CPU time, memory and descriptors."""
        self.registry = CollectorRegistry()
        if process:
            ProcessCollector(registry=self.registry)
        self._add_build()
        self._add_stores()
        self._add_reads()
        self._add_cache()
        self._add_rpc()
        self._add_master()
        self._add_fuse()

    def _counter(self, name: str, sentence: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, sentence, labels, namespace=NAMESPACE, registry=self.registry)

    def _gauge(self, name: str, sentence: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, sentence, labels, namespace=NAMESPACE, registry=self.registry)

    def _histogram(self, name: str, sentence: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, sentence, labels, namespace=NAMESPACE, registry=self.registry, buckets=_LATENCY_BUCKETS)

    def _add_build(self) -> None:
        self.build = self._gauge("build_info", "Always 1; its label tells the release.", ("version",))
        self.build.labels(version("alluxio-like")).set(1)

    def _add_stores(self) -> None:
        self.store_requests = self._counter("store_requests_total", "Requests sent to a store.", ("op", "mount"))
        self.store_errors = self._counter(
            "store_errors_total", "Requests to a store that failed, by the code of the error.", ("op", "mount", "code")
        )
        self.store_bytes = self._counter("store_bytes_total", "Bytes of content that came from a store.", ("mount",))
        self.store_latency = self._histogram(
            "store_request_seconds", "Time from a request to a store to the end of its answer.", ("op",)
        )
        self.store_throttles = self._counter("store_throttles_total", "Times a store asked for less.", ("bucket",))
        self.store_rate_limit = self._gauge(
            "store_rate_limit", "Requests per second allowed to a bucket; 0 when there is no limit.", ("bucket",)
        )

    def _add_reads(self) -> None:
        self.read_bytes = self._counter(
            "read_bytes_total",
            "Bytes given to readers, by where they were: local, peer, store, or passthrough (by the kernel itself; estimated).",
            ("source",),
        )
        self.wait_seconds = self._counter(
            "wait_seconds_total",
            "Seconds that programs waited for a mount, by cause: store, peer, fill (the worker's disk), metadata, queue, other.",
            ("cause",),
        )
        self.read_failures = self._counter("read_failures_total", "Reads that failed, by the code of the error.", ("code",))
        self.readahead_bytes = self._gauge("readahead_bytes", "Bytes read ahead that nobody has asked for yet.")

    def _add_cache(self) -> None:
        self.fetch_queue = self._gauge("fetch_queue_depth", "Fetches that wait for their turn.", ("priority",))
        self.fetch_running = self._gauge("fetches_running", "Fetches under way.", ("priority",))
        self.fetch_seconds = self._histogram("fetch_seconds", "Time from asking for pages to having them.", ("priority",))
        self.peer_bytes = self._counter("peer_bytes_total", "Bytes of content that came from other workers.")
        self.data_connections = self._gauge("data_connections", "Connections of others to the data socket.")
        self.data_sent_bytes = self._counter("data_sent_bytes_total", "Bytes sent over the data socket.")
        self.cache_used_bytes = self._gauge("cache_used_bytes", "Bytes on a cache directory.", ("directory",))
        self.cache_capacity_bytes = self._gauge("cache_capacity_bytes", "Quota of a cache directory.", ("directory",))
        self.cache_files = self._gauge("cache_files", "Files of which a cache directory holds something.", ("directory",))
        self.cache_failed = self._gauge(
            "cache_directory_failed", "1 when a cache directory was taken out of use.", ("directory",)
        )
        self.evicted_files = self._counter("evicted_files_total", "Files evicted, by role: home or guest.", ("role",))
        self.evicted_bytes = self._counter("evicted_bytes_total", "Bytes evicted, by role: home or guest.", ("role",))
        self.evictions_skipped = self._counter("evictions_skipped_total", "Evictions left out because the file was in use.")
        self.corrupt_pages = self._counter("corrupt_pages_total", "Pages dropped because their checksum did not match.")
        self.scrubbed_bytes = self._counter("scrubbed_bytes_total", "Bytes read again by the scrubber.")
        self.repaired_bytes = self._counter(
            "repaired_bytes_total", "Bytes fetched again because they did not match their checksum."
        )
        self.scrub_progress = self._gauge(
            "scrub_progress_ratio", "How much of a cache directory the scrubber has read in its present round.", ("directory",)
        )
        self.cache_held_bytes = self._gauge(
            "cache_held_bytes", "Bytes evicted from a cache directory but still open somewhere.", ("directory",)
        )
        self.door_leases = self._gauge("door_leases", "Cache files handed out one by one and not yet given back.")

        self.drafts = self._gauge("drafts", "Files that are being written at this worker.")
        self.draft_bytes = self._gauge("draft_bytes", "Bytes on the disk of files that are being written.")
        self.unpersisted_files = self._gauge("unpersisted_files", "Versions written here that the store does not have.")
        self.unpersisted_bytes = self._gauge("unpersisted_bytes", "Bytes of versions written here that the store does not have.")
        self.unpersisted_limit_bytes = self._gauge(
            "unpersisted_limit_bytes", "Bytes that may wait for their upload before a close waits for its own; -1: no limit."
        )
        self.upload_pace = self._gauge("upload_bytes_per_second", "Speed at which uploads go, as measured of late.")
        self.capped_closes = self._counter("capped_closes_total", "Closes that waited for their upload, as too much was waiting.")
        self.seal_seconds = self._histogram("seal_seconds", "Time from a close to the file's next version.")
        self.upload_seconds = self._histogram("upload_seconds", "Time that the upload of a version took, waiting included.")
        self.uploaded_bytes = self._counter("uploaded_bytes_total", "Bytes of content that went to stores.")
        self.upload_failures = self._counter("upload_failures_total", "Uploads that failed and are repeated, by code.", ("code",))
        self.upload_conflicts = self._counter(
            "upload_conflicts_total", "Files changed at the store by others while they were written here: both are kept."
        )

    def _add_rpc(self) -> None:
        self.rpc_requests = self._counter("rpc_requests_total", "Calls served, by method and status.", ("method", "status"))
        self.rpc_latency = self._histogram("rpc_seconds", "Time a served call took.", ("method",))

    def _add_master(self) -> None:
        self.namespace_inodes = self._gauge("namespace_inodes", "Inodes that the namespace knows.")
        self.listed_entries = self._counter("listed_entries_total", "Entries that stores listed.", ("mount",))
        self.workers = self._gauge("workers", "Workers by state: live or dead.", ("state",))
        self.blocks = self._gauge("blocks", "Blocks of which some worker holds pages.")
        self.lease_sessions = self._gauge("lease_sessions", "Clients that hold a lease.")
        self.lease_directories = self._gauge("lease_directories", "Directories that some client's lease covers.")
        self.lease_recalls = self._counter("lease_recalls_total", "Recalls given out, counted once for each client told.")
        self.leases_succeeded = self._counter(
            "leases_succeeded_total", "Leases of killed FUSE daemons that the daemon after them ended, before they had run out."
        )
        self.delegations = self._gauge("delegations", "New directories that some mount fills by itself.")
        self.delegations_taken_back = self._counter(
            "delegations_taken_back_total",
            "Such directories that were taken back, because others asked for them, or made too many.",
        )
        self.files_published = self._counter("files_published_total", "Files that mounts have made by themselves and published.")
        self.namespace_unpersisted_files = self._gauge(
            "namespace_unpersisted_files", "Files of the namespace whose content no store has yet."
        )
        self.namespace_unpersisted_bytes = self._gauge("namespace_unpersisted_bytes", "Bytes of those files.")
        self.quota_used_bytes = self._gauge("quota_used_bytes", "Bytes below a directory with a quota.", ("path",))
        self.quota_used_files = self._gauge("quota_used_files", "Files and directories below it.", ("path",))
        self.journal_steps = self._gauge("journal_steps", "Deletions, moves and directories that stores still have to follow.")
        self.write_conflicts = self._gauge("write_conflicts", "Files that are kept beside a foreign content, under another name.")
        self.jobs = self._gauge("jobs", "Load jobs by state.", ("state",))
        self.job_files = self._gauge("job_files", "Files of a running job: total, done or failed.", ("job", "what"))
        self.job_bytes = self._gauge("job_bytes", "Bytes of a running job: total or done.", ("job", "what"))

    def _add_fuse(self) -> None:
        self.fuse_requests = RequestTimes(
            ("fuse_requests_total", "Requests of the kernel, by operation."),
            ("fuse_seconds", "Time a request of the kernel took."),
            self.registry,
        )
        self.fuse_errors = self._counter("fuse_errors_total", "Requests of the kernel answered with an error.", ("op", "errno"))
        self.fuse_handles = self._gauge("fuse_open_handles", "Files that are open on the mount.")
        self.fuse_session = self._gauge(
            "fuse_session", "1 for the session in use: kernel with passthrough, kernel or pyfuse3.", ("session",)
        )
        self.fuse_generation = self._gauge(
            "fuse_generation", "Which daemon of its mount this is, counted from 1; kernel session."
        )
        self.fuse_restarts = self._gauge("fuse_restarts", "Daemons of this mount that took over from one that died.")
        self.fuse_opens = self._counter(
            "fuse_opens_total",
            "Opens by how they were served: passthrough (the kernel reads by itself), cached, direct, rerouted; kernel session.",
            ("way",),
        )
        self.fuse_handles_by_way = self._gauge(
            "fuse_open_files", "Files that are open, by how they are served; kernel session.", ("way",)
        )
        self.fuse_nodes = self._gauge("fuse_open_nodes", "Node ids that are open; kernel session.")
        self.fuse_moves = self._counter(
            "fuse_moves_total", "Opens that were sent to another node id of their file; kernel session."
        )
        self.fuse_fills = self._counter(
            "fuse_fills_total",
            "Files brought whole to this machine for passthrough, by occasion and outcome.",
            ("occasion", "outcome"),
        )
        self.fuse_shown = self._counter(
            "fuse_shown_total",
            "Times that what was written to a file which stays open was made visible to other mounts, or could not be.",
            ("outcome",),
        )
        self.fuse_readers = self._gauge("fuse_readers", "Processes beside the daemon that answer READs; kernel session.")
        self.fuse_reads_handed = self._counter(
            "fuse_reads_handed_total", "READs given to such a process: answered, or handed back to the daemon.", ("outcome",)
        )
        self.degraded = self._gauge("degraded", "1 while the master cannot be reached.")
        self.lease_held = self._gauge("lease_held", "1 while the master's lease covers what is remembered of names.")
        self.lease_losses = self._counter(
            "lease_losses_total", "Times the lease ran out, so that what was remembered may be old."
        )
        self.names_recalled = self._counter("names_recalled_total", "Recalls received from the master.")
        self.uncovered_answers = self._counter(
            "uncovered_answers_total", "Names and attributes answered from memory although no lease covered them any more."
        )


@dataclass(frozen=True, slots=True)
class Health:
    """What /healthz answers: 200 when `ok`, else 503; `details` are shown as JSON and hold no secrets."""

    ok: bool
    details: dict[str, Any]


Page = Callable[[dict[str, str]], Any]
"""Gives what is shown as JSON, for the parameters of a query, to callers on this machine alone; no secrets."""
_IS_HERE = "alluxio_like.is_here"


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    # Closing must not wait for a scraper that stalls.
    block_on_close = False
    certificates: "_Certificates | None" = None

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.certificates is None:
            return connection, address
        # The handshake comes with the first read, in the connection's own thread.
        context = self.certificates.get()
        return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address


class _Certificates:
    """What an HTTPS server shows, taken up anew when it is replaced on the disk. Raises ConfigError when it is made."""

    def __init__(self, certificate: Path, key: Path | None) -> None:
        self._files = PemFiles(certificate, key, None)
        self._pem = self._files.get()
        self._context = self._make_context()

    def get(self) -> ssl.SSLContext:
        """For the next connection."""
        pem = self._files.get()
        if pem is not self._pem:
            # What is being replaced again just now is taken up with a later connection.
            with contextlib.suppress(AlluxioLikeError, OSError):
                self._context, self._pem = self._make_context(), pem
        return self._context

    def _make_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._files.load(context)
        return context


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_S

    def get_environ(self) -> "WSGIEnvironment":
        """With a word on whether the caller is on this machine."""
        here = is_here(str(self.client_address[0]), str(self.connection.getsockname()[0]))
        return {**super().get_environ(), _IS_HERE: here}

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Requests are not logged: a scraper comes every few seconds."""


def split_address(address: str) -> tuple[str, int]:
    """host:port as (host, port), also with [IPv6]; raises ConfigError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!r} is not host:port, such as 127.0.0.1:19998", subject=address)
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether host:port can be reached from this machine alone."""
    host, _ = split_address(address)
    return host in {"localhost", "::1"} or host.startswith("127.")


def is_here(caller: str, called: str) -> bool:
    """Whether a connection comes from this machine: from the address that it called, or a loopback one."""
    return bool(caller) and (caller == called or is_loopback(f"[{caller}]:0"))


class HttpServer:
    """Serves /metrics and /healthz in threads until `close`."""

    def __init__(self, server: WSGIServer, scheme: str) -> None:
        self._server = server
        self._scheme = scheme
        self._thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """host:port it is bound to."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    @property
    def url(self) -> str:
        """Where /metrics and /healthz are."""
        return f"{self._scheme}://{self.address}"

    def close(self) -> None:
        """Stop serving; returns within about a second, whatever clients do."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def start_http(
    bind: str,
    metrics: Metrics,
    health: Callable[[], Health],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    insecure: bool = False,
    pages: Mapping[str, Page] = MappingProxyType({}),
) -> HttpServer | None:
    """Serve /metrics, /healthz and `pages` (by path) on `bind` (host:port, port 0 picks one); None when `bind` is empty.

    `health` and pages are called in a thread of the server, for each request; what a page raises is answered with 503. No caller
    shows a certificate: probes and scrapers have none. A certificate that is replaced on the disk is shown from then on. Raises
    ConfigError for an address other than loopback without a certificate or `insecure`, Conflict for a port that is taken.
    """
    if not bind:
        return None
    host, port = split_address(bind)
    if not (is_loopback(bind) or certificate or insecure):
        raise ConfigError(f"{bind} is not a loopback address: give a certificate, or --insecure to serve it in the clear")
    shown = _Certificates(certificate, key) if certificate is not None else None
    try:
        server = make_server(host, port, _make_app(metrics, health, pages), _ThreadingServer, _Handler)
    except OSError as error:
        raise Conflict(f"cannot serve metrics on {bind} ({error.strerror}): choose another address", subject=bind) from error
    server.certificates = shown
    return HttpServer(server, "https" if certificate else "http")


def _make_app(
    metrics: Metrics, health: Callable[[], Health], pages: Mapping[str, Page]
) -> Callable[["WSGIEnvironment", "StartResponse"], Iterable[bytes]]:
    show_metrics = make_wsgi_app(metrics.registry)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return show_metrics(environ, start_response)  # type: ignore[no-any-return]
        if path == "/healthz":
            state = health()
            body = json.dumps({"ok": state.ok, **state.details}).encode() + b"\n"
            start_response("200 OK" if state.ok else "503 Service Unavailable", [("Content-Type", "application/json")])
            return [body]
        if (page := pages.get(path)) is not None and not environ.get(_IS_HERE):
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [json.dumps({"error": f"{path} is shown to callers on its own machine alone"}).encode() + b"\n"]
        if page is not None:
            query = parse_qs(environ.get("QUERY_STRING", ""))
            try:
                status, shown = "200 OK", page({name: values[-1] for name, values in query.items()})
            except Exception as error:  # noqa: BLE001  shown to whoever asked
                status, shown = "503 Service Unavailable", {"error": str(error) or type(error).__name__}
            start_response(status, [("Content-Type", "application/json")])
            return [json.dumps(shown).encode() + b"\n"]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [f"see {', '.join(['/metrics', '/healthz', *pages])}\n".encode()]

    return app
