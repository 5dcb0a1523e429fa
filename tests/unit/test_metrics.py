"""The HTTP server of metrics and health, over real sockets."""

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from prometheus_client import Counter

from alluxio_like.errors import ConfigError, Conflict
from alluxio_like.metrics import Health, HttpServer, Metrics, is_loopback, split_address, start_http


class State:
    ok = True


@pytest.fixture
def server() -> Iterator[tuple[HttpServer, Metrics, State]]:
    metrics, state = Metrics(process=True), State()
    http = start_http("127.0.0.1:0", metrics, lambda: Health(state.ok, {"workers": 2}))
    assert http is not None
    yield http, metrics, state
    http.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "http"]


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_show_what_was_counted(server: tuple[HttpServer, Metrics, State]) -> None:
    http, metrics, _ = server
    metrics.store_requests.labels("get", "1").inc(3)
    metrics.read_bytes.labels("local").inc(5)
    status, text = get(http.url + "/metrics")
    assert status == 200
    assert 'alluxio_like_store_requests_total{mount="1",op="get"} 3.0' in text
    assert "process_resident_memory_bytes" in text
    assert f'alluxio_like_build_info{{version="{version("alluxio-like")}"}} 1.0' in text, "of every service"


def test_health_is_200_or_503(server: tuple[HttpServer, Metrics, State]) -> None:
    http, _, state = server
    assert get(http.url + "/healthz")[0] == 200
    state.ok = False
    status, text = get(http.url + "/healthz")
    assert status == 503
    assert json.loads(text) == {"ok": False, "workers": 2}
    assert get(http.url + "/other")[0] == 404


def test_a_client_that_says_nothing_holds_nobody_up(server: tuple[HttpServer, Metrics, State]) -> None:
    http, _, _ = server
    with socket.create_connection(split_address(http.address)):
        assert get(http.url + "/healthz")[0] == 200


def test_two_sets_of_metrics_do_not_mix_and_every_one_has_a_sentence() -> None:
    first, second = Metrics(), Metrics()
    first.peer_bytes.inc(3)
    assert second.registry.get_sample_value("alluxio_like_peer_bytes_total") == 0
    for family in first.registry.collect():
        assert family.name.startswith("alluxio_like_")
        assert family.documentation.endswith(".")
    for counter in (metric for metric in vars(first).values() if isinstance(metric, Counter)):
        assert counter._type == "counter"


def test_where_it_may_listen() -> None:
    def health() -> Health:
        return Health(True, {})

    assert start_http("", Metrics(), health) is None
    with pytest.raises(ConfigError, match="--insecure"):
        start_http("0.0.0.0:0", Metrics(), health)
    with pytest.raises(ConfigError, match="is not host:port"):
        start_http("nonsense", Metrics(), health)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Conflict, match="choose another address"):
        start_http(f"127.0.0.1:{taken.getsockname()[1]}", Metrics(), health)


def test_addresses() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert is_loopback("127.0.0.9:1") and is_loopback("localhost:1") and is_loopback("[::1]:5")
    assert not is_loopback("10.0.0.1:1")
    for wrong in ("", "host", "host:", "host:x", "host:70000"):
        with pytest.raises(ConfigError):
            split_address(wrong)


def test_times_of_requests_are_a_counter_and_a_histogram(server: tuple[HttpServer, Metrics, State]) -> None:
    http, metrics, _ = server
    times = metrics.fuse_requests.get("open")
    for seconds in (0.0001, 0.0005, 0.002, 100.0):
        times.count(seconds)
    assert metrics.fuse_requests.get("open") is times
    _, text = get(http.url + "/metrics")
    for line in (
        'fuse_requests_total{op="open"} 4.0',
        'fuse_seconds_bucket{le="0.0005",op="open"} 2.0',
        'fuse_seconds_bucket{le="0.0025",op="open"} 3.0',
        'fuse_seconds_bucket{le="30.0",op="open"} 3.0',
        'fuse_seconds_bucket{le="+Inf",op="open"} 4.0',
        'fuse_seconds_count{op="open"} 4.0',
        'fuse_seconds_sum{op="open"} 100.0026',
    ):
        assert f"alluxio_like_{line}" in text
