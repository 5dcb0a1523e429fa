"""Writing to S3 where something goes wrong, through the fault proxy, and what is S3's alone.

Nothing is lost, doubled, or believed without reason.
"""

import asyncio
import os
import random
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.s3_conditions import Conditions, Step
from alluxio_like.ufs.s3_names import WritableS3Ufs
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteOptions
from tests.conformance.stores import make_source
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server, start_s3_server

STALL_S = 1.0
PATIENCE_S = 40.0
PART_BYTES = 5 << 20
DATA = random.Random(11).randbytes(2 * PART_BYTES + 1000)
ABSENT = Expected(None)


def open_at(server: S3Server, bucket: str, **options: str) -> WritableS3Ufs:
    public = {"endpoint": server.endpoint, "timeout_s": f"{PATIENCE_S}", "region": server.region, **options}
    io_timeout_s = 3 * float(public["timeout_s"])
    ufs = open_ufs(f"s3://{bucket}/p", public, secrets=server.secrets, on_request=lambda op: None, io_timeout_s=io_timeout_s)
    assert isinstance(ufs, WritableS3Ufs)
    return ufs


@pytest.fixture
async def ufs(s3_via_proxy: S3Server, s3_bucket: str) -> AsyncIterator[WritableS3Ufs]:
    opened = open_at(s3_via_proxy, s3_bucket)
    # What is found out below, without asking each time.
    opened._conditions = Conditions(Step(True, True, is_quoted=False), Step())
    yield opened
    await opened.close()


def make_options(**metadata: str) -> WriteOptions:
    return WriteOptions(secrets.token_hex(16), metadata)


async def put(
    ufs: WritableS3Ufs, key: str, data: bytes, options: WriteOptions | None = None, expected: Expected | None = None
) -> Fingerprint:
    with make_source(data) as source:
        entry = await ufs.put(key, source, options or make_options(), expected=expected)
    assert entry.fingerprint is not None
    return entry.fingerprint


async def send(ufs: WritableS3Ufs, upload: Upload, data: bytes) -> list[Part]:
    with make_source(data) as source:
        return [
            await ufs.upload_part(
                upload, number, Source(source.fd, source.offset + start, min(PART_BYTES, len(data) - start)), start
            )
            for number, start in enumerate(range(0, len(data), PART_BYTES), start=1)
        ]


