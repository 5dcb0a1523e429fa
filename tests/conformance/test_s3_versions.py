"""Older versions of objects on the real server: found by ETag and size, read in the same way as the newest."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs import s3_versions
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.s3_names import WritableS3Ufs
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server

KEYS = ["plain", "odd//key", "with space+plus%41", "größe/ü"]


@dataclass
class Place:
    """A prefix of a bucket, its store, and the requests that were made."""

    server: S3Server
    bucket: str
    ufs: WritableS3Ufs
    requests: Counter[str] = field(default_factory=Counter)

    def put(self, key: str, data: bytes) -> Fingerprint:
        return Fingerprint(self.server.put(self.bucket, f"p/{key}", data).strip('"'), len(data))

    def delete(self, key: str) -> None:
        self.server.delete(self.bucket, f"p/{key}")

    def set_versioning(self, status: str) -> None:
        self.server.client.put_bucket_versioning(
            Bucket=self.bucket,
            VersioningConfiguration={"Status": status},  # type: ignore[typeddict-item]
        )

    def purge(self, key: str) -> None:
        """Remove all versions of a key but the newest, as a rule of the bucket's life cycle would."""
        found = self.server.client.list_object_versions(Bucket=self.bucket, Prefix=f"p/{key}")
        for one in found["Versions"]:
            if not one["IsLatest"]:
                self.server.client.delete_object(Bucket=self.bucket, Key=one["Key"], VersionId=one["VersionId"])

    async def read(self, key: str, fingerprint: Fingerprint, offset: int = 0, length: int | None = None) -> bytes:
        length = fingerprint.size - offset if length is None else length
        return b"".join([bytes(chunk) async for chunk in self.ufs.read_kept(key, fingerprint, offset, length)])


@pytest.fixture
async def open_place(s3_server: S3Server, s3_bucket: str) -> AsyncIterator[Callable[[S3Server], Place]]:
    opened: list[WritableS3Ufs] = []

    def open_one(reached_by: S3Server) -> Place:
        requests: Counter[str] = Counter()
        ufs = open_ufs(
            f"s3://{s3_bucket}/p/",
            reached_by.public_options,
            secrets=reached_by.secrets,
            on_request=lambda op: requests.update([op]),
            io_timeout_s=20,
        )
        assert isinstance(ufs, WritableS3Ufs)
        opened.append(ufs)
        return Place(s3_server, s3_bucket, ufs, requests)

    yield open_one
    for ufs in opened:
        await ufs.close()


@pytest.fixture
def place(open_place: Callable[[S3Server], Place], s3_server: S3Server) -> Place:
    return open_place(s3_server)


@pytest.fixture
def via_proxy(open_place: Callable[[S3Server], Place], s3_via_proxy: S3Server) -> Place:
    return open_place(s3_via_proxy)


@pytest.mark.parametrize("key", KEYS)
async def test_each_version_is_read_until_it_is_removed(place: Place, key: str) -> None:
    place.set_versioning("Enabled")
    assert await place.ufs.keeps_versions()
    contents = [bytes([number]) * (10_000 + number) for number in range(3)]
    prints = []
    for data in contents:
        prints.append(place.put(key, data))
        # Its neighbours in the listing begin with the same key.
        place.put(f"{key}x", data)
        place.put(f"{key}/x", data)
    for gone in (False, True):
        for data, fingerprint in zip(contents, prints, strict=True):
            assert await place.read(key, fingerprint) == data
            assert await place.read(key, fingerprint, 4096, 100) == data[4096:4196]
        if not gone:
            place.delete(key)
    with pytest.raises(errors.Stale, match="no older version is this one"):
        await place.read(key, Fingerprint(prints[0].token, prints[1].size))
    again = place.put(key, b"made again")
    assert await place.read(key, again) == b"made again"
    assert await place.read(key, prints[1]) == contents[1]
    place.purge(key)
    with pytest.raises(errors.Stale, match="it was removed there"):
        await place.read(key, prints[1])
    assert await place.read(key, again) == b"made again"


async def test_a_version_is_looked_for_once(place: Place) -> None:
    place.set_versioning("Enabled")
    old, new = place.put("k", b"old" * 1000), place.put("k", b"new" * 1000)
    assert await place.read("k", new) == b"new" * 1000
    assert place.requests["LIST"] == 0
    parts = await asyncio.gather(*(place.read("k", old, 300 * part, 300) for part in range(10)))
    assert b"".join(parts) == b"old" * 1000
    assert place.requests["LIST"] == 1
    place.requests.clear()
    assert await place.read("k", old) == b"old" * 1000
    assert place.requests == {"GET": 1}
    # One that is there again under another version is found again.
    place.purge("k")
    assert place.put("k", b"old" * 1000) == old
    assert await place.read("k", old) == b"old" * 1000


async def test_many_versions_are_paged(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_versions, "_FIRST_PAGE", 3)
    monkeypatch.setattr(s3_versions, "_PAGE", 4)
    place.set_versioning("Enabled")
    first = place.put("k", b"0")
    for number in range(1, 12):
        place.put("k", b"%d" % number)
        if number == 6:
            place.delete("k")
    assert await place.read("k", first) == b"0"
    assert place.requests["LIST"] == 4
    place.requests.clear()
    with pytest.raises(errors.Stale):
        await place.read("k", Fingerprint("0" * 32, 1))
    assert place.requests["LIST"] == 4


