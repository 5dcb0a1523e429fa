"""Parts of the real node that can be looked at without one."""

import json
import socket
import struct
import tarfile
from pathlib import Path

import pytest

from tests.kubernetes.real.images import write_archive
from tests.kubernetes.real.names import answer


class KnownServices:
    """One name."""

    def lookup(self, name: str) -> str | None:
        return {"al-master.storage.svc.cluster.local": "10.96.0.7"}.get(name.lower())


def ask(name: str, kind: int) -> tuple[int, list[str]]:
    """(response code, addresses) of a query."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack("!HHHHHH", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    reply = answer(question, KnownServices())
    number, flags, questions, answers = struct.unpack("!HHHH", reply[:8])
    assert (number, questions, bool(flags & 0x8000)) == (77, 1, True)
    assert reply[12 : len(question)] == question[12:]
    return flags & 15, [socket.inet_ntoa(reply[-4:])] if answers else []


@pytest.mark.parametrize(
    ("name", "kind", "wanted"),
    [
        ("AL-master.storage.svc.cluster.local", 1, (0, ["10.96.0.7"])),
        ("al-master.storage.svc.cluster.local", 28, (0, [])),
        ("al-master.storage.svc.storage.svc.cluster.local", 1, (3, [])),
    ],
)
def test_names_of_services_are_answered(name: str, kind: int, wanted: tuple[int, list[str]]) -> None:
    assert ask(name, kind) == wanted


def test_an_image_has_its_layers_and_no_devices(tmp_path: Path) -> None:
    layers = [tmp_path / name for name in ("base", "ours")]
    for layer in layers:
        (layer / "etc").mkdir(parents=True)
        (layer / "etc" / layer.name).write_text(layer.name)
    write_archive(tmp_path / "image.tar", "example/image:1", layers, {"User": "10001"})
    with tarfile.open(tmp_path / "image.tar") as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))
        config = json.load(archive.extractfile(manifest["Config"]) or pytest.fail("no config"))
        names = []
        for layer in manifest["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as inner:
                names.append([member.name for member in inner if member.isfile()])
    assert names == [["./etc/base"], ["./etc/ours"]]
    assert (manifest["RepoTags"], config["config"]["User"], len(config["rootfs"]["diff_ids"])) == (
        ["example/image:1"],
        "10001",
        2,
    )
