"""Who a mount of S3 is: keys in files that change, roles, web identities, credentials that run out; and buckets of others."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs, split_secrets
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server

KEYS = ("plain", "odd//key")
"""One for each of the two libraries that read."""
DATA = b"0123456789"


@asynccontextmanager
async def open_as(server: S3Server, bucket: str, **options: str) -> AsyncIterator[Ufs]:
    public, secret = split_secrets("s3", {"endpoint": server.endpoint, "region": server.region, "timeout_s": "1", **options})
    ufs = open_ufs(f"s3://{bucket}", public, secrets=secret, on_request=lambda op: None, io_timeout_s=20)
    try:
        yield ufs
    finally:
        await ufs.close()


async def read_both(ufs: Ufs, fingerprint: Fingerprint) -> None:
    for key in KEYS:
        assert b"".join([bytes(chunk) async for chunk in ufs.read(key, fingerprint, 0, 10)]) == DATA


@pytest.fixture
async def content(s3_server: S3Server, s3_bucket: str) -> Fingerprint:
    """Under all of KEYS."""
    for key in KEYS:
        etag = s3_server.put(s3_bucket, key, DATA)
    return Fingerprint(etag.strip('"'), len(DATA))


@contextmanager
def serve(answer: Callable[[str, dict[str, str]], tuple[int, str]]) -> Iterator[str]:
    """An HTTP server on loopback: `answer` gets the path and the form, and gives status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            self._reply({name: values[0] for name, values in parse_qs(body).items()})

        def _reply(self, form: dict[str, str]) -> None:
            status, text = answer(self.path, form)
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join(60)
        server.server_close()


# -- roles ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def role_arn(s3_server: S3Server) -> str:
    assert s3_server.cluster is not None
    return s3_server.cluster.make_role("reader", "test")


def assume(server: S3Server, role_arn: str) -> dict[str, Any]:
    """A session of the role, from the real STS."""
    sts = boto3.client(
        "sts",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
    )
    try:
        given: dict[str, Any] = {**sts.assume_role(RoleArn=role_arn, RoleSessionName="test")["Credentials"]}
    finally:
        sts.close()
    return given


async def test_a_role_is_assumed(s3_server: S3Server, s3_bucket: str, content: Fingerprint, role_arn: str) -> None:
    async with open_as(s3_server, s3_bucket, **s3_server.secrets, role_arn=role_arn, external_id="me") as ufs:
        await ufs.check()
        await read_both(ufs, content)


async def test_a_role_that_one_may_not_assume(s3_server: S3Server, s3_bucket: str, role_arn: str) -> None:
    async with open_as(s3_server, s3_bucket, **s3_server.secrets, role_arn=f"{role_arn}-not") as ufs:
        with pytest.raises(errors.StoreError) as caught:
            await ufs.check()
        assert s3_server.secret_key not in str(caught.value)