async def test_a_key_that_xml_cannot_say(place: Place) -> None:
    place.set_versioning("Enabled")
    key, client = "ctl\x01x", place.server.client
    made = [client.put_object(Bucket=place.bucket, Key=f"p/{key}", Body=data) for data in (b"old", b"other")]
    try:
        assert await place.read(key, Fingerprint(made[0]["ETag"].strip('"'), 3)) == b"old"
    finally:  # a client that cannot list it cannot find it either
        for one in made:
            client.delete_object(Bucket=place.bucket, Key=f"p/{key}", VersionId=one["VersionId"])


async def test_large_uploads_in_parts(place: Place) -> None:
    place.set_versioning("Enabled")
    client = place.server.client
    upload = client.create_multipart_upload(Bucket=place.bucket, Key="p/k")["UploadId"]
    chunks = [b"a" * (5 << 20), b"b" * 100]
    parts = [
        client.upload_part(Bucket=place.bucket, Key="p/k", UploadId=upload, PartNumber=number, Body=chunk)["ETag"]
        for number, chunk in enumerate(chunks, start=1)
    ]
    client.complete_multipart_upload(
        Bucket=place.bucket,
        Key="p/k",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(parts, start=1)]},
    )
    old = (await place.ufs.stat("k")).fingerprint
    assert old is not None
    place.put("k", b"small")
    assert await place.read("k", old) == b"".join(chunks)


async def test_a_bucket_that_keeps_nothing_is_asked_once(place: Place) -> None:
    assert not await place.ufs.keeps_versions()
    old = place.put("k", b"old")
    place.put("k", b"other")
    place.requests.clear()
    for _ in range(3):
        with pytest.raises(errors.Stale, match=r"keeps no older versions.*versioning of the bucket"):
            await place.read("k", old)
    assert place.requests["LIST"] == 0
    assert place.requests["HEAD"] == 1


async def test_a_suspended_bucket_still_has_what_it_kept(place: Place) -> None:
    before = place.put("k", b"before")  # the version "null"
    place.set_versioning("Enabled")
    assert await place.ufs.keeps_versions()
    kept = place.put("k", b"kept")
    assert await place.read("k", before) == b"before"
    place.set_versioning("Suspended")
    assert not await place.ufs.keeps_versions()
    new = place.put("k", b"new")
    assert await place.read("k", kept) == b"kept"
    assert await place.read("k", new) == b"new"
    with pytest.raises(errors.Stale, match="no older version"):
        await place.read("k", before)


async def test_who_may_not_is_told_what_is_missing(place: Place, s3_server: S3Server) -> None:
    place.set_versioning("Enabled")
    old = place.put("k", b"old")
    place.put("k", b"other")
    assert s3_server.cluster is not None
    s3_server.cluster.make_user("versions-reader", "VERSIONSREADER", "versions-reader-secret")
    actions = ["s3:GetObject", "s3:ListBucket"]

    def allow() -> None:
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": ["arn:aws:iam:::user/versions-reader"]},
            "Action": actions,
            "Resource": [f"arn:aws:s3:::{place.bucket}", f"arn:aws:s3:::{place.bucket}/*"],
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        s3_server.client.put_bucket_policy(Bucket=place.bucket, Policy=policy)

    allow()
    ufs = open_ufs(
        f"s3://{place.bucket}/p/",
        s3_server.public_options,
        secrets={"access_key": "VERSIONSREADER", "secret_key": "versions-reader-secret"},
        on_request=lambda op: None,
        io_timeout_s=20,
    )
    assert isinstance(ufs, WritableS3Ufs)
    try:
        with pytest.raises(errors.StoreDenied):
            await ufs.keeps_versions()
        reader = Place(s3_server, place.bucket, ufs)
        with pytest.raises(errors.StoreDenied, match="s3:ListBucketVersions and s3:GetObjectVersion"):
            await reader.read("k", old)
        actions.append("s3:ListBucketVersions")
        allow()
        with pytest.raises(errors.StoreDenied, match="needs s3:GetObjectVersion"):
            await reader.read("k", old)
        actions.append("s3:GetObjectVersion")
        allow()
        assert await reader.read("k", old) == b"old"
    finally:
        await ufs.close()


async def test_an_answer_that_is_another_is_not_believed(via_proxy: Place, fault_proxy: FaultProxy) -> None:
    via_proxy.set_versioning("Enabled")
    old = via_proxy.put("k", b"old")
    via_proxy.put("k", b"other")
    assert await via_proxy.read("k", old) == b"old"
    fault_proxy.set_rules({"op": "GET", "set_headers": {"ETag": '"0"'}})
    with pytest.raises((errors.Stale, errors.StoreProtocol)):
        await via_proxy.read("k", old)
    fault_proxy.set_rules()
    assert await via_proxy.read("k", old) == b"old"


async def test_an_archived_version_says_which(via_proxy: Place, fault_proxy: FaultProxy) -> None:
    via_proxy.set_versioning("Enabled")
    old = via_proxy.put("k", b"old")
    via_proxy.put("k", b"other")
    fault_proxy.set_rules({"op": "GET", "query": "versionId", "status": 403, "code": "InvalidObjectState"})
    with pytest.raises(errors.StoreArchived, match=r"its version .* is in the store's archive"):
        await via_proxy.read("k", old)
