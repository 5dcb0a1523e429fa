"""Objects of more than 5 GiB on Google and Azure, written, read and copied: where 32 bits and the limits of one request end.

S3's are in test_s3_writing.py. Copies of more than Azure copies in one request are made here with small ones, too.
"""

import os
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs import az_writing
from alluxio_like.ufs.open import open_ufs, split_secrets
from alluxio_like.ufs.writing import Expected, Source, WritableUfs, WriteOptions, get_writable
from tests.conformance.stores import make_source
from tests.servers.azurite_front import start_front
from tests.servers.clouds import start_azurite, start_gcs
from tests.servers.fixtures_clouds import AzServer, GsServer

SIZE = (5 << 30) + 12_345
PART_BYTES = 256 << 20
ABSENT = Expected(None)
SOAK = pytest.mark.skipif(
    not os.environ.get("ALLUXIO_LIKE_TEST_SOAK"), reason="16 GiB of memory, 11 of disk and minutes: make soak"
)


def make_options(**metadata: str) -> WriteOptions:
    return WriteOptions(secrets.token_hex(16), metadata)


def open_at(server: AzServer | GsServer) -> WritableUfs:
    public, secret = split_secrets(server.scheme, {**server.options, "timeout_s": "120"})
    uri = f"{server.scheme}://{server.make_bucket()}"
    return get_writable(open_ufs(uri, public, secrets=secret, on_request=lambda _op: None, io_timeout_s=360))


async def read(ufs: WritableUfs, key: str, fingerprint: Fingerprint, offset: int, length: int) -> bytes:
    return b"".join([bytes(chunk) async for chunk in ufs.read(key, fingerprint, offset, length)])


@contextmanager
def make_large() -> Iterator[tuple[int, dict[int, bytes]]]:
    """A descriptor of SIZE bytes, all zero but what stands across 4 GiB, across 5 GiB and at the end: offsets and texts."""
    texts = {(4 << 30) - 5: b"four giga bytes", (5 << 30) - 5: b"five giga bytes", SIZE - 7: b"the end"}
    fd = os.memfd_create("sparse")
    try:
        os.ftruncate(fd, SIZE)
        for offset, text in texts.items():
            os.pwrite(fd, text, offset)
        yield fd, texts
    finally:
        os.close(fd)


async def check_large(ufs: WritableUfs) -> None:
    """It is written, found, read and copied whole, and stays what it is when something else is expected of it."""
    with make_large() as (fd, texts):
        options = make_options()
        upload = await ufs.begin_upload("big", options)
        parts = []
        for number, start in enumerate(range(0, SIZE, PART_BYTES), start=1):
            part = Source(fd, start, min(PART_BYTES, SIZE - start))
            parts.append(await ufs.upload_part(upload, number, part, start))
        entry = await ufs.finish_upload(upload, parts, options, expected=ABSENT)
    assert entry.fingerprint is not None and entry.fingerprint.size == SIZE
    copied = await ufs.copy("big", entry.fingerprint, "copy", make_options(), expected=ABSENT)
    assert copied.fingerprint is not None and copied.fingerprint.size == SIZE
    listed = {entry.name: entry.fingerprint for entry in (await ufs.list_page("")).entries}
    assert listed == {"big": entry.fingerprint, "copy": copied.fingerprint}
    for key, fingerprint in (("big", entry.fingerprint), ("copy", copied.fingerprint)):
        assert (await ufs.stat(key)).fingerprint == fingerprint
        for offset, text in texts.items():
            assert await read(ufs, key, fingerprint, offset - 1000, 1000 + len(text)) == bytes(1000) + text
        four = await read(ufs, key, fingerprint, (4 << 30) - (4 << 20), 8 << 20)
        assert len(four) == 8 << 20 and four.strip(b"\0") == b"four giga bytes"
    with pytest.raises(errors.Stale):
        await read(ufs, "copy", entry.fingerprint, SIZE - 7, 7)
    with pytest.raises(errors.Stale):
        await ufs.copy("copy", entry.fingerprint, "other", make_options())
    with pytest.raises(errors.Conflict):
        await ufs.delete("copy", expected=Expected(entry.fingerprint))
    await ufs.delete("big", expected=Expected(entry.fingerprint))
    assert await read(ufs, "copy", copied.fingerprint, SIZE - 7, 7) == b"the end"


@SOAK
@pytest.mark.server
@pytest.mark.timeout(1800)
async def test_an_azure_blob_of_more_than_five_gigabytes(tmp_path: Path) -> None:
    with start_azurite(tmp_path) as endpoint:
        server = AzServer(endpoint)
        with start_front(server) as front:
            ufs = open_at(front)
            try:
                await check_large(ufs)
            finally:
                await ufs.close()
                front.close()


@SOAK
@pytest.mark.server
@pytest.mark.timeout(1800)
async def test_an_object_of_more_than_five_gigabytes_on_google(tmp_path: Path) -> None:
    with start_gcs(tmp_path) as endpoint:
        server = GsServer(endpoint)
        ufs = open_at(server)
        try:
            await check_large(ufs)
        finally:
            await ufs.close()


async def test_azure_copies_in_blocks(az_server: AzServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than one request copies, with bounds that are small."""
    monkeypatch.setattr(az_writing, "_COPY_AT_ONCE_BYTES", 50_000)
    monkeypatch.setattr(az_writing, "_COPY_BLOCK_BYTES", 70_000)
    data = random.Random(5).randbytes(300_001)
    with start_front(az_server) as front:
        ufs = open_at(front)
        try:
            with make_source(data) as source:
                entry = await ufs.put("d/from", source, make_options())
            assert entry.fingerprint is not None
            options = make_options(colour="red")
            copied = await ufs.copy("d/from", entry.fingerprint, "to", options, expected=ABSENT)
            assert copied.fingerprint is not None
            assert await read(ufs, "to", copied.fingerprint, 0, len(data)) == data
            assert (await ufs.read_metadata("to"))["colour"] == "red"
            with pytest.raises(errors.Conflict):
                await ufs.copy("d/from", entry.fingerprint, "to", make_options(), expected=ABSENT)
            with make_source(data[::-1]) as source:
                await ufs.put("d/from", source, make_options())
            with pytest.raises(errors.Stale):
                await ufs.copy("d/from", entry.fingerprint, "to", make_options())
            await ufs.delete("d/from")
            with pytest.raises(errors.Stale):
                await ufs.copy("d/from", entry.fingerprint, "to", make_options())
            assert await read(ufs, "to", copied.fingerprint, 0, len(data)) == data
            assert await ufs.list_uploads("") == []
        finally:
            await ufs.close()
            front.close()
