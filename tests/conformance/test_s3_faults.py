"""What S3 does wrong, through the fault proxy: the right bytes or the right error, in time, and nothing secret in it."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import FlatUfs, Ufs
from alluxio_like.ufs.open import open_ufs
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import find_ports

STALL_S = 2.0
PATIENCE_S = 40.0
SIZE = 3 << 20
DATA = random.Random(7).randbytes(SIZE)
PATHS = {"chunked": ("plain", SIZE), "whole": ("plain", 200_000), "odd key": ("odd//key", SIZE)}


@dataclass
class Opened:
    """A store behind the proxy with one object under a plain and under an odd key, and the requests it has reported."""

    ufs: Ufs
    fingerprint: Fingerprint
    requests: Counter[str] = field(default_factory=Counter)

    async def read(self, path: str) -> bytes:
        key, length = PATHS[path]
        return b"".join([bytes(chunk) async for chunk in self.ufs.read(key, self.fingerprint, 0, length)])

    async def fail(self, path: str, expected: type[errors.AlluxioLikeError]) -> errors.AlluxioLikeError:
        start_s = time.monotonic()
        with pytest.raises(errors.AlluxioLikeError) as caught:
            await self.read(path)
        assert type(caught.value) is expected, repr(caught.value)
        assert time.monotonic() - start_s < PATIENCE_S, "it is told at once, or once a hasty one's time is up"
        assert "testsecret" not in str(caught.value) and "testaccess" not in str(caught.value)
        return caught.value


def open_at(
    endpoint: str, bucket: str, requests: Counter[str] | None = None, *, timeout_s: float = PATIENCE_S, **changes: str
) -> Ufs:
    options = {"endpoint": endpoint, "timeout_s": f"{timeout_s}", **changes}
    secrets = {"access_key": "testaccess", "secret_key": "testsecret0123456789"}
    secrets.update({name: options.pop(name) for name in ("access_key", "secret_key") if name in options})
    if "anonymous" in options:
        secrets = {}

    def count(op: str) -> None:
        if requests is not None:
            requests[op] += 1

    # (Also a hasty one takes its time to make its clients.)
    return open_ufs(f"s3://{bucket}", options, secrets=secrets, on_request=count, io_timeout_s=3 * PATIENCE_S)


@pytest.fixture
async def opened(s3_server: S3Server, s3_bucket: str, fault_proxy: FaultProxy) -> AsyncIterator[Opened]:
    for key in ("plain", "odd//key"):
        s3_server.put(s3_bucket, key, DATA)
    requests: Counter[str] = Counter()
    ufs = open_at(fault_proxy.endpoint, s3_bucket, requests)
    fingerprint = (await ufs.stat("plain")).fingerprint
    assert fingerprint is not None
    fault_proxy.reset_log()
    requests.clear()
    yield Opened(ufs, fingerprint, requests)
    fault_proxy.set_rules()
    await ufs.close()


@pytest.fixture
async def hasty(opened: Opened, s3_bucket: str, fault_proxy: FaultProxy) -> AsyncIterator[Opened]:
    """The same with little patience, for what waits for it to end: anything else may take longer on a busy machine."""
    requests: Counter[str] = Counter()
    ufs = open_at(fault_proxy.endpoint, s3_bucket, requests, timeout_s=STALL_S)
    yield Opened(ufs, opened.fingerprint, requests)
    fault_proxy.set_rules()
    await ufs.close()


# -- answers that say no ---------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[dict[str, Any], type[errors.AlluxioLikeError]]] = [
    ({"status": 503}, errors.StoreThrottled),
    ({"status": 503, "code": "ServiceUnavailable"}, errors.StoreThrottled),
    ({"status": 429}, errors.StoreThrottled),
    ({"status": 500}, errors.StoreUnavailable),
    ({"status": 502, "code": "BadGateway"}, errors.StoreUnavailable),
    ({"status": 403, "code": "AccessDenied"}, errors.StoreDenied),
    ({"status": 400, "code": "ExpiredToken"}, errors.StoreDenied),
    ({"status": 404, "code": "NoSuchBucket"}, errors.StoreMissing),
    ({"status": 404, "code": "NoSuchKey"}, errors.Stale),
    ({"status": 412, "code": "PreconditionFailed"}, errors.Stale),
    ({"status": 416, "code": "InvalidRange"}, errors.StoreProtocol),
    ({"status": 400, "code": "SomethingNew"}, errors.StoreError),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("rule", "expected"), REFUSALS, ids=[f"{r['status']}-{r.get('code', '')}" for r, _ in REFUSALS])
async def test_refusals_are_typed(
    opened: Opened, fault_proxy: FaultProxy, path: str, rule: dict[str, Any], expected: type[errors.AlluxioLikeError]
) -> None:
    fault_proxy.set_rules({"op": "GET", **rule})
    await opened.fail(path, expected)
    assert opened.requests == fault_proxy.get_counts()
    assert opened.requests["GET"] <= 2


async def test_one_failure_is_repeated_once_and_counted(opened: Opened, fault_proxy: FaultProxy) -> None:
    for rule in ({"status": 503}, {"status": 500}, {"drop": True}, {"set_headers": {"content-range": "bytes 5-9/10"}}):
        fault_proxy.reset_log()
        opened.requests.clear()
        fault_proxy.set_rules({"op": "GET", "times": 1, **rule})
        assert await opened.read("chunked") == DATA
        assert opened.requests == fault_proxy.get_counts() == {"GET": 2}


# -- answers that are wrong ------------------------------------------------------------------------------------------------------

WRONG: dict[str, dict[str, Any]] = {
    "short": {"short_by": 1000},
    "shorter": {"short_by": 150_000},
    "range": {"set_headers": {"content-range": f"bytes 100-{SIZE - 1}/{SIZE}"}},
    "total": {"set_headers": {"content-range": f"bytes 0-{SIZE - 1}/{SIZE + 1}"}},
    "no range": {"set_headers": {"content-range": ""}},
    "etag": {"set_headers": {"etag": '"d41d8cd98f00b204e9800998ecf8427e"'}},
    "status": {"set_status": 200},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", WRONG.values(), ids=WRONG)
async def test_wrong_answers_are_refused(opened: Opened, fault_proxy: FaultProxy, path: str, rule: dict[str, Any]) -> None:
    fault_proxy.set_rules({"op": "GET", **rule})
    await opened.fail(path, errors.StoreProtocol)
    fault_proxy.set_rules()
    assert await opened.read(path) == DATA[: PATHS[path][1]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("after", [0, 1, 65_536, 150_000])
async def test_a_body_that_is_cut(opened: Opened, fault_proxy: FaultProxy, path: str, after: int) -> None:
    fault_proxy.set_rules({"op": "GET", "cut_after_bytes": after})
    await opened.fail(path, errors.StoreUnavailable)


@pytest.mark.parametrize("path", PATHS)
async def test_a_closed_connection(opened: Opened, fault_proxy: FaultProxy, path: str) -> None:
    fault_proxy.set_rules({"op": "GET", "drop": True})
    await opened.fail(path, errors.StoreUnavailable)


# -- silence ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("where", [{}, {"stall_after_bytes": 0}, {"stall_after_bytes": 100_000}], ids=["head", "body", "later"])
async def test_a_store_that_falls_silent(hasty: Opened, fault_proxy: FaultProxy, path: str, where: dict[str, Any]) -> None:
    fault_proxy.set_rules({"op": "GET", "stall_s": 60, **where})
    await hasty.fail(path, errors.StoreUnavailable)
    assert hasty.requests == {"GET": 1}


async def test_a_slow_store_is_not_a_silent_one(opened: Opened, s3_bucket: str, fault_proxy: FaultProxy) -> None:
    ufs = open_at(fault_proxy.endpoint, s3_bucket, timeout_s=6)
    fault_proxy.set_limits(latency_s=0.5, bytes_per_s=SIZE / 8)
    assert await Opened(ufs, opened.fingerprint).read("chunked") == DATA
    await ufs.close()


async def test_a_cancelled_read_ends_at_once(opened: Opened, fault_proxy: FaultProxy) -> None:
    fault_proxy.set_rules({"op": "GET", "stall_s": 60, "stall_after_bytes": 100_000})
    for path in PATHS:
        task = asyncio.create_task(opened.read(path))
        async with asyncio.timeout(60):
            while not any(entry.sent_bytes == 100_000 for entry in fault_proxy.get_log("GET")):
                await asyncio.sleep(0.01)
        start_s = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start_s < 20
        fault_proxy.reset_log()
    fault_proxy.set_rules()
    assert await opened.read("chunked") == DATA


# -- lists and heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"status": 503}, errors.StoreThrottled),
        ({"status": 500}, errors.StoreUnavailable),
        ({"status": 403, "code": "InvalidAccessKeyId"}, errors.StoreDenied),
        ({"status": 404, "code": "NoSuchBucket"}, errors.StoreMissing),
        ({"status": 404, "code": ""}, errors.StoreMissing),
        ({"drop": True}, errors.StoreUnavailable),
        ({"stall_s": 60}, errors.StoreUnavailable),
        ({"cut_after_bytes": 100}, errors.StoreUnavailable),
        ({"replace_body": "<html>hello</html>"}, errors.StoreProtocol),
        ({"replace_body": "<ListBucketResult><Contents></Contents></ListBucketResult>"}, errors.StoreProtocol),
        ({"replace_body": "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"}, errors.StoreProtocol),
        ({"short_by": 20}, errors.StoreUnavailable),  # boto3 takes a 200 that is not XML for a 500
    ],
)
async def test_listings_that_fail(
    opened: Opened, hasty: Opened, fault_proxy: FaultProxy, rule: dict[str, Any], expected: type[errors.AlluxioLikeError]
) -> None:
    asked = hasty if "stall_s" in rule else opened
    fault_proxy.set_rules({"op": "LIST", **rule})
    start_s = time.monotonic()
    with pytest.raises(errors.AlluxioLikeError) as caught:
        await asked.ufs.list_page("")
    assert type(caught.value) is expected, repr(caught.value)
    assert time.monotonic() - start_s < PATIENCE_S
    assert asked.requests == fault_proxy.get_counts() == {"LIST": 1}


async def test_a_listing_out_of_order_is_refused(opened: Opened, fault_proxy: FaultProxy) -> None:
    entries = "".join(f"<Contents><Key>{k}</Key><ETag>&quot;1&quot;</ETag><Size>1</Size></Contents>" for k in ("a", "c"))
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
    body = f"<ListBucketResult>{more}{entries}</ListBucketResult>"
    fault_proxy.set_rules({"op": "LIST", "replace_body": body})
    page = await opened.ufs.list_page("")
    assert [entry.name for entry in page.entries] == ["a", "c"]
    with pytest.raises(errors.StoreProtocol):
        await opened.ufs.list_page("", page.token)


# What makes a listing say less or more than there is, without a status that tells.


async def list_all(ufs: Ufs, prefix: str, *, flat: bool) -> list[str]:
    """All names below a prefix, two on a page."""
    assert isinstance(ufs, FlatUfs)
    names, token = [], None
    for _ in range(100):
        if flat:
            page = await ufs.list_flat(prefix, token, max_entries=2)
        else:
            page = await ufs.list_page(prefix, token, max_entries=2)
        names += [entry.sort_name for entry in page.entries]
        token = page.token
        if token is None:
            return names
    raise AssertionError("the listing does not end")


MIXED_UP: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # What is remembered of a listing of "d/" or "e/", and what another listing of "d/" is answered.
    "a page comes again": ({"keep_body": "x"}, {"skip": 1, "give_body": "x"}),
    "one page for ever": ({"skip": 1, "times": 1, "keep_body": "x"}, {"skip": 1, "give_body": "x"}),
    "a page is left out": ({"skip": 2, "times": 1, "keep_body": "x"}, {"skip": 1, "times": 1, "give_body": "x"}),
    "the last page comes first": ({"skip": 3, "times": 1, "keep_body": "x"}, {"times": 1, "give_body": "x"}),
    "pages change places": ({"skip": 1, "times": 1, "keep_body": "x"}, {"skip": 2, "times": 1, "give_body": "x"}),
    "another listing's answer": ({"prefix": "e/", "times": 1, "keep_body": "x"}, {"times": 1, "give_body": "x"}),
    "another listing's page": (
        {"prefix": "e/", "skip": 1, "times": 1, "keep_body": "x"},
        {"skip": 1, "times": 1, "give_body": "x"},
    ),
    "its parent's answer": ({"prefix": "", "times": 1, "keep_body": "x"}, {"times": 1, "give_body": "x"}),
    "an empty answer of nothing": ({"times": 0}, {"replace_body": "<ListBucketResult></ListBucketResult>"}),
    "XML that was cut and closed": (
        {"times": 0},
        {"replace_body": "<ListBucketResult><Contents><Key>d/1</Key><Size>1</Size><ETag>1</ETag></Contents></ListBucketResult>"},
    ),
}


@pytest.mark.parametrize("flat", [False, True], ids=["delimited", "flat"])
@pytest.mark.parametrize(("kept", "given"), MIXED_UP.values(), ids=MIXED_UP)
async def test_answers_that_are_mixed_up_are_refused(
    s3_server: S3Server, s3_bucket: str, fault_proxy: FaultProxy, kept: dict[str, Any], given: dict[str, Any], flat: bool
) -> None:
    """An error, and soon: no name is taken for absent, and none for present."""
    wanted = [f"{number}" for number in range(8)]
    for prefix in ("d/", "e/"):
        for name in wanted:
            s3_server.put(s3_bucket, prefix + name, b"x")
    ufs = open_at(fault_proxy.endpoint, s3_bucket)
    kept = dict(kept)
    kept_prefix = kept.pop("prefix", "d/")
    try:
        fault_proxy.set_rules({"op": "LIST", **kept})
        await list_all(ufs, kept_prefix, flat=flat)
        fault_proxy.set_rules({"op": "LIST", **given})
        async with asyncio.timeout(60):
            with pytest.raises(errors.StoreProtocol):
                await list_all(ufs, "d/", flat=flat)
        fault_proxy.set_rules()
        assert await list_all(ufs, "d/", flat=flat) == wanted
    finally:
        fault_proxy.set_rules()
        await ufs.close()


@pytest.mark.parametrize("flat", [False, True], ids=["delimited", "flat"])
@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed", "AccessDenied"])
async def test_credentials_that_expire_within_a_listing(opened: Opened, fault_proxy: FaultProxy, code: str, flat: bool) -> None:
    fault_proxy.set_rules({"op": "LIST", "skip": 1, "status": 403 if code != "ExpiredToken" else 400, "code": code})
    assert isinstance(opened.ufs, FlatUfs)
    first = await (opened.ufs.list_flat("", max_entries=1) if flat else opened.ufs.list_page("", max_entries=1))
    with pytest.raises(errors.StoreDenied):
        await (opened.ufs.list_flat("", first.token) if flat else opened.ufs.list_page("", first.token))
    fault_proxy.set_rules()
    rest = await (opened.ufs.list_flat("", first.token) if flat else opened.ufs.list_page("", first.token))
    assert len(rest.entries) == 1 and rest.token is None


async def test_credentials_that_expire_within_a_read(opened: Opened, fault_proxy: FaultProxy) -> None:
    """The connection breaks within the body, and going on where it broke is refused."""
    fault_proxy.set_rules(
        {"op": "GET", "times": 1, "cut_after_bytes": 1 << 20}, {"op": "GET", "status": 400, "code": "ExpiredToken"}
    )
    got = bytearray()
    with pytest.raises(errors.StoreUnavailable):
        async for chunk in opened.ufs.read("plain", opened.fingerprint, 0, SIZE):
            got += chunk
    assert got == DATA[: len(got)]
    with pytest.raises(errors.StoreDenied):
        async for chunk in opened.ufs.read("plain", opened.fingerprint, len(got), SIZE - len(got)):
            got += chunk
    fault_proxy.set_rules()
    async for chunk in opened.ufs.read("plain", opened.fingerprint, len(got), SIZE - len(got)):
        got += chunk
    assert got == DATA


async def test_heads_that_fail(opened: Opened, fault_proxy: FaultProxy) -> None:
    for status, expected in [
        (503, errors.StoreThrottled),
        (403, errors.StoreDenied),
        (404, errors.NotFound),
        (500, errors.StoreUnavailable),
    ]:
        fault_proxy.set_rules({"op": "HEAD", "status": status})
        with pytest.raises(errors.AlluxioLikeError) as caught:
            await opened.ufs.stat("plain")
        assert type(caught.value) is expected


# -- wrong mounts ----------------------------------------------------------------------------------------------------------------


async def check(ufs: Ufs, expected: type[errors.AlluxioLikeError], words: str) -> None:
    start_s = time.monotonic()
    try:
        with pytest.raises(errors.AlluxioLikeError) as caught:
            await ufs.check()
    finally:
        await ufs.close()
    assert type(caught.value) is expected, repr(caught.value)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "testsecret" not in str(caught.value) and "wrongsecret" not in str(caught.value)
    assert time.monotonic() - start_s < PATIENCE_S


async def test_wrong_bucket(s3_server: S3Server) -> None:
    await check(open_at(s3_server.endpoint, "no-such-bucket"), errors.StoreMissing, "no such bucket")


async def test_wrong_endpoint(s3_bucket: str) -> None:
    (port,) = find_ports(1)
    await check(open_at(f"http://127.0.0.1:{port}", s3_bucket, timeout_s=STALL_S), errors.StoreUnavailable, f"127.0.0.1:{port}")
    await check(
        open_at("http://no-such-host.invalid", s3_bucket, timeout_s=STALL_S), errors.StoreUnavailable, "no-such-host.invalid"
    )


async def test_wrong_credentials(s3_server: S3Server, s3_bucket: str, fault_proxy: FaultProxy) -> None:
    # A radosgw that has STS does not say what is wrong; AWS does.
    for wrong in ({"secret_key": "wrongsecret"}, {"access_key": "wrongaccess"}):
        await check(open_at(s3_server.endpoint, s3_bucket, **wrong), errors.StoreDenied, "refuses access")
    for code, words in [
        ("SignatureDoesNotMatch", "secret key does not fit"),
        ("InvalidAccessKeyId", "does not know this access key"),
    ]:
        fault_proxy.set_rules({"op": "LIST", "status": 403, "code": code})
        await check(open_at(fault_proxy.endpoint, s3_bucket), errors.StoreDenied, words)
    await check(open_at(s3_server.endpoint, s3_bucket, anonymous="true"), errors.StoreDenied, "refuses access")


async def test_no_credentials_at_all(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    options = {"endpoint": s3_server.endpoint}
    ufs = open_ufs(f"s3://{s3_bucket}", options, secrets={}, on_request=lambda _op: None, io_timeout_s=60)
    await check(ufs, errors.StoreDenied, "no AWS credentials were found")
    options["profile"] = "nobody"
    ufs = open_ufs(f"s3://{s3_bucket}", options, secrets={}, on_request=lambda _op: None, io_timeout_s=60)
    await check(ufs, errors.ConfigError, "profile")


async def test_all_from_the_environment(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.put(s3_bucket, "k", b"hello")
    ufs = open_ufs(f"s3://{s3_bucket}", {}, secrets={}, on_request=lambda _op: None, io_timeout_s=60)
    await ufs.check()
    (entry,) = (await ufs.list_page("")).entries
    assert entry.fingerprint is not None
    assert [bytes(chunk) async for chunk in ufs.read("k", entry.fingerprint, 0, 5)] == [b"hello"]
    await ufs.close()


async def test_credentials_replaced_in_their_file(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    text = f"[p]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = "
    file.write_text(text + "wrongsecret")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    options = {"endpoint": s3_server.endpoint, "profile": "p", "timeout_s": "3"}
    ufs = open_ufs(f"s3://{s3_bucket}", options, secrets={}, on_request=lambda _op: None, io_timeout_s=60)
    with pytest.raises(errors.StoreDenied):
        await ufs.list_page("")
    file.write_text(text + s3_server.secret_key)
    async with asyncio.timeout(120):
        while True:
            try:
                assert (await ufs.list_page("")).entries == ()
                break
            except (errors.StoreDenied, errors.StoreUnavailable):
                await asyncio.sleep(0.05)
    await ufs.close()


async def test_options_win_over_the_environment(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    s3_server.put(s3_bucket, "k", b"hello")
    requests: Counter[str] = Counter()
    ufs = open_at(s3_server.endpoint, s3_bucket, requests)
    fingerprint = (await ufs.stat("k")).fingerprint
    assert fingerprint is not None
    assert [bytes(chunk) async for chunk in ufs.read("k", fingerprint, 0, 5)] == [b"hello"]
    assert requests == {"HEAD": 1, "GET": 1}
    await ufs.close()


async def test_tls(s3_server: S3Server, s3_bucket: str) -> None:
    assert s3_server.cluster is not None
    endpoint, ca_file = s3_server.cluster.tls_endpoint, str(s3_server.cluster.ca_file)
    s3_server.put(s3_bucket, "k", b"hello")
    for trust in ({"ca_file": ca_file}, {"verify": "false"}):
        requests: Counter[str] = Counter()
        ufs = open_at(endpoint, s3_bucket, requests, **trust)
        fingerprint = (await ufs.stat("k")).fingerprint
        assert fingerprint is not None
        assert [bytes(chunk) async for chunk in ufs.read("k", fingerprint, 0, 5)] == [b"hello"]
        assert requests == {"HEAD": 1, "GET": 1}, "obstore failed and boto3 stood in for it"
        await ufs.close()
    await check(open_at(endpoint, s3_bucket), errors.StoreUnavailable, "ca_file")
    await check(open_at(endpoint, s3_bucket, ca_file="/nonexistent"), errors.ConfigError, "ca_file")


async def test_a_store_that_comes_back(s3_bucket: str, s3_server: S3Server) -> None:
    """A mount whose first calls failed works once the store does."""
    (port,) = find_ports(1)
    ufs = open_at(f"http://127.0.0.1:{port}", s3_bucket)
    with pytest.raises(errors.StoreUnavailable):
        await ufs.list_page("")
    with FaultProxy(s3_server.endpoint, port=port):
        assert (await ufs.list_page("")).entries == ()
        await ufs.check()
    await ufs.close()


async def test_reads_stop_when_their_reader_does(opened: Opened, fault_proxy: FaultProxy) -> None:
    fault_proxy.set_limits(bytes_per_s=8 << 20)
    async with aclosing(opened.ufs.read("plain", opened.fingerprint, 0, SIZE)) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
    async with asyncio.timeout(60):
        while (entry := fault_proxy.get_log("GET")[0]).seconds == 0:
            await asyncio.sleep(0.01)
    assert entry.sent_bytes < SIZE
