"""Certificates of the chart: those that it makes are good for what its services do with them, those that it asks for would be."""

import base64
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.config import TlsConfig
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_servicer import add_master_services
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.server import create_server
from tests.certificates import Authority
from tests.fakes_rpc import FakeMaster
from tests.kubernetes.rendering import VALUES, find, render


def get_tls(objects: list[dict[str, Any]]) -> dict[str, str]:
    """How services are told of their certificates."""
    config = next(one for one in objects if one["kind"] == "ConfigMap" and "config.toml" in one["data"])
    return dict(tomllib.loads(config["data"]["config.toml"])["common"]["tls"])


def write_secret(secret: dict[str, Any], place: Path, tls: dict[str, str]) -> TlsConfig:
    """The files that a pod is given, and the settings that its configuration has."""
    for name, data in secret["data"].items():
        (place / name).write_bytes(base64.b64decode(data))
    files = {name: place / Path(tls[name]).name for name in ("certificate", "key", "ca")}
    return TlsConfig(**files, server_name=tls["server_name"])


async def test_services_trust_each_other_by_what_the_chart_makes(tmp_path: Path) -> None:
    objects = render(VALUES / "self-signed.yaml")
    tls = write_secret(find(objects, "Secret", "-tls"), tmp_path, get_tls(objects))
    assert tls.server_name == "storage.example"
    # At an address that the certificate does not name, as a pod's is.
    server = create_server("127.0.0.2:0", tls=tls)
    master = FakeMaster()
    add_master_services(server.grpc_server, namespace=master, mounts=master, workers=master, cache=master)
    await server.start()
    try:
        channel = open_channel(server.address, tls=tls.model_copy(update={"server_name": ""}))
        with pytest.raises(errors.Untrusted, match=r"does not name 127\.0\.0\.2"):
            await MasterStub(channel, timeout_s=20).stat_fs()
        await channel.close()
        channel = open_channel(server.address, tls=tls)
        assert (await MasterStub(channel, timeout_s=20).stat_fs()).files == 0
        await channel.close()
        stranger = (
            Authority(tmp_path, "other").issue("stranger").model_copy(update={"ca": tls.ca, "server_name": tls.server_name})
        )
        channel = open_channel(server.address, tls=stranger)
        with pytest.raises(errors.Untrusted, match="is to be signed by the authority"):
            await MasterStub(channel, timeout_s=20).stat_fs()
        await channel.close()
        # The authority is kept, so that clients can have certificates too.
        (tmp_path / "client").mkdir()
        for name, data in find(objects, "Secret", "-tls-ca")["data"].items():
            (tmp_path / "client" / name).write_bytes(base64.b64decode(data))
        client = sign(tmp_path / "client")
        channel = open_channel(server.address, tls=client.model_copy(update={"server_name": tls.server_name}))
        assert (await MasterStub(channel, timeout_s=20).stat_fs()).files == 0
        await channel.close()
    finally:
        await server.stop(0)


def sign(place: Path) -> TlsConfig:
    """A client's certificate, as docs/operations.md makes one."""
    for words in (
        "req -newkey rsa:2048 -nodes -subj /CN=notebook -keyout client.key -out client.csr",
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out client.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=place, check=True, capture_output=True)
    return TlsConfig(certificate=place / "client.pem", key=place / "client.key", ca=place / "ca.crt")


def test_cert_manager_is_asked_for_what_services_need() -> None:
    objects = render(VALUES / "secure.yaml")
    certificate = find(objects, "Certificate")
    spec = certificate["spec"]
    assert get_tls(objects)["server_name"] in spec["dnsNames"]
    assert {"server auth", "client auth"} <= set(spec["usages"])
    assert spec["issuerRef"] == {"name": "storage", "kind": "ClusterIssuer"}
    wanted = {
        volume["secret"]["secretName"]
        for one in objects
        if one["kind"] in {"DaemonSet", "StatefulSet"}
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "tls"
    }
    assert wanted == {spec["secretName"]}
    assert not any(one["kind"] == "Secret" and one["metadata"]["name"].endswith("-tls") for one in objects)


def test_given_certificates_are_left_alone() -> None:
    objects = render(VALUES / "full.yaml")
    assert not any(one["kind"] in {"Certificate", "Secret"} for one in objects)


def test_no_pod_has_the_authority() -> None:
    text = [str(one) for one in render(VALUES / "self-signed.yaml") if one["kind"] != "Secret"]
    assert not any("-tls-ca" in one for one in text)
