"""Certificates of the chart: those that it makes are good for what its services do with them, those that it asks for would be."""

import base64
import subprocess
import time
import tomllib
from collections.abc import Iterator
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
from tests.kubernetes.apiserver import ApiServer, start_apiserver
from tests.kubernetes.rendering import VALUES, HelmError, find, render


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
            await MasterStub(channel, timeout_s=60).stat_fs()
        await channel.close()
        channel = open_channel(server.address, tls=tls)
        assert (await MasterStub(channel, timeout_s=60).stat_fs()).files == 0
        await channel.close()
        stranger = (
            Authority(tmp_path, "other").issue("stranger").model_copy(update={"ca": tls.ca, "server_name": tls.server_name})
        )
        channel = open_channel(server.address, tls=stranger)
        with pytest.raises(errors.Untrusted, match="is to be signed by the authority"):
            await MasterStub(channel, timeout_s=60).stat_fs()
        await channel.close()
        # Clients have certificates by which no service is known; the authority is kept, so that there can be more of them.
        made = {one["metadata"]["namespace"]: one for one in objects if one["metadata"]["name"].endswith("-client-tls")}
        assert set(made) == {"team-a", "team-b"}
        (tmp_path / "team-a").mkdir()
        (tmp_path / "client").mkdir()
        for name, data in find(objects, "Secret", "-tls-ca")["data"].items():
            (tmp_path / "client" / name).write_bytes(base64.b64decode(data))
        team = write_secret(made["team-a"], tmp_path / "team-a", get_tls(objects))
        for client in (team, sign(tmp_path / "client")):
            channel = open_channel(server.address, tls=client.model_copy(update={"server_name": tls.server_name}))
            assert (await MasterStub(channel, timeout_s=60).stat_fs()).files == 0
            await channel.close()
        assert tls.server_name not in show(team.certificate, "-ext", "subjectAltName", "-subject")
    finally:
        await server.stop(0)


def show(certificate: Path | None, *what: str) -> str:
    """What openssl says of a certificate."""
    command = ["openssl", "x509", "-noout", "-in", str(certificate), *what]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def sign(place: Path) -> TlsConfig:
    """A client's certificate, as docs/operations.md makes one."""
    for words in (
        "req -newkey rsa:2048 -nodes -subj /CN=notebook -keyout client.key -out client.csr",
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out client.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=place, check=True, capture_output=True)
    return TlsConfig(certificate=place / "client.pem", key=place / "client.key", ca=place / "ca.crt")


@pytest.fixture
def cluster() -> Iterator[ApiServer]:
    with start_apiserver() as running:
        yield running


SERVICES = ("storage", "al-alluxio-like-tls")
AUTHORITY = ("storage", "al-alluxio-like-tls-ca")
CLIENT = ("team-a", "al-alluxio-like-client-tls")


def upgrade(cluster: ApiServer, *settings: str) -> dict[tuple[str, str], Any]:
    """Install, or upgrade, with lookups answered by what is there; the content of the Secrets with certificates."""
    objects = render(settings=["tls.clientNamespaces[0]=team-a", *settings], cluster=cluster.url)
    cluster.apply(objects, "storage")
    return {key: one["data"] for key, one in cluster.secrets.items() if "tls.crt" in one["data"] or "ca.key" in one["data"]}


def test_upgrades_keep_certificates(cluster: ApiServer) -> None:
    first = upgrade(cluster)
    assert set(first) == {SERVICES, AUTHORITY, CLIENT}
    assert upgrade(cluster, "logLevel=debug") == first


@pytest.mark.parametrize("secret", [SERVICES, CLIENT])
def test_an_upgrade_renews_what_is_half_over_by_the_same_authority(
    cluster: ApiServer, tmp_path: Path, secret: tuple[str, str]
) -> None:
    first = upgrade(cluster)
    annotations = cluster.secrets[secret]["metadata"]["annotations"]
    half_s = int(annotations["alluxio-like/renew-after"]) - time.time()
    assert half_s / 86400 == pytest.approx(3650 / 2, abs=1)
    annotations["alluxio-like/renew-after"] = str(int(time.time()) - 1)
    second = upgrade(cluster)
    assert {key for key in first if first[key] != second[key]} == {secret}
    assert first[secret]["ca.crt"] == second[secret]["ca.crt"]
    for name, data in second[secret].items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "tls.crt"]
    assert subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "tls.crt: OK\n"
    # The authority outlasts what is made in its first half.
    show(tmp_path / "ca.crt", "-checkend", str(7290 * 86400))
    assert upgrade(cluster) == second


def test_another_name_makes_another_certificate(cluster: ApiServer, tmp_path: Path) -> None:
    first = upgrade(cluster)
    second = upgrade(cluster, "tls.serverName=other.example")
    assert {key for key in first if first[key] != second[key]} == {SERVICES}
    (tmp_path / "made").write_bytes(base64.b64decode(second[SERVICES]["tls.crt"]))
    assert "DNS:other.example" in show(tmp_path / "made", "-ext", "subjectAltName")


def test_the_key_of_the_authority_may_be_kept_elsewhere(cluster: ApiServer) -> None:
    """Nothing new is made without it; what there is stays."""
    first = upgrade(cluster)
    kept = cluster.secrets.pop(AUTHORITY)
    second = upgrade(cluster)
    assert second == {key: data for key, data in first.items() if key != AUTHORITY}
    with pytest.raises(HelmError, match="put the authority's key back for this upgrade"):
        upgrade(cluster, "tls.serverName=other.example")
    cluster.secrets[AUTHORITY] = kept
    assert set(upgrade(cluster, "tls.serverName=other.example")) == set(first)


def test_a_new_authority_signs_everything_anew(cluster: ApiServer) -> None:
    first = upgrade(cluster)
    for key in (SERVICES, AUTHORITY):
        del cluster.secrets[key]
    second = upgrade(cluster)
    assert all(first[key]["ca.crt"] != second[key]["ca.crt"] for key in first)
    assert len({data["ca.crt"] for data in second.values()}) == 1


def test_tls_is_off_only_where_it_is_said() -> None:
    assert get_tls(render())
    objects = render(VALUES / "clear.yaml")
    (config,) = [one["data"]["config.toml"] for one in objects if "config.toml" in one.get("data", {})]
    assert tomllib.loads(config)["common"]["insecure"] is True
    assert not any(one["kind"] == "Secret" for one in objects)


def test_cert_manager_is_asked_for_what_services_need() -> None:
    objects = render(VALUES / "secure.yaml")
    spec = find(objects, "Certificate", "-like-tls")["spec"]
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
    client = find(objects, "Certificate", "-client-tls")
    assert client["metadata"]["namespace"] == "team-a"
    assert not set(client["spec"]["dnsNames"]) & set(spec["dnsNames"])
    assert "server auth" not in client["spec"]["usages"]


def test_given_certificates_are_left_alone() -> None:
    objects = render(VALUES / "full.yaml")
    assert not any(one["kind"] in {"Certificate", "Secret"} for one in objects)


def test_no_pod_has_the_authority() -> None:
    text = [str(one) for one in render(VALUES / "self-signed.yaml") if one["kind"] != "Secret"]
    assert not any("-tls-ca" in one for one in text)