async def test_a_web_identity_whose_token_is_replaced(
    s3_server: S3Server, s3_bucket: str, content: Fingerprint, role_arn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STS is ours (radosgw's asks an identity provider over TLS); the sessions that it gives are radosgw's own."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    given = assume(s3_server, role_arn)
    token = tmp_path / "token"
    token.write_text("first")
    good = ["first"]
    asked: list[str] = []

    def answer(_path: str, form: dict[str, str]) -> tuple[int, str]:
        asked.append(form["WebIdentityToken"])
        if form["Action"] != "AssumeRoleWithWebIdentity" or form["WebIdentityToken"] not in good:
            return 400, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>x</Message></Error></ErrorResponse>"
        soon = (datetime.now(UTC) + timedelta(minutes=2)).isoformat()
        return 200, (
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{given['AccessKeyId']}</AccessKeyId><SecretAccessKey>{given['SecretAccessKey']}</SecretAccessKey>"
            f"<SessionToken>{given['SessionToken']}</SessionToken><Expiration>{soon}</Expiration></Credentials>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )

    with serve(answer) as endpoint:
        options = {"role_arn": role_arn, "web_identity_token_file": str(token), "sts_endpoint": endpoint}
        async with open_as(s3_server, s3_bucket, **options) as ufs:
            await read_both(ufs, content)
            good[:] = ["second"]
            token.write_text("second")
            await read_both(ufs, content)
            assert asked[0] == "first" and asked[-1] == "second"
        good[:] = []
        async with open_as(s3_server, s3_bucket, **options) as ufs:
            with pytest.raises(errors.StoreDenied, match="token"):
                await ufs.check()
        token.unlink()
        async with open_as(s3_server, s3_bucket, **options) as ufs:
            with pytest.raises(errors.ConfigError, match="web_identity_token_file"):
                await ufs.check()


# -- credentials that run out -----------------------------------------------------------------------------------------------


async def test_credentials_that_run_out_are_renewed_during_reads(
    s3_server: S3Server, s3_bucket: str, content: Fingerprint, role_arn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service as of a container: what it gives is asked for again when it says so, not before, and without a failed read."""
    first, second = assume(s3_server, role_arn), assume(s3_server, role_arn)
    start_s = time.monotonic()
    # obstore renews what has less than five minutes left.
    lasts = timedelta(minutes=5, seconds=2)
    asked: list[float] = []

    def answer(_path: str, _form: dict[str, str]) -> tuple[int, str]:
        asked.append(time.monotonic() - start_s)
        given = first if asked[-1] < 2 else second
        return 200, json.dumps(
            {
                "AccessKeyId": given["AccessKeyId"],
                "SecretAccessKey": given["SecretAccessKey"],
                "Token": given["SessionToken"],
                "Expiration": (datetime.now(UTC) + lasts).isoformat(),
            }
        )

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with serve(answer) as endpoint:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{endpoint}/credentials")
        async with open_as(s3_server, s3_bucket) as ufs:
            reads = 0
            # Until it was asked anew, and some more with what it gave then.
            while time.monotonic() - start_s < 5 or reads < 8 or not any(moment > 2 for moment in asked):
                assert time.monotonic() - start_s < 120
                await asyncio.gather(*[read_both(ufs, content) for _ in range(4)])
                reads += 4


async def test_keys_in_files_are_replaced_while_one_reads(
    s3_server: S3Server, s3_bucket: str, content: Fingerprint, tmp_path: Path
) -> None:
    cluster = s3_server.cluster
    assert cluster is not None
    # Two keys of one user, as in a rotation.
    names = {name: (f"rotated{name}", f"secret-of-{name}") for name in ("first", "second")}
    cluster.make_user("rotating", *names["first"])
    s3_server.client.put_bucket_acl(
        Bucket=s3_bucket,
        AccessControlPolicy={
            "Owner": {"ID": "test"},
            "Grants": [
                {"Grantee": {"Type": "CanonicalUser", "ID": user}, "Permission": "FULL_CONTROL"} for user in ("test", "rotating")
            ],
        },
    )
    grants = {"GrantRead": "id=rotating", "GrantFullControl": "id=test"}
    for key in KEYS:
        s3_server.client.put_object_acl(Bucket=s3_bucket, Key=key, **grants)  # type: ignore[arg-type]

    def write(name: str) -> None:
        for file, text in zip(("id", "key"), names[name], strict=True):
            new = tmp_path / "new"
            new.write_text(text + "\n")
            new.replace(tmp_path / file)

    write("first")
    options = {"access_key": f"file:{tmp_path}/id", "secret_key": f"file:{tmp_path}/key"}
    async with open_as(s3_server, s3_bucket, **options) as ufs:
        await read_both(ufs, content)
        cluster.add_key("rotating", *names["second"])
        write("second")
        cluster.remove_key(names["first"][0])
        deadline_s = time.monotonic() + 60
        while True:
            try:
                await read_both(ufs, content)
                break
            except errors.StoreDenied:
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.1)
        assert "secret-of" not in f"{ufs!r} {vars(ufs)!r}"


# -- others' buckets --------------------------------------------------------------------------------------------------------


async def test_a_public_bucket(s3_server: S3Server, s3_bucket: str, content: Fingerprint) -> None:
    s3_server.client.put_bucket_acl(Bucket=s3_bucket, ACL="public-read")
    for key in KEYS:
        s3_server.client.put_object_acl(Bucket=s3_bucket, Key=key, ACL="public-read")
    async with open_as(s3_server, s3_bucket, anonymous="true") as ufs:
        await ufs.check()
        assert [entry.name for entry in (await ufs.list_page("")).entries] == ["odd", "plain"]
        await read_both(ufs, content)


async def test_a_bucket_whose_readers_pay(
    s3_server: S3Server, s3_bucket: str, content: Fingerprint, fault_proxy: FaultProxy
) -> None:
    """radosgw lets all pass; what is asked for is seen at the proxy."""
    server = S3Server(fault_proxy.endpoint, s3_server.access_key, s3_server.secret_key)
    async with open_as(server, s3_bucket, **s3_server.secrets, requester_pays="true") as ufs:
        await ufs.check()
        await ufs.stat("plain")
        await read_both(ufs, content)
    assert {entry.payer for entry in fault_proxy.get_log()} == {"requester"}
    fault_proxy.reset_log()
    async with open_as(server, s3_bucket, **s3_server.secrets) as ufs:
        await ufs.check()
    assert {entry.payer for entry in fault_proxy.get_log()} == {""}


async def test_the_bucket_in_the_host_name(
    s3_server: S3Server, s3_bucket: str, content: Fingerprint, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names below localhost lead nowhere here: a proxy takes the requests, and radosgw knows the bucket by its name."""
    assert s3_server.cluster is not None
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, fault_proxy.endpoint)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    port = s3_server.cluster.rgw_port
    server = S3Server(f"http://localhost:{port}", s3_server.access_key, s3_server.secret_key)
    async with open_as(server, s3_bucket, **s3_server.secrets, addressing="virtual") as ufs:
        await ufs.check()
        assert (await ufs.stat("plain")).fingerprint == content
        await read_both(ufs, content)
    assert {entry.host for entry in fault_proxy.get_log()} == {f"{s3_bucket}.localhost:{port}"}


# -- versions ---------------------------------------------------------------------------------------------------------------


async def test_a_bucket_that_keeps_versions(s3_server: S3Server) -> None:
    """What is current is listed and read; a version id is never part of a fingerprint."""
    bucket = s3_server.make_bucket()
    client = s3_server.client
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    try:
        for data in (b"older", b"newer"):
            s3_server.put(bucket, "k", data)
        s3_server.put(bucket, "gone", b"x")
        s3_server.delete(bucket, "gone")
        s3_server.put(bucket, "back", b"x")
        s3_server.delete(bucket, "back")
        s3_server.put(bucket, "back", b"again")
        async with open_as(s3_server, bucket, **s3_server.secrets) as ufs:
            page = await ufs.list_page("")
            assert [entry.name for entry in page.entries] == ["back", "k"]
            for entry, data in zip(page.entries, (b"again", b"newer"), strict=True):
                fingerprint = entry.fingerprint
                assert fingerprint is not None
                assert b"".join([bytes(c) async for c in ufs.read(entry.name, fingerprint, 0, 5)]) == data
                assert (await ufs.stat(entry.name)).fingerprint == fingerprint
            with pytest.raises(errors.NotFound):
                await ufs.stat("gone")
            # The same bytes once more are the same content, though another version.
            before = (await ufs.stat("k")).fingerprint
            s3_server.put(bucket, "k", b"newer")
            assert (await ufs.stat("k")).fingerprint == before
            s3_server.delete(bucket, "k")
            assert before is not None
            with pytest.raises(errors.Stale):
                _ = [chunk async for chunk in ufs.read("k", before, 0, 5)]
    finally:
        versions = client.list_object_versions(Bucket=bucket)
        for found in [*versions.get("Versions", []), *versions.get("DeleteMarkers", [])]:
            client.delete_object(Bucket=bucket, Key=found["Key"], VersionId=found["VersionId"])
        client.delete_bucket(Bucket=bucket)
