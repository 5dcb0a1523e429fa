"""Options and URIs of mounts: what is taken, what is refused, and in which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.ufs.open import describe_options, list_schemes, open_ufs, parse_uri, split_secrets
from alluxio_like.ufs.options import parse_options


def test_every_option_is_described() -> None:
    for scheme in list_schemes():
        for option in describe_options(scheme):
            assert option.help and option.kind in {"text", "integer", "number", "switch", "choice", "url"}
            assert (option.kind == "choice") == bool(option.choices)


def test_secrets_are_separated() -> None:
    options = {"endpoint": "http://h:1", "access_key": "a", "secret_key": "s", "session_token": "t", "region": "eu-west-1"}
    public, secret = split_secrets("s3", options)
    assert public == {"endpoint": "http://h:1", "region": "eu-west-1"}
    assert secret == {"access_key": "a", "secret_key": "s", "session_token": "t"}


def test_values_get_their_types() -> None:
    given_options = {"uid": "1000", "verify": "no", "timeout_s": "2.5", "addressing": "path", "endpoint": "https://h/"}
    assert parse_options("s3", given_options) == {
        "uid": 1000,
        "verify": False,
        "timeout_s": 2.5,
        "addressing": "path",
        "endpoint": "https://h",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpont": "http://h"}, "did you mean endpoint?"),
        ({"zzz": "1"}, "there are access_key, addressing, anonymous"),
        ({"uid": "-1"}, "uid"),
        ({"uid": "me"}, "a number from 0"),
        ({"verify": "maybe"}, "true or false"),
        ({"timeout_s": "0"}, "above 0"),
        ({"timeout_s": "nan"}, "above 0"),
        ({"addressing": "dns"}, "one of path, virtual"),
        ({"endpoint": "h:9000"}, "http://HOST:PORT"),
        ({"endpoint": "http://user:password@h"}, "without a path, user or password"),
        ({"endpoint": "http://h/bucket"}, "without a path"),
        ({"access_key": "a"}, "together"),
        ({"secret_key": "s"}, "together"),
        ({"session_token": "t"}, "needs access_key"),
        ({"access_key": "a", "secret_key": "s", "anonymous": "true"}, "only one of"),
        ({"profile": ""}, "at least one character"),
    ],
)
def test_wrong_options_say_what_would_be_right(options: dict[str, str], words: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        split_secrets("s3", options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_secret_is_not_repeated() -> None:
    with pytest.raises(errors.ConfigError) as caught:
        split_secrets("s3", {"secret_key": "", "access_key": "hush"})
    assert "hush" not in str(caught.value)


def test_unknown_schemes_name_those_there_are() -> None:
    for call in (lambda: describe_options("ftp"), lambda: parse_uri("ftp://host/x")):
        with pytest.raises(errors.ConfigError, match=r"file://.* s3://"):
            call()


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix", "spelling"),
    [
        ("s3://bucket", "bucket", "", "s3://bucket"),
        ("s3://bucket/", "bucket", "", "s3://bucket"),
        ("s3://bucket//", "bucket", "", "s3://bucket"),
        ("s3://bucket/a/b", "bucket", "a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a//b/", "bucket", "a//b/", "s3://bucket/a//b"),
        ("s3://b.u-c/ü x", "b.u-c", "ü x/", "s3://b.u-c/ü x"),
        ("file:///", "", "", "file:///"),
        ("file:///mnt//data/", "", "mnt/data/", "file:///mnt/data"),
    ],
)
def test_uris(uri: str, bucket: str, prefix: str, spelling: str) -> None:
    parsed = parse_uri(uri)
    assert (parsed.authority, parsed.prefix, str(parsed)) == (bucket, prefix, spelling)
    assert parse_uri(str(parsed)) == parsed


@pytest.mark.parametrize(
    "uri",
    ["", "/data", "s3:/bucket", "s3://", "s3:///x", "s3://a", "s3://bu cket", "file://host/x", "file://x", "file:///a/../b"],
)
def test_wrong_uris(uri: str) -> None:
    with pytest.raises(errors.ConfigError):
        parse_uri(uri)


@given(st.text())
def test_any_text_is_a_uri_or_refused(text: str) -> None:
    for uri in (text, f"s3://{text}", f"s3://bucket/{text}", f"file:///{text}"):
        try:
            parsed = parse_uri(uri)
        except errors.ConfigError:
            continue
        assert parse_uri(str(parsed)) == parsed


def test_opening_asks_nothing() -> None:
    requests: list[str] = []
    ufs = open_ufs("s3://bucket/x", {"endpoint": "http://127.0.0.1:1"}, secrets={}, on_request=requests.append, io_timeout_s=1)
    assert ufs.bucket == "s3://bucket" and requests == []