def list_keys(server: S3Server, bucket: str) -> list[str]:
    return [found["Key"] for found in server.client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def count_uploads(server: S3Server, bucket: str) -> int:
    return len(server.client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


# -- lost answers ---------------------------------------------------------------------------------------------------------


async def test_a_put_whose_answer_was_lost_is_known_by_its_token(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_server: S3Server, s3_bucket: str
) -> None:
    options = make_options()
    fault_proxy.set_rules({"op": "PUT", "key": "p/k", "drop_answer": True, "times": 1})
    with pytest.raises(errors.StoreUnavailable):
        await put(ufs, "k", b"ours", options, ABSENT)
    assert s3_server.get(s3_bucket, "p/k") == b"ours"
    # Done once more it is refused, as by a foreign change; the token tells.
    with pytest.raises(errors.Conflict):
        await put(ufs, "k", b"ours", options, ABSENT)
    entry = await ufs.lookup_written("k", options.token)
    assert entry is not None and entry.fingerprint == (await ufs.stat("k")).fingerprint
    # What really is a foreign change is told apart.
    s3_server.put(s3_bucket, "p/k", b"theirs")
    assert await ufs.lookup_written("k", options.token) is None


async def test_a_finish_whose_answer_was_lost_is_known_by_its_token(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_server: S3Server, s3_bucket: str
) -> None:
    options = make_options()
    upload = await ufs.begin_upload("k", options)
    parts = await send(ufs, upload, DATA)
    fault_proxy.set_rules({"op": "POST", "query": "uploadId", "drop_answer": True, "times": 1})
    with pytest.raises(errors.StoreUnavailable):
        await ufs.finish_upload(upload, parts, options, expected=ABSENT)
    with pytest.raises((errors.Conflict, errors.NotFound)):
        await ufs.finish_upload(upload, parts, options, expected=ABSENT)
    assert await ufs.lookup_written("k", options.token) is not None
    assert s3_server.get(s3_bucket, "p/k") == DATA
    assert count_uploads(s3_server, s3_bucket) == 0


async def test_a_part_whose_answer_was_lost_is_listed(ufs: WritableS3Ufs, fault_proxy: FaultProxy) -> None:
    upload = await ufs.begin_upload("k", make_options())
    fault_proxy.set_rules({"op": "PUT", "query": "partNumber=2", "drop_answer": True})
    with pytest.raises(errors.StoreUnavailable):
        await send(ufs, upload, DATA)
    assert [(part.number, part.length) for part in await ufs.list_parts(upload)] == [(1, PART_BYTES), (2, PART_BYTES)]
    await ufs.abort_upload(upload)


# -- what was sent is not what arrived -------------------------------------------------------------------------------------


async def test_a_body_that_changes_on_its_way_is_refused(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_server: S3Server, s3_bucket: str
) -> None:
    upload = await ufs.begin_upload("k", make_options())
    fault_proxy.set_rules({"op": "PUT", "flip_request_byte": 100_000})
    with pytest.raises(errors.StoreProtocol):
        await put(ufs, "k", DATA[:200_000])
    with pytest.raises(errors.StoreProtocol):
        await send(ufs, upload, DATA[:200_000])
    assert list_keys(s3_server, s3_bucket) == []
    assert await ufs.list_parts(upload) == []
    await ufs.abort_upload(upload)


async def test_over_tls_the_body_has_its_md5_with_it(s3_server: S3Server, s3_bucket: str) -> None:
    assert s3_server.cluster is not None
    tls = S3Server(s3_server.cluster.tls_endpoint, s3_server.access_key, s3_server.secret_key)
    ufs = open_at(tls, s3_bucket, ca_file=str(s3_server.cluster.ca_file))
    try:
        client = (await ufs._connect()).client
        seen: list[str] = []
        client.meta.events.register("before-send.s3", lambda request, **_: seen.append(request.headers["Content-MD5"].decode()))
        fingerprint = await put(ufs, "k", DATA)
        # An MD5 in both, once in base64: radosgw's ETag of a content sent in one request.
        assert seen == [b64encode(bytes.fromhex(fingerprint.token)).decode()]
        assert s3_server.get(s3_bucket, "p/k") == DATA
        client.meta.events.register("before-call.s3.PutObject", _spoil_md5)
        with pytest.raises(errors.StoreProtocol):
            await put(ufs, "k", b"other")
        assert s3_server.get(s3_bucket, "p/k") == DATA
    finally:
        await ufs.close()


def _spoil_md5(params: dict[str, Any], **_others: object) -> None:
    params["headers"]["Content-MD5"] = "AAAAAAAAAAAAAAAAAAAAAA=="


# -- refusals ----------------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[dict[str, Any], type[errors.AlluxioLikeError]]] = [
    ({"status": 503}, errors.StoreThrottled),
    ({"status": 500}, errors.StoreUnavailable),
    ({"drop": True}, errors.StoreUnavailable),
    ({"status": 403, "code": "AccessDenied"}, errors.StoreDenied),
    ({"status": 403, "code": "QuotaExceeded"}, errors.NoSpace),
    ({"status": 404, "code": "NoSuchBucket"}, errors.StoreMissing),
    ({"status": 409, "code": "ConditionalRequestConflict"}, errors.StoreUnavailable),
    ({"status": 412, "code": "PreconditionFailed"}, errors.Conflict),
    ({"status": 400, "code": "EntityTooLarge"}, errors.InvalidArgument),
]


@pytest.mark.parametrize(("rule", "expected"), REFUSALS, ids=[f"{r.get('status')}-{r.get('code', '')}" for r, _ in REFUSALS])
async def test_refusals_are_typed(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, rule: dict[str, Any], expected: type[errors.AlluxioLikeError]
) -> None:
    fault_proxy.set_rules({"op": "PUT", **rule})
    with pytest.raises(errors.AlluxioLikeError) as caught:
        await put(ufs, "k", b"1", expected=ABSENT)
    assert type(caught.value) is expected, repr(caught.value)
    assert "testsecret" not in str(caught.value)
    assert fault_proxy.get_counts()["PUT"] == 1


async def test_a_store_that_stops_answering_is_given_up_in_time(
    s3_via_proxy: S3Server, s3_bucket: str, fault_proxy: FaultProxy
) -> None:
    hasty = open_at(s3_via_proxy, s3_bucket, timeout_s=f"{STALL_S}")
    fault_proxy.set_rules({"op": "PUT", "stall_s": 2 * PATIENCE_S})
    start_s = time.monotonic()
    with pytest.raises(errors.StoreUnavailable):
        await put(hasty, "k", DATA[:1000])
    assert time.monotonic() - start_s < PATIENCE_S
    fault_proxy.set_rules()
    await hasty.close()


async def test_an_error_within_an_answer_of_200_is_one(ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_bucket: str) -> None:
    body = "<?xml version='1.0'?><Error><Code>InternalError</Code><Message>no</Message></Error>"
    source = await put(ufs, "from", b"1")
    options = make_options()
    upload = await ufs.begin_upload("k", options)
    parts = await send(ufs, upload, b"1")
    wrong = {"replace_body": body}
    fault_proxy.set_rules({"op": "PUT", "key": "to", **wrong}, {"op": "POST", "query": "uploadId", **wrong})
    with pytest.raises(errors.StoreUnavailable):
        await ufs.copy("from", source, "to", options)
    with pytest.raises((errors.StoreUnavailable, errors.NotFound)):
        await ufs.finish_upload(upload, parts, options)
    await ufs.abort_upload(upload)


async def test_of_many_those_that_failed_are_told(ufs: WritableS3Ufs, fault_proxy: FaultProxy) -> None:
    body = (
        "<?xml version='1.0'?><DeleteResult><Error><Key>p/a&amp;b</Key><Code>AccessDenied</Code></Error>"
        "<Error><Key>p/gone</Key><Code>NoSuchKey</Code></Error><Error><Key>p/c</Key><Code>SlowDown</Code></Error></DeleteResult>"
    )
    fault_proxy.set_rules({"op": "POST_BUCKET", "replace_body": body})
    failed = await ufs.delete_many(["a&b", "gone", "c", "d"])
    assert {key: type(error) for key, error in failed.items()} == {"a&b": errors.StoreDenied, "c": errors.StoreThrottled}
    fault_proxy.set_rules({"op": "POST_BUCKET", "status": 503})
    assert {key: type(error) for key, error in (await ufs.delete_many(["a", "b"])).items()} == {
        "a": errors.StoreThrottled,
        "b": errors.StoreThrottled,
    }


# -- conditions ----------------------------------------------------------------------------------------------------------------


async def test_what_radosgw_minds_is_found_out_once(s3_via_proxy: S3Server, s3_bucket: str, fault_proxy: FaultProxy) -> None:
    ufs = open_at(s3_via_proxy, s3_bucket)
    try:
        found = await asyncio.gather(*[ufs.get_capabilities() for _ in range(3)])
        assert found[0].puts_conditionally
        assert found[0].finishes_conditionally == minds_on_finish(s3_via_proxy, s3_bucket)
        assert len([entry for entry in fault_proxy.get_log() if "probe" in entry.key]) <= 15
        fault_proxy.reset_log()
        await ufs.get_capabilities()
        await put(ufs, "k", b"1", expected=ABSENT)
        assert fault_proxy.get_counts() == {"PUT": 1}
        assert list_keys(s3_via_proxy, s3_bucket) == ["p/k"]
        assert count_uploads(s3_via_proxy, s3_bucket) == 0
    finally:
        await ufs.close()


def minds_on_finish(server: S3Server, bucket: str) -> bool:
    """radosgw 16, of Debian 12, does not."""
    place: Any = {"Bucket": bucket, "Key": "other"}
    server.client.put_object(**place, Body=b"1")
    upload_id = server.client.create_multipart_upload(**place)["UploadId"]
    part = server.client.upload_part(**place, UploadId=upload_id, PartNumber=1, Body=b"2")
    parts: Any = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    try:
        server.client.complete_multipart_upload(**place, UploadId=upload_id, MultipartUpload=parts, IfNoneMatch="*")
    except ClientError:
        server.client.abort_multipart_upload(**place, UploadId=upload_id)
        return True
    finally:
        server.client.delete_object(**place)
    return False


async def test_a_probe_that_fails_is_made_again(s3_via_proxy: S3Server, s3_bucket: str, fault_proxy: FaultProxy) -> None:
    ufs = open_at(s3_via_proxy, s3_bucket)
    try:
        fault_proxy.set_rules({"op": "PUT", "status": 403, "code": "AccessDenied", "times": 1})
        with pytest.raises(errors.StoreDenied):
            await put(ufs, "k", b"1", expected=ABSENT)
        assert await put(ufs, "k", b"1", expected=ABSENT)
    finally:
        await ufs.close()


LEFT = "p/.alluxio-like-probe-00112233445566ff"
NEARLY = [
    "p/.alluxio-like-probe-",
    "p/.alluxio-like-probe-00112233445566FF",
    f"{LEFT}0",
    f"{LEFT}/below",
    "p/x.alluxio-like-probe-00112233445566ff",
]


async def test_what_a_killed_probe_left_is_not_shown(s3_server: S3Server, s3_bucket: str) -> None:
    """That of a mount further down is not either; names that are nearly ours are somebody's."""
    for key in [LEFT, LEFT.replace("p/", "p/d/e/"), *NEARLY, "p/d/e/f"]:
        s3_server.put(s3_bucket, key, b"?")
    ufs = open_at(s3_server, s3_bucket)
    try:
        for key in (LEFT, LEFT.replace("p/", "p/d/e/")):
            with pytest.raises(errors.NotFound):
                await ufs.stat(key.removeprefix("p/"))
            with pytest.raises(errors.InvalidArgument):
                await put(ufs, key.removeprefix("p/"), b"mine")
            assert ufs.refuse_name(key.rpartition("/")[2], at_root=False)
        shown = {f"p/{entry.name}" for entry in (await ufs.list_flat("")).entries}
        assert shown == {*NEARLY, "p/d/e/f"}
        assert {entry.name for entry in (await ufs.list_page("")).entries if entry.kind is Kind.FILE} == {
            key.removeprefix("p/") for key in NEARLY if not key.endswith("/below")
        }
        assert [entry.name for entry in (await ufs.list_page("d/e/")).entries] == ["f"]
        seen, token, pages = [], None, 0  # also where a page has nothing else
        while pages == 0 or token is not None:
            page = await ufs.list_page("d/e/", token, max_entries=1)
            seen, token, pages = [*seen, *page.entries], page.token, pages + 1
        assert ([entry.name for entry in seen], pages) == (["f"], 2)
        for key in NEARLY:
            assert (await ufs.stat(key.removeprefix("p/"))).kind is Kind.FILE
    finally:
        await ufs.close()


async def test_what_a_killed_probe_left_is_removed_by_a_later_one(
    s3_via_proxy: S3Server, s3_bucket: str, fault_proxy: FaultProxy, s3_server: S3Server
) -> None:
    """Once it is old by the store's clock: until then it may be of somebody who is trying just now."""
    other_mount = LEFT.replace("p/", "p/d/")
    for key in (LEFT, other_mount, *NEARLY):
        s3_server.put(s3_bucket, key, b"?")
    for key in (LEFT, "p/usual"):
        s3_server.client.create_multipart_upload(Bucket=s3_bucket, Key=key)

    async def probe(minutes: int) -> list[str]:
        """The keys afterwards, where the store's clock is that much on."""
        now = s3_server.client.list_objects_v2(Bucket=s3_bucket)["ResponseMetadata"]["HTTPHeaders"]["date"]
        later = format_datetime(parsedate_to_datetime(now) + timedelta(minutes=minutes), usegmt=True)
        fault_proxy.set_rules({"op": "LIST", "set_headers": {"date": later}})
        ufs = open_at(s3_via_proxy, s3_bucket)
        try:
            assert (await ufs.get_capabilities()).puts_conditionally
        finally:
            await ufs.close()
        return list_keys(s3_server, s3_bucket)

    assert await probe(8) == sorted([LEFT, other_mount, *NEARLY])
    assert count_uploads(s3_server, s3_bucket) == 2
    assert await probe(12) == sorted([other_mount, *NEARLY])
    assert count_uploads(s3_server, s3_bucket) == 1
    fault_proxy.set_rules({"op": "LIST", "status": 403, "code": "AccessDenied"})
    ufs = open_at(s3_via_proxy, s3_bucket)
    try:
        assert (await ufs.get_capabilities()).puts_conditionally  # whoever may not list can write all the same
    finally:
        await ufs.close()


async def test_a_server_that_minds_nothing_is_asked_before(
    s3_via_proxy: S3Server, s3_bucket: str, fault_proxy: FaultProxy
) -> None:
    ufs = open_at(s3_via_proxy, s3_bucket, conditional_writes="no")
    try:
        can = await ufs.get_capabilities()
        assert (can.puts_conditionally, can.finishes_conditionally) == (False, False)
        first = await put(ufs, "k", b"1", expected=ABSENT)
        with pytest.raises(errors.Conflict):
            await put(ufs, "k", b"2", expected=ABSENT)
        await put(ufs, "k", b"3", expected=Expected(first))
        counts = fault_proxy.get_counts()
        assert (counts["HEAD"], counts["PUT"]) == (3, 2)
    finally:
        await ufs.close()


# -- copies ----------------------------------------------------------------------------------------------------------------------


async def test_a_large_copy_goes_in_parts(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_server: S3Server, s3_bucket: str
) -> None:
    ufs.copy_limit_bytes, ufs.copy_part_bytes = 2 * PART_BYTES, PART_BYTES
    s3_server.client.put_object(Bucket=s3_bucket, Key="p/from", Body=DATA, ContentType="text/x-kept")
    source = (await ufs.stat("from")).fingerprint
    assert source is not None
    options = make_options(mode="33188")
    entry = await ufs.copy("from", source, "to", options, expected=ABSENT)
    assert s3_server.get(s3_bucket, "p/to") == DATA
    assert entry.fingerprint == (await ufs.stat("to")).fingerprint
    head = s3_server.client.head_object(Bucket=s3_bucket, Key="p/to")
    assert (head["ContentType"], head["Metadata"]["mode"]) == ("text/x-kept", "33188")
    assert await ufs.lookup_written("to", options.token) is not None
    assert len([e for e in fault_proxy.get_log("PUT") if "partNumber" in e.query and e.key == "p/to"]) == 3


async def test_a_large_copy_whose_source_changes_comes_to_nothing(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_server: S3Server, s3_bucket: str
) -> None:
    ufs.copy_limit_bytes, ufs.copy_part_bytes = PART_BYTES, PART_BYTES
    source = await put(ufs, "from", DATA)
    fault_proxy.set_rules({"op": "PUT", "query": "partNumber=3", "stall_s": 100})
    copying = asyncio.create_task(ufs.copy("from", source, "to", make_options()))
    deadline_s = time.monotonic() + 60
    while not any("partNumber=3" in entry.query for entry in fault_proxy.get_log("PUT")):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    s3_server.put(s3_bucket, "p/from", bytes(len(DATA)))
    fault_proxy.set_rules()
    with pytest.raises(errors.Stale):
        await copying
    assert list_keys(s3_server, s3_bucket) == ["p/from"]
    assert count_uploads(s3_server, s3_bucket) == 0


async def test_a_large_copy_that_fails_or_is_cancelled_leaves_no_parts(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_server: S3Server, s3_bucket: str
) -> None:
    ufs.copy_limit_bytes, ufs.copy_part_bytes = PART_BYTES, PART_BYTES
    source = await put(ufs, "from", DATA)
    fault_proxy.set_rules({"op": "PUT", "query": "partNumber=2", "status": 503})
    with pytest.raises(errors.StoreThrottled):
        await ufs.copy("from", source, "to", make_options())
    fault_proxy.set_rules({"op": "PUT", "query": "partNumber=2", "stall_s": 100})
    fault_proxy.reset_log()
    copying = asyncio.create_task(ufs.copy("from", source, "to", make_options()))
    deadline_s = time.monotonic() + 60
    while not any("partNumber=2" in entry.query for entry in fault_proxy.get_log("PUT")):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert list_keys(s3_server, s3_bucket) == ["p/from"]
    fault_proxy.set_rules()
    assert count_uploads(s3_server, s3_bucket) == 0


async def test_a_copy_that_the_server_did_not_check_is_undone(
    ufs: WritableS3Ufs, fault_proxy: FaultProxy, s3_server: S3Server, s3_bucket: str
) -> None:
    """As of a server that does not mind the condition on the source: what it copied is another content."""
    source = await put(ufs, "from", b"meant")
    client: Any = (await ufs._connect()).client
    client.meta.events.register("before-sign.s3.CopyObject", _drop_conditions)
    fault_proxy.set_rules({"op": "PUT", "key": "p/to", "latency_s": 3})
    copying = asyncio.create_task(ufs.copy("from", source, "to", make_options()))
    deadline_s = time.monotonic() + 60
    while not any(entry.key == "p/to" for entry in fault_proxy.get_log("PUT")):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)
    s3_server.put(s3_bucket, "p/from", b"other")
    with pytest.raises(errors.Stale):
        await copying
    assert list_keys(s3_server, s3_bucket) == ["p/from"]


