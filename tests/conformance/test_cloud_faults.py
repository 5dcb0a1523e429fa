"""What Google Cloud Storage and Azure do wrong, through the fault proxy: the right bytes or the right error, in time, no secret.

The cases are those of test_s3_faults.py, on what differs.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs, split_secrets
from alluxio_like.ufs.versions import VersionedUfs
from alluxio_like.ufs.writing import Expected, Source, WritableUfs, WriteOptions, get_writable
from tests.conformance.stores import make_source
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures_clouds import AZ_KEY, AzServer, GsServer
from tests.servers.net import find_ports

STALL_S = 2.0
PATIENCE_S = 40.0
SIZE = 3 << 20
DATA = random.Random(7).randbytes(SIZE)
PATHS = {"chunked": ("plain", SIZE), "whole": ("plain", 200_000), "odd key": ("odd//key", SIZE)}
SCHEMES = ("gs", "az")


@dataclass
class Cloud:
    """A server, a proxy in front of it, and a bucket with one content under a plain and under an odd key."""

    server: GsServer | AzServer
    proxy: FaultProxy
    bucket: str

    @property
    def scheme(self) -> str:
        return self.server.scheme

    def open(
        self,
        endpoint: str = "",
        requests: Counter[str] | None = None,
        bucket: str = "",
        *,
        timeout_s: float = PATIENCE_S,
        **changes: str,
    ) -> Ufs:
        options = {**self.server.options, "endpoint": endpoint or self.proxy.endpoint, "timeout_s": f"{timeout_s}", **changes}
        if "anonymous" in changes:
            options = {name: text for name, text in options.items() if name not in {"access_token", "account_key"}}
        public, secret = split_secrets(self.scheme, options)

        def count(op: str) -> None:
            if requests is not None:
                requests[op] += 1

        uri = f"{self.scheme}://{bucket or self.bucket}"
        return open_ufs(uri, public, secrets=secret, on_request=count, io_timeout_s=3 * timeout_s)


@dataclass
class Opened:
    """A store behind the proxy, and the requests it has reported."""

    ufs: Ufs
    fingerprints: dict[str, Fingerprint]
    scheme: str
    requests: Counter[str] = field(default_factory=Counter)

    async def read(self, path: str) -> bytes:
        key, length = PATHS[path]
        return b"".join([bytes(chunk) async for chunk in self.ufs.read(key, self.fingerprints[key], 0, length)])

    async def fail(self, path: str, expected: type[errors.AlluxioLikeError]) -> None:
        start_s = time.monotonic()
        with pytest.raises(errors.AlluxioLikeError) as caught:
            await self.read(path)
        assert type(caught.value) is expected, repr(caught.value)
        assert time.monotonic() - start_s < PATIENCE_S, "it is told at once, or once a hasty one's time is up"
        assert "testsecret" not in str(caught.value) and AZ_KEY not in str(caught.value)


@pytest.fixture(scope="module", params=SCHEMES)
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    server: GsServer | AzServer = request.getfixturevalue(f"{request.param}_server")
    bucket = server.make_bucket()
    for key in ("plain", "odd//key"):
        server.put(bucket, key, DATA)
    with FaultProxy(server.endpoint, style=server.scheme) as proxy:
        yield Cloud(server, proxy, bucket)


@pytest.fixture
def proxy(cloud: Cloud) -> Iterator[FaultProxy]:
    cloud.proxy.reset()
    yield cloud.proxy
    cloud.proxy.reset()


@pytest.fixture
async def opened(cloud: Cloud, proxy: FaultProxy) -> AsyncIterator[Opened]:
    requests: Counter[str] = Counter()
    ufs = cloud.open(requests=requests)
    found = {}
    for key in ("plain", "odd//key"):
        fingerprint = (await ufs.stat(key)).fingerprint
        assert fingerprint is not None
        found[key] = fingerprint
    proxy.reset_log()
    requests.clear()
    yield Opened(ufs, found, cloud.scheme, requests)
    proxy.set_rules()
    await ufs.close()


@pytest.fixture
async def hasty(opened: Opened, cloud: Cloud, proxy: FaultProxy) -> AsyncIterator[Opened]:
    """The same with little patience, for what waits for it to end: anything else may take longer on a busy machine."""
    requests: Counter[str] = Counter()
    ufs = cloud.open(requests=requests, timeout_s=STALL_S)
    yield Opened(ufs, opened.fingerprints, cloud.scheme, requests)
    proxy.set_rules()
    await ufs.close()


# -- answers that say no ---------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[int, dict[str, str], type[errors.AlluxioLikeError]]] = [
    (503, {"gs": "SlowDown", "az": "ServerBusy"}, errors.StoreThrottled),
    (429, {}, errors.StoreThrottled),
    (500, {"gs": "InternalError", "az": "InternalError"}, errors.StoreUnavailable),
    (502, {}, errors.StoreUnavailable),
    (403, {"gs": "AccessDenied", "az": "AuthenticationFailed"}, errors.StoreDenied),
    (401, {"gs": "AuthenticationRequired", "az": "NoAuthenticationInformation"}, errors.StoreDenied),
    (404, {"gs": "NoSuchBucket", "az": "ContainerNotFound"}, errors.StoreMissing),
    (404, {"gs": "NoSuchKey", "az": "BlobNotFound"}, errors.Stale),
    (412, {"gs": "PreconditionFailed", "az": "ConditionNotMet"}, errors.Stale),
    (416, {"gs": "InvalidRange", "az": "InvalidRange"}, errors.StoreProtocol),
    (409, {"gs": "SomethingNew", "az": "SomethingNew"}, errors.StoreError),
    (400, {"gs": "UserProjectMissing", "az": "KeyBasedAuthenticationNotPermitted"}, errors.StoreDenied),
]


@pytest.mark.parametrize("path", ["whole", "odd key"])
@pytest.mark.parametrize(("status", "codes", "expected"), REFUSALS)
async def test_refusals_are_typed(
    opened: Opened, proxy: FaultProxy, path: str, status: int, codes: dict[str, str], expected: type[errors.AlluxioLikeError]
) -> None:
    proxy.set_rules({"op": "GET", "status": status, "code": codes.get(opened.scheme, "")})
    await opened.fail(path, expected)
    assert opened.requests == proxy.get_counts()
    assert opened.requests["GET"] <= 2


async def test_one_failure_is_repeated_once_and_counted(opened: Opened, proxy: FaultProxy) -> None:
    for rule in ({"status": 503}, {"status": 500}, {"drop": True}, {"set_headers": {"content-range": "bytes 5-9/10"}}):
        proxy.reset_log()
        opened.requests.clear()
        proxy.set_rules({"op": "GET", "times": 1, **rule})
        assert await opened.read("chunked") == DATA
        assert opened.requests == proxy.get_counts() == {"GET": 2}


# -- answers that are wrong ------------------------------------------------------------------------------------------------------

WRONG: dict[str, dict[str, Any]] = {
    "short": {"short_by": 1000},
    "shorter": {"short_by": 150_000},
    "range": {"set_headers": {"content-range": f"bytes 100-{SIZE - 1}/{SIZE}"}},
    "total": {"set_headers": {"content-range": f"bytes 0-{SIZE - 1}/{SIZE + 1}"}},
    "no range": {"set_headers": {"content-range": ""}},
    "identity": {"set_headers": {"etag": '"0x8D00000000000"', "x-goog-generation": "17"}},
    "status": {"set_status": 200},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", WRONG.values(), ids=WRONG)
async def test_wrong_answers_are_refused(opened: Opened, proxy: FaultProxy, path: str, rule: dict[str, Any]) -> None:
    proxy.set_rules({"op": "GET", **rule})
    await opened.fail(path, errors.StoreProtocol)
    proxy.set_rules()
    assert await opened.read(path) == DATA[: PATHS[path][1]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("after", [0, 65_536, 150_000])
async def test_a_body_that_is_cut(opened: Opened, proxy: FaultProxy, path: str, after: int) -> None:
    proxy.set_rules({"op": "GET", "cut_after_bytes": after})
    await opened.fail(path, errors.StoreUnavailable)


@pytest.mark.parametrize("path", PATHS)
async def test_a_closed_connection(opened: Opened, proxy: FaultProxy, path: str) -> None:
    proxy.set_rules({"op": "GET", "drop": True})
    await opened.fail(path, errors.StoreUnavailable)


async def test_what_was_stored_compressed_comes_as_it_is(cloud: Cloud, opened: Opened) -> None:
    """GCS unpacks gzip for those who do not say that they take it, and then sends other bytes than were listed."""
    if not isinstance(cloud.server, GsServer):
        pytest.skip("Azure does not")
    import gzip

    data = gzip.compress(b"text " * 10_000)
    for key in ("packed", "odd//packed"):
        blob = cloud.server.get_bucket(cloud.bucket).blob(key)
        blob.content_encoding = "gzip"
        blob.upload_from_string(data, retry=None)
        fingerprint = (await opened.ufs.stat(key)).fingerprint
        assert fingerprint is not None and fingerprint.size == len(data)
        assert b"".join([bytes(chunk) async for chunk in opened.ufs.read(key, fingerprint, 0, len(data))]) == data
        assert b"".join([bytes(chunk) async for chunk in opened.ufs.read(key, fingerprint, 5, 20)]) == data[5:25]
        cloud.server.delete(cloud.bucket, key)


# -- silence ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["chunked", "odd key"])
@pytest.mark.parametrize("where", [{}, {"stall_after_bytes": 0}, {"stall_after_bytes": 100_000}], ids=["head", "body", "later"])
async def test_a_store_that_falls_silent(hasty: Opened, proxy: FaultProxy, path: str, where: dict[str, Any]) -> None:
    proxy.set_rules({"op": "GET", "stall_s": 60, **where})
    await hasty.fail(path, errors.StoreUnavailable)
    assert hasty.requests == {"GET": 1}


async def test_a_cancelled_read_ends_at_once(opened: Opened, proxy: FaultProxy) -> None:
    proxy.set_rules({"op": "GET", "stall_s": 60, "stall_after_bytes": 100_000})
    for path in PATHS:
        task = asyncio.create_task(opened.read(path))
        async with asyncio.timeout(60):
            while not any(entry.sent_bytes == 100_000 for entry in proxy.get_log("GET")):
                await asyncio.sleep(0.01)
        start_s = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start_s < 20
        proxy.reset_log()
    proxy.set_rules()
    assert await opened.read("chunked") == DATA


async def test_reads_stop_when_their_reader_does(opened: Opened, proxy: FaultProxy) -> None:
    proxy.set_limits(bytes_per_s=8 << 20)
    async with aclosing(opened.ufs.read("plain", opened.fingerprints["plain"], 0, SIZE)) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
    async with asyncio.timeout(60):
        while (entry := proxy.get_log("GET")[0]).seconds == 0:
            await asyncio.sleep(0.01)
    assert entry.sent_bytes < SIZE


# -- lists and heads -------------------------------------------------------------------------------------------------------------


def make_reason(status: int, reason: str) -> dict[str, Any]:
    """An error as Google's JSON API has it."""
    return {"set_status": status, "replace_body": f'{{"error": {{"code": {status}, "errors": [{{"reason": "{reason}"}}]}}}}'}


