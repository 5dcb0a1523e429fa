"""The test servers themselves: a real S3 server starts, the proxy passes on what it gets, and breaks what it is told to."""

import http.client
import threading
import time

import pytest
from botocore.exceptions import ClientError, ResponseStreamingError

from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server


def test_passes_requests_on_and_counts_them(s3_via_proxy: S3Server, fault_proxy: FaultProxy, s3_bucket: str) -> None:
    data = bytes(range(256)) * 12_000
    s3_via_proxy.put(s3_bucket, "dir/a b+ü", data)
    client = s3_via_proxy.client
    assert client.get_object(Bucket=s3_bucket, Key="dir/a b+ü")["Body"].read() == data
    listed = client.list_objects_v2(Bucket=s3_bucket, Delimiter="/")
    assert [entry["Prefix"] for entry in listed["CommonPrefixes"]] == ["dir/"]
    client.head_object(Bucket=s3_bucket, Key="dir/a b+ü")
    assert fault_proxy.get_counts() == {"PUT": 1, "GET": 1, "LIST": 1, "HEAD": 1}
    assert [entry.key for entry in fault_proxy.get_log("GET")] == ["dir/a b+ü"]
    assert fault_proxy.get_log("GET")[0].sent_bytes == len(data)


def test_rules_strike_as_often_as_they_say(s3_via_proxy: S3Server, fault_proxy: FaultProxy, s3_bucket: str) -> None:
    s3_via_proxy.put(s3_bucket, "k", b"x" * 1000)
    connection = http.client.HTTPConnection("127.0.0.1", fault_proxy.port, timeout=60)
    fault_proxy.set_rules({"op": "GET", "status": 503, "skip": 1, "times": 2})
    statuses = []
    for _ in range(4):
        connection.request("GET", f"/{s3_bucket}/k")
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()
    assert statuses == [403, 503, 503, 403]


def test_throttling_is_an_s3_error(s3_via_proxy: S3Server, fault_proxy: FaultProxy, s3_bucket: str) -> None:
    fault_proxy.set_rules({"op": "GET", "status": 503})
    with pytest.raises(ClientError) as caught:
        s3_via_proxy.client.get_object(Bucket=s3_bucket, Key="k")
    assert caught.value.response["Error"]["Code"] == "SlowDown"


def test_body_cut_and_flipped(s3_via_proxy: S3Server, fault_proxy: FaultProxy, s3_bucket: str) -> None:
    data = b"x" * 700_000
    s3_via_proxy.put(s3_bucket, "k", data)
    client = s3_via_proxy.client
    fault_proxy.set_rules({"op": "GET", "cut_after_bytes": 300_000})
    with pytest.raises(ResponseStreamingError):
        client.get_object(Bucket=s3_bucket, Key="k")["Body"].read()
    fault_proxy.set_rules({"op": "GET", "flip_byte": 500_000})
    body = client.get_object(Bucket=s3_bucket, Key="k")["Body"].read()
    assert [i for i in range(len(data)) if body[i] != data[i]] == [500_000]
    fault_proxy.set_rules({"op": "GET", "short_by": 10})
    answer = client.get_object(Bucket=s3_bucket, Key="k")
    assert answer["ContentLength"] == len(answer["Body"].read()) == len(data) - 10
    fault_proxy.set_rules()
    assert client.get_object(Bucket=s3_bucket, Key="k")["Body"].read() == data


def test_stalled_answer_goes_on_when_rules_change(s3_via_proxy: S3Server, fault_proxy: FaultProxy, s3_bucket: str) -> None:
    s3_via_proxy.put(s3_bucket, "k", b"x" * 1000)
    fault_proxy.set_rules({"op": "GET", "stall_s": 60, "stall_after_bytes": 500})
    bodies: list[bytes] = []
    reader = threading.Thread(
        target=lambda: bodies.append(s3_via_proxy.client.get_object(Bucket=s3_bucket, Key="k")["Body"].read())
    )
    reader.start()
    end = time.monotonic() + 60
    while not (log := fault_proxy.get_log("GET")) or log[0].sent_bytes < 500:
        assert time.monotonic() < end
    assert not bodies
    fault_proxy.set_rules()
    reader.join(60)
    assert bodies == [b"x" * 1000]


def test_bandwidth_and_latency(s3_via_proxy: S3Server, fault_proxy: FaultProxy, s3_bucket: str) -> None:
    s3_via_proxy.put(s3_bucket, "k", bytes(4 << 20))
    fault_proxy.set_limits(latency_s=0.1, bytes_per_s=20 << 20)
    start = time.monotonic()
    s3_via_proxy.client.get_object(Bucket=s3_bucket, Key="k")["Body"].read()
    assert time.monotonic() - start >= 0.29


def test_gateway_can_go_away_and_come_back(s3_server: S3Server) -> None:
    assert s3_server.cluster is not None
    bucket = s3_server.make_bucket()
    s3_server.put(bucket, "k", b"kept")
    s3_server.cluster.restart_gateway()
    assert s3_server.client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"