def _drop_conditions(request: Any, **_others: object) -> None:
    for name in ("x-amz-copy-if-match", "x-amz-copy-source-if-match"):
        del request.headers[name]


@pytest.mark.skipif(not os.environ.get("ALLUXIO_LIKE_TEST_SOAK"), reason="10 GiB of memory and minutes: make soak")
@pytest.mark.timeout(1800)
async def test_an_object_of_more_than_five_gigabytes() -> None:
    """Sparse here, not at the server: uploaded, read behind its fifth gigabyte, and copied at that size."""
    size = (5 << 30) + 12_345
    part_bytes = 256 << 20
    fd = os.memfd_create("sparse")
    with start_s3_server(size_bytes=12 << 30) as server:
        ufs = open_at(server, server.make_bucket(), timeout_s="60")
        try:
            os.ftruncate(fd, size)
            os.pwrite(fd, b"the end", size - 7)
            options = make_options()
            upload = await ufs.begin_upload("big", options)
            parts = []
            for number, start in enumerate(range(0, size, part_bytes), start=1):
                part = Source(fd, start, min(part_bytes, size - start))
                parts.append(await ufs.upload_part(upload, number, part, start))
            entry = await ufs.finish_upload(upload, parts, options, expected=ABSENT)
            assert entry.fingerprint is not None and entry.fingerprint.size == size
            with pytest.raises(errors.InvalidArgument):
                await ufs.put("too-big", Source(fd, 0, size), options)
            copied = await ufs.copy("big", entry.fingerprint, "copy", make_options(), expected=ABSENT)
            for key, fingerprint in (("big", entry.fingerprint), ("copy", copied.fingerprint)):
                assert fingerprint is not None
                assert (await ufs.stat(key)).fingerprint == fingerprint
                end = b"".join([bytes(chunk) async for chunk in ufs.read(key, fingerprint, size - 1000, 1000)])
                assert end == bytes(993) + b"the end"
        finally:
            os.close(fd)
            await ufs.close()