LISTS: list[tuple[str, dict[str, Any], type[errors.AlluxioLikeError]]] = [
    ("both", {"status": 503}, errors.StoreThrottled),
    ("both", {"status": 500}, errors.StoreUnavailable),
    ("both", {"status": 404, "code": ""}, errors.StoreMissing),
    ("both", {"drop": True}, errors.StoreUnavailable),
    ("both", {"stall_s": 60}, errors.StoreUnavailable),
    ("both", {"cut_after_bytes": 100}, errors.StoreUnavailable),
    ("both", {"replace_body": "<html>hello</html>"}, errors.StoreProtocol),
    ("both", {"short_by": 20}, errors.StoreProtocol),
    ("gs", {"replace_body": '{"items": [{"name": "x"}]}'}, errors.StoreProtocol),
    ("gs", {"replace_body": '{"items": 7}'}, errors.StoreProtocol),
    ("gs", {"replace_body": "[]"}, errors.StoreProtocol),
    ("gs", make_reason(403, "userProjectMissing"), errors.StoreDenied),
    ("gs", make_reason(403, "rateLimitExceeded"), errors.StoreThrottled),
    ("gs", make_reason(404, "notFound"), errors.StoreMissing),
    ("gs", make_reason(401, "authError"), errors.StoreDenied),
    ("az", {"status": 404, "code": "ContainerNotFound"}, errors.StoreMissing),
    ("az", {"status": 403, "code": "AuthorizationPermissionMismatch"}, errors.StoreDenied),
    ("az", {"replace_body": "<EnumerationResults><Blobs><Blob/></Blobs></EnumerationResults>"}, errors.StoreProtocol),
]


