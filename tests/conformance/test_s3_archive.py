"""Archived objects. radosgw has no archive: what S3 says of them comes from the fault proxy, as its documentation has it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.archive import ArchiveState, ArchiveStatus
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.s3_archive import make_status
from alluxio_like.ufs.s3_names import WritableS3Ufs
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server

REFUSED = {"op": "GET", "status": 403, "code": "InvalidObjectState"}
ONGOING = 'ongoing-request="true"'
RESTORED = 'ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00:00 GMT"'
UNTIL_NS = 1_892_505_600_000_000_000


@pytest.fixture
async def ufs(s3_via_proxy: S3Server, s3_bucket: str) -> AsyncIterator[WritableS3Ufs]:
    opened = open_ufs(
        f"s3://{s3_bucket}",
        s3_via_proxy.public_options,
        secrets=s3_via_proxy.secrets,
        on_request=lambda op: None,
        io_timeout_s=20,
    )
    assert isinstance(opened, WritableS3Ufs)
    yield opened
    await opened.close()


def make_rule(storage_class: str = "GLACIER", **headers: str) -> dict[str, Any]:
    return {"op": "HEAD", "set_headers": {"x-amz-storage-class": storage_class, **headers}}


@pytest.mark.parametrize("key", ["plain", "odd//key"])
async def test_a_read_says_how_to_ask(
    ufs: WritableS3Ufs, s3_server: S3Server, s3_bucket: str, fault_proxy: FaultProxy, key: str
) -> None:
    etag = s3_server.put(s3_bucket, key, b"0123456789")
    fault_proxy.set_rules(REFUSED, make_rule())
    with pytest.raises(errors.StoreArchived, match="fs restore"):
        _ = [chunk async for chunk in ufs.read(key, Fingerprint(etag.strip('"'), 10), 0, 10)]
    assert (await ufs.stat(key)).archived


async def test_listings_show_them(ufs: WritableS3Ufs, fault_proxy: FaultProxy) -> None:
    objects = "".join(
        f"<Contents><Key>{name}</Key><ETag>&quot;0&quot;</ETag><Size>1</Size><StorageClass>{name}</StorageClass></Contents>"
        for name in ("DEEP_ARCHIVE", "GLACIER", "GLACIER_IR", "STANDARD")
    )
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
    fault_proxy.set_rules({"op": "LIST", "replace_body": body})
    assert [(entry.name, entry.archived) for entry in (await ufs.list_page("")).entries] == [
        ("DEEP_ARCHIVE", True),
        ("GLACIER", True),
        ("GLACIER_IR", False),
        ("STANDARD", False),
    ]


async def test_it_is_asked_back_once(ufs: WritableS3Ufs, s3_server: S3Server, s3_bucket: str, fault_proxy: FaultProxy) -> None:
    s3_server.put(s3_bucket, "k", b"1")
    assert await ufs.get_archive_status("k") == ArchiveStatus(ArchiveState.ONLINE, "STANDARD")
    assert (await ufs.restore("k", 1, "")).state is ArchiveState.ONLINE
    restore = {"op": "POST", "query": "restore", "status": 202}
    fault_proxy.set_rules(restore, {**make_rule(), "times": 1}, make_rule(**{"x-amz-restore": ONGOING}))
    fault_proxy.reset_log()
    assert (await ufs.restore("k", 3, "bulk")).state is ArchiveState.RESTORING
    assert (await ufs.restore("k", 3, "bulk")).state is ArchiveState.RESTORING
    assert fault_proxy.get_counts()["POST"] == 1
    # Somebody else asked in between.
    fault_proxy.set_rules(
        {**restore, "status": 409, "code": "RestoreAlreadyInProgress"},
        {**make_rule(), "times": 1},
        make_rule(**{"x-amz-restore": ONGOING}),
    )
    assert (await ufs.restore("k", 3, "")).state is ArchiveState.RESTORING
    fault_proxy.set_rules(make_rule(**{"x-amz-restore": RESTORED}))
    assert await ufs.get_archive_status("k") == ArchiveStatus(ArchiveState.RESTORED, "GLACIER", UNTIL_NS)


async def test_what_cannot_be_asked_for(ufs: WritableS3Ufs, s3_server: S3Server, s3_bucket: str, fault_proxy: FaultProxy) -> None:
    s3_server.put(s3_bucket, "k", b"1")
    fault_proxy.set_rules(make_rule("DEEP_ARCHIVE"))
    for days, tier in [(0, ""), (1, "Fast")]:
        with pytest.raises(errors.InvalidArgument):
            await ufs.restore("k", days, tier)
    with pytest.raises(errors.NotFound):
        await ufs.restore("nothing", 1, "")
    # radosgw itself, which knows no such request.
    with pytest.raises(errors.AlluxioLikeError) as caught:
        await ufs.restore("k", 1, "")
    assert isinstance(caught.value, errors.Unsupported | errors.StoreError)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, ArchiveStatus(ArchiveState.ONLINE, "STANDARD")),
        ({"StorageClass": "GLACIER_IR"}, ArchiveStatus(ArchiveState.ONLINE, "GLACIER_IR")),
        ({"StorageClass": "INTELLIGENT_TIERING"}, ArchiveStatus(ArchiveState.ONLINE, "INTELLIGENT_TIERING")),
        (
            {"StorageClass": "INTELLIGENT_TIERING", "ArchiveStatus": "DEEP_ARCHIVE_ACCESS"},
            ArchiveStatus(ArchiveState.ARCHIVED, "INTELLIGENT_TIERING"),
        ),
        ({"StorageClass": "GLACIER"}, ArchiveStatus(ArchiveState.ARCHIVED, "GLACIER")),
        ({"StorageClass": "GLACIER", "Restore": ONGOING}, ArchiveStatus(ArchiveState.RESTORING, "GLACIER")),
        ({"StorageClass": "GLACIER", "Restore": RESTORED}, ArchiveStatus(ArchiveState.RESTORED, "GLACIER", UNTIL_NS)),
        (
            {"StorageClass": "GLACIER", "Restore": 'ongoing-request="false", expiry-date="soon"'},
            ArchiveStatus(ArchiveState.RESTORED, "GLACIER"),
        ),
    ],
)
def test_what_a_head_says(found: dict[str, str], expected: ArchiveStatus) -> None:
    assert make_status(found) == expected
