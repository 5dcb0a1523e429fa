"""Secrets that are named: read where they are used, and again when they change."""

import os
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.ufs.open import change_options, split_secrets
from alluxio_like.ufs.options import parse_options
from alluxio_like.ufs.references import Secrets, is_reference


def replace_file(path: Path, text: str) -> None:
    """As the kubelet does: another file under the name."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.mark.parametrize("text", ["env:NAME", "file:/run/secrets/x", "env:", "file:relative"])
def test_what_is_a_reference(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize("text", ["AKIA123", "", "s3cr:et/+=", "ENV:X", "@/file", "profile:x"])
def test_what_is_none(text: str) -> None:
    assert not is_reference(text)


def test_secrets_given_outright_pass_through() -> None:
    secrets = Secrets({"access_key": "AK", "secret_key": "SK"})
    assert (secrets.get("access_key"), secrets.get("secret_key"), secrets.get("session_token")) == ("AK", "SK", "")
    assert not secrets.may_change
    assert "SK" not in repr(secrets)


def test_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets({"secret_key": "env:TEST_SECRET_KEY"})
    with pytest.raises(errors.ConfigError, match="TEST_SECRET_KEY"):
        secrets.get("secret_key")
    monkeypatch.setenv("TEST_SECRET_KEY", "hush")
    assert secrets.get("secret_key") == "hush"


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    secrets = Secrets({"secret_key": f"file:{path}"})
    assert secrets.may_change
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        secrets.get("secret_key")
    path.write_text("first\n")
    assert secrets.get("secret_key") == "first"
    replace_file(path, "other")
    assert secrets.get("secret_key") == "other"
    # While it is missing, or half written, what it held holds.
    path.unlink()
    assert secrets.get("secret_key") == "other"
    path.write_text("")
    assert secrets.get("secret_key") == "other"
    replace_file(path, "third")
    assert secrets.get("secret_key") == "third"


def test_a_secret_of_kubernetes(tmp_path: Path) -> None:
    """A mounted volume: names are links into a directory that a link names, which is replaced in one step."""
    for version, text in (("v1", "first"), ("v2", "second")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(text)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "key").symlink_to("..data/key")
    secrets = Secrets({"secret_key": f"file:{tmp_path}/key"})
    assert secrets.get("secret_key") == "first"
    (tmp_path / "new").symlink_to("v2")
    os.replace(tmp_path / "new", tmp_path / "..data")  # noqa: PTH105
    assert secrets.get("secret_key") == "second"


def test_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    with pytest.raises(errors.ConfigError, match="empty"):
        Secrets({"secret_key": f"file:{tmp_path}/key"}).get("secret_key")


def test_names_are_public_and_secrets_are_not() -> None:
    options = {"access_key": "env:AK", "secret_key": "file:/run/key", "session_token": "hush", "region": "r"}
    public, secret = split_secrets("s3", options)
    assert public == {"access_key": "env:AK", "secret_key": "file:/run/key", "region": "r"}
    assert secret == {"session_token": "hush"}


@pytest.mark.parametrize("text", ["env:", "env:1X", "env:A B", "file:key", "file:"])
def test_a_name_that_cannot_be(text: str) -> None:
    with pytest.raises(errors.ConfigError, match="env:NAME or file:/absolute/path"):
        parse_options("s3", {"access_key": "AK", "secret_key": text})


def test_single_options_change() -> None:
    before = {"region": "r", "access_key": "AK", "secret_key": "SK"}
    assert change_options("s3", before, {"region": ""}) == {"access_key": "AK", "secret_key": "SK"}
    assert change_options("s3", before, {"secret_key": "new"}) == {**before, "secret_key": "new"}
    assert change_options("s3", before, {"session_token": ""}) == before
    with pytest.raises(errors.ConfigError, match="did you mean region"):
        change_options("s3", before, {"regon": ""})