@pytest.mark.parametrize(("scheme", "rule", "expected"), LISTS)
async def test_listings_that_fail(
    opened: Opened, hasty: Opened, proxy: FaultProxy, scheme: str, rule: dict[str, Any], expected: type[errors.AlluxioLikeError]
) -> None:
    asked = hasty if "stall_s" in rule else opened
    if scheme not in {"both", opened.scheme}:
        pytest.skip(f"for {scheme}")
    proxy.set_rules({"op": "LIST", **rule})
    start_s = time.monotonic()
    with pytest.raises(errors.AlluxioLikeError) as caught:
        await asked.ufs.list_page("")
    assert type(caught.value) is expected, repr(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start_s < PATIENCE_S
    assert asked.requests == proxy.get_counts() == {"LIST": 1}


def make_listing(scheme: str, names: list[str], goes_on: bool) -> str:
    if scheme == "gs":
        items = [{"name": name, "generation": "1", "size": "1", "updated": "2026-01-01T00:00:00Z"} for name in names]
        return json.dumps({"items": items, **({"nextPageToken": "eA=="} if goes_on else {})})
    blobs = "".join(
        f"<Blob><Name>{name}</Name><Properties><Etag>1</Etag><Content-Length>1</Content-Length></Properties></Blob>"
        for name in names
    )
    return f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{'x' if goes_on else ''}</NextMarker></EnumerationResults>"


async def test_a_listing_out_of_order_is_refused(opened: Opened, proxy: FaultProxy) -> None:
    first, second = make_listing(opened.scheme, ["c", "d"], True), make_listing(opened.scheme, ["a", "e"], False)
    proxy.set_rules({"op": "LIST", "times": 1, "replace_body": first}, {"op": "LIST", "replace_body": second})
    page = await opened.ufs.list_page("")
    assert [entry.name for entry in page.entries] == ["c", "d"]
    with pytest.raises(errors.StoreProtocol):
        await opened.ufs.list_page("", page.token)
    if opened.scheme == "gs":
        return
    # Azure has several orders: once seen, the directory is listed whole and sorted here.
    proxy.set_rules({"op": "LIST", "times": 1, "replace_body": first}, {"op": "LIST", "replace_body": second})
    names = []
    token = None
    while True:
        page = await opened.ufs.list_page("", token, max_entries=3)
        names += [entry.name for entry in page.entries]
        token = page.token
        if token is None:
            break
    assert names == ["a", "c", "d", "e"]


async def test_heads_that_fail(opened: Opened, proxy: FaultProxy) -> None:
    for status, expected in [
        (503, errors.StoreThrottled),
        (403, errors.StoreDenied),
        (404, errors.NotFound),
        (500, errors.StoreUnavailable),
    ]:
        proxy.set_rules({"op": "HEAD", "status": status, "code": ""})
        with pytest.raises(errors.AlluxioLikeError) as caught:
            await opened.ufs.stat("plain")
        assert type(caught.value) is expected


# -- what only these stores have -------------------------------------------------------------------------------------------------


async def test_an_archived_blob_is_shown_and_refused(az_server: AzServer, az_container: str) -> None:
    az_server.put(az_container, "k", b"12345")
    az_server.put(az_container, "hot", b"12345")
    az_server.call("PUT", f"{az_container}/k", "comp=tier", headers={"x-ms-access-tier": "Archive"})
    ufs = open_whole(az_server, az_container)
    found = {entry.name: entry for entry in (await ufs.list_page("")).entries}
    assert (found["k"].archived, found["hot"].archived) == (True, False)
    assert ((await ufs.stat("k")).archived, (await ufs.stat("hot")).archived) == (True, False)
    fingerprint = found["k"].fingerprint
    assert fingerprint is not None
    with pytest.raises(errors.StoreArchived, match="rehydrated"):
        async for _ in ufs.read("k", fingerprint, 0, 5):
            pass
    await ufs.close()


async def test_markers_of_directories_are_no_files(az_server: AzServer, az_container: str) -> None:
    """HDFS clients mark a directory by a blob without a slash, which would hide it."""
    az_server.put(az_container, "d", b"", {"x-ms-meta-hdi_isfolder": "true"})
    az_server.put(az_container, "empty", b"", {"x-ms-meta-hdi_isfolder": "true"})
    az_server.put(az_container, "d/x", b"1")
    ufs = open_whole(az_server, az_container)
    assert [(entry.name, entry.kind) for entry in (await ufs.list_page("")).entries] == [("d", Kind.DIRECTORY)]
    with pytest.raises(errors.NotFound):
        await ufs.stat("d")
    await ufs.close()


def open_whole(server: GsServer | AzServer, bucket: str) -> WritableUfs:
    public, secret = split_secrets(server.scheme, server.options)
    uri = f"{server.scheme}://{bucket}"
    return get_writable(open_ufs(uri, public, secrets=secret, on_request=lambda _op: None, io_timeout_s=60))


async def test_kept_versions_are_read_on(gs_server: GsServer) -> None:
    """On a bucket that keeps versions what was replaced is still there, under its generation."""
    name = gs_server.make_bucket(keeps_versions=True)
    gs_server.put(name, "k", b"first")
    ufs = open_whole(gs_server, name)
    assert isinstance(ufs, VersionedUfs)
    assert await ufs.keeps_versions()
    first = (await ufs.stat("k")).fingerprint
    gs_server.put(name, "k", b"other")
    second = (await ufs.stat("k")).fingerprint
    assert first is not None and second is not None and first != second
    for fingerprint, data in [(first, b"first"), (second, b"other")]:
        assert b"".join([bytes(chunk) async for chunk in ufs.read("k", fingerprint, 0, 5)]) == data
        assert b"".join([bytes(chunk) async for chunk in ufs.read_kept("k", fingerprint, 0, 5)]) == data
    assert [entry.fingerprint for entry in (await ufs.list_page("")).entries] == [second]
    gs_server.delete(name, "k")
    assert b"".join([bytes(chunk) async for chunk in ufs.read_kept("k", second, 0, 5)]) == b"other"
    await ufs.close()


async def test_a_bucket_that_keeps_no_versions_says_so(gs_server: GsServer, gs_bucket: str) -> None:
    ufs = open_whole(gs_server, gs_bucket)
    assert isinstance(ufs, VersionedUfs)
    assert not await ufs.keeps_versions()
    gs_server.put(gs_bucket, "k", b"first")
    first = (await ufs.stat("k")).fingerprint
    assert first is not None
    gs_server.put(gs_bucket, "k", b"other")
    with pytest.raises(errors.Stale):
        _ = [chunk async for chunk in ufs.read_kept("k", first, 0, 5)]
    await ufs.close()


async def test_more_parts_than_one_request_takes(gs_server: GsServer, gs_bucket: str) -> None:
    """Google composes 32 at once; more in two steps."""
    ufs = open_whole(gs_server, gs_bucket)
    options = WriteOptions("0" * 32)
    upload = await ufs.begin_upload("k", options)
    with make_source(DATA[:7000]) as source:
        sources = [Source(source.fd, source.offset + start, 100) for start in range(0, 7000, 100)]
        parts = [await ufs.upload_part(upload, number, one, 0) for number, one in enumerate(sources, start=1)]
    assert (await ufs.list_page("")).entries == ()
    assert await ufs.list_parts(upload) == parts
    entry = await ufs.finish_upload(upload, parts, options, expected=Expected(None))
    assert gs_server.get(gs_bucket, "k") == DATA[:7000]
    assert entry.fingerprint is not None and entry.fingerprint.size == 7000
    assert gs_server.list_keys(gs_bucket) == ["k"]
    await ufs.close()


async def test_a_part_replaced_by_others_is_not_put_in(gs_server: GsServer, gs_bucket: str) -> None:
    ufs = open_whole(gs_server, gs_bucket)
    options = WriteOptions("0" * 32)
    upload = await ufs.begin_upload("k", options)
    with make_source(b"right") as source:
        part = await ufs.upload_part(upload, 1, source, 0)
    (name,) = [key for key in gs_server.list_keys(gs_bucket) if "part-" in key]
    gs_server.put(gs_bucket, name, b"wrong")
    with pytest.raises(errors.NotFound):
        await ufs.finish_upload(upload, [part], options)
    await ufs.abort_upload(upload)
    assert gs_server.list_keys(gs_bucket) == []
    await ufs.close()


async def test_what_an_abort_left_is_found(gs_server: GsServer, gs_bucket: str) -> None:
    ufs = open_whole(gs_server, gs_bucket)
    upload = await ufs.begin_upload("a/k", WriteOptions("0" * 32))
    with make_source(b"12345") as source:
        await ufs.upload_part(upload, 1, source, 0)
    (record,) = [key for key in gs_server.list_keys(gs_bucket) if key.endswith("begun")]
    gs_server.delete(gs_bucket, record)  # as an abort that was cut short
    assert await ufs.list_uploads("a/") == []
    (left,) = await ufs.list_uploads("")
    assert (left.key, left.upload_id) == ("", upload.upload_id)
    await ufs.abort_upload(left)
    assert gs_server.list_keys(gs_bucket) == []
    await ufs.close()


# -- writes that fail ------------------------------------------------------------------------------------------------------------


async def test_a_write_whose_answer_is_lost(cloud: Cloud, opened: Opened, hasty: Opened, proxy: FaultProxy) -> None:
    for number, rule in enumerate([{"drop_answer": True}, {"stall_s": 60}, {"drop": True}]):
        options = WriteOptions(f"{number:032}")
        proxy.set_rules({"op": "PUT", **rule})
        with make_source(b"12345") as source, pytest.raises(errors.StoreUnavailable):
            await get_writable((hasty if "stall_s" in rule else opened).ufs).put("lost", source, options)
        proxy.set_rules()
        written = await get_writable(opened.ufs).lookup_written("lost", options.token)
        assert (written is not None) == ("drop" not in rule)
    assert cloud.server.get(cloud.bucket, "lost") == b"12345"
    cloud.server.delete(cloud.bucket, "lost")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"status": 503}, errors.StoreThrottled),
        ({"status": 429}, errors.StoreThrottled),
        ({"status": 500}, errors.StoreUnavailable),
        ({"status": 403, "code": ""}, errors.StoreDenied),
        ({"status": 412, "code": ""}, errors.Conflict),
    ],
)
async def test_writes_that_are_refused(
    opened: Opened, proxy: FaultProxy, rule: dict[str, Any], expected: type[errors.AlluxioLikeError]
) -> None:
    proxy.set_rules({"op": "PUT", **rule})
    with make_source(b"12345") as source, pytest.raises(errors.AlluxioLikeError) as caught:
        await get_writable(opened.ufs).put("refused", source, WriteOptions("0" * 32))
    assert type(caught.value) is expected, repr(caught.value)
    assert opened.requests == proxy.get_counts() == {"PUT": 1}
    with pytest.raises(errors.NotFound):
        await opened.ufs.stat("refused")


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
    assert time.monotonic() - start_s < PATIENCE_S


async def test_wrong_bucket(cloud: Cloud) -> None:
    await check(cloud.open(cloud.server.endpoint, bucket="no-such-bucket"), errors.StoreMissing, "there is no such")


async def test_wrong_endpoint(cloud: Cloud) -> None:
    (port,) = find_ports(1)
    await check(cloud.open(f"http://127.0.0.1:{port}", timeout_s=STALL_S), errors.StoreUnavailable, f"127.0.0.1:{port}")
    await check(cloud.open("http://no-such-host.invalid", timeout_s=STALL_S), errors.StoreUnavailable, "no-such-host.invalid")
    ufs = cloud.open(cloud.server.endpoint.replace("http:", "https:"), timeout_s=STALL_S)
    await check(ufs, errors.StoreUnavailable, "ca_file")


async def test_wrong_credentials(cloud: Cloud, proxy: FaultProxy) -> None:
    if isinstance(cloud.server, AzServer):
        wrong = AZ_KEY.replace("Eby8", "Aaaa")
        # (the service itself says AuthenticationFailed)
        await check(cloud.open(account_key=wrong), errors.StoreDenied, "these credentials")
        await check(cloud.open(account="other"), errors.StoreMissing, "no such container")
        await check(cloud.open(anonymous="true"), errors.StoreDenied, "these credentials")
    else:
        proxy.set_rules({"op": "LIST", **make_reason(401, "authError")})
        await check(cloud.open(), errors.StoreDenied, "not valid, or have expired")


async def test_credentials_replaced_in_their_file(cloud: Cloud, tmp_path: Path) -> None:
    if not isinstance(cloud.server, AzServer):
        pytest.skip("the server takes any token")
    file = tmp_path / "key"
    file.write_text(AZ_KEY.replace("Eby8", "Aaaa"))
    ufs = cloud.open(account_key=f"file:{file}", timeout_s=3)
    with pytest.raises(errors.StoreDenied):
        await ufs.list_page("")
    file.write_text(AZ_KEY)
    async with asyncio.timeout(120):
        while True:
            try:
                assert len((await ufs.list_page("")).entries) == 2
                break
            except (errors.StoreDenied, errors.StoreUnavailable):
                await asyncio.sleep(0.05)
    await ufs.close()


async def test_a_store_that_comes_back(cloud: Cloud) -> None:
    """A mount whose first calls failed works once the store does."""
    (port,) = find_ports(1)
    ufs = cloud.open(f"http://127.0.0.1:{port}")
    with pytest.raises(errors.StoreUnavailable):
        await ufs.list_page("")
    with FaultProxy(cloud.server.endpoint, port=port, style=cloud.scheme):
        assert [entry.name for entry in (await ufs.list_page("")).entries] == ["odd", "plain"]
    await ufs.close()


async def test_other_ways_in(cloud: Cloud, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of credentials that the servers here can judge reads and lists without obstore failing over."""
    server = cloud.server
    if isinstance(server, AzServer):
        endpoint = f"{proxy.endpoint}/devstoreaccount1"
        text = f"AccountName=devstoreaccount1;AccountKey={AZ_KEY};BlobEndpoint={endpoint}"
        ways = [{"sas_token": "?" + server.signature, "endpoint": proxy.endpoint, "account": "devstoreaccount1"}]
        ways += [{"connection_string": text}, {}]
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        ways += [{"account_key": AZ_KEY, "endpoint": proxy.endpoint, "account": "devstoreaccount1"}]
    else:
        ways = [{"anonymous": "true", "endpoint": proxy.endpoint}, {"access_token": "t", "endpoint": proxy.endpoint}]
    # What obstore would take from the environment by itself must not matter.
    others = {"AZURE_STORAGE_TOKEN": "x", "AZURE_STORAGE_SAS_KEY": "sv=1&sig=x", "AZURE_STORAGE_USE_EMULATOR": "true"}
    others |= {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1", "AZURE_SKIP_SIGNATURE": "true"}
    others |= {"GOOGLE_BASE_URL": "http://127.0.0.1:1", "GOOGLE_BEARER_TOKEN": "x", "GOOGLE_SKIP_SIGNATURE": "true"}
    for name, text in others.items():
        monkeypatch.setenv(name, text)
    for way in ways:
        public, secret = split_secrets(cloud.scheme, way)
        requests: Counter[str] = Counter()
        count = partial(_count, requests)
        ufs = open_ufs(f"{cloud.scheme}://{cloud.bucket}", public, secrets=secret, on_request=count, io_timeout_s=60)
        (_, entry) = (await ufs.list_page("")).entries
        assert entry.fingerprint is not None
        assert [bytes(chunk) async for chunk in ufs.read("plain", entry.fingerprint, 0, 5)] == [DATA[:5]]
        assert requests == {"LIST": 1, "GET": 1}
        await ufs.close()


def _count(requests: Counter[str], op: str) -> None:
    requests[op] += 1
