"""HDFS without a server: the order of listings, names, options, errors."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.types import Kind, to_bytes
from alluxio_like.ufs.hdfs_client import HdfsSettings
from alluxio_like.ufs.hdfs_errors import convert_error
from alluxio_like.ufs.hdfs_listing import Listing, get_bound
from alluxio_like.ufs.hdfs_names import is_ours, make_path, make_temporary
from alluxio_like.ufs.open import open_ufs, parse_uri
from alluxio_like.ufs.options import parse_options

TOKEN = "0123456789abcdef" * 2


@dataclass
class FakeStatus:
    path: str
    isdir: bool
    length: int = 1
    modification_time: int = 1_700_000_000_000


def java_order(name: str) -> list[int]:
    """Bytes as Java compares them."""
    return [byte - 256 if byte >= 128 else byte for byte in to_bytes(name)]


NAMES = st.dictionaries(
    st.text(st.sampled_from("aAb!-./0z~é日\x01\U0001f600"), min_size=1, max_size=4).map(lambda name: name.replace("/", "_")),
    st.booleans(),
    max_size=25,
)


def list_statuses(names: dict[str, bool], is_java: bool) -> Iterator[FakeStatus]:
    order = java_order if is_java else to_bytes
    return iter([FakeStatus(f"/d/{name}", names[name]) for name in sorted(names, key=order)])  # type: ignore[arg-type,call-overload]


@given(NAMES, st.integers(1, 7), st.booleans())
def test_listings_are_in_the_order_of_the_interface(names: dict[str, bool], size: int, is_java: bool) -> None:
    listing = Listing("/d", list_statuses(names, is_java), b"", is_ours, 0)
    found = []
    more = True
    while more:
        page, more = listing.take_page(size)
        assert len(page) <= size
        found += page
    assert [to_bytes(entry.sort_name) for entry in found] == sorted(
        to_bytes(name + "/" if is_dir else name) for name, is_dir in names.items()
    )


@given(NAMES, st.integers(0, 30))
def test_a_listing_goes_on_behind_any_name(names: dict[str, bool], place: int) -> None:
    whole = Listing("/d", list_statuses(names, True), b"", is_ours, 0).take_page(1000)[0]
    if place < len(whole):
        after = to_bytes(whole[place].sort_name)
        rest = Listing("/d", list_statuses(names, True), after, is_ours, 0).take_page(1000)[0]
        assert rest == whole[place + 1 :]


def test_names_in_ascii_are_not_held_back() -> None:
    def give() -> Iterator[FakeStatus]:
        yield from [FakeStatus("/d/a", False), FakeStatus("/d/b", True), FakeStatus("/d/b!", False), FakeStatus("/d/c", False)]
        raise AssertionError("read ahead")

    listing = Listing("/d", give(), b"", is_ours, 0)
    page, more = listing.take_page(4)
    assert ([entry.sort_name for entry in page], more) == (["a", "b!", "b/", "c"], True)


def test_a_listing_in_no_known_order_is_refused() -> None:
    statuses = [FakeStatus("/d/b", False), FakeStatus("/d/a", False)]
    with pytest.raises(errors.StoreProtocol):
        Listing("/d", iter(statuses), b"", is_ours, 0).take_page(10)


def test_what_is_young_or_ours() -> None:
    statuses = [FakeStatus(f"/.x.alluxio-like.{TOKEN}", True), FakeStatus("/d", True), FakeStatus("/f", False)]
    for now_ms, trusted in [(1_700_000_001_999, False), (1_700_000_002_000, True), (0, False)]:
        page, _ = Listing("/", iter(statuses), b"", is_ours, now_ms).take_page(10)
        assert [(entry.name, entry.kind, entry.trusted) for entry in page] == [
            ("d", Kind.DIRECTORY, True),
            ("f", Kind.FILE, trusted),
        ]


def test_bounds() -> None:
    assert [get_bound(to_bytes(name)) for name in ("abc", "aéc", "é", "")] == [b"abc", b"a", b"", b""]


@pytest.mark.parametrize("key", ["", ".", "..", "a/../b", "a//b", "a/", "/a", "a:b", f".a.alluxio-like.{TOKEN}/content/a"])
def test_keys_that_hdfs_does_not_have(key: str) -> None:
    with pytest.raises(errors.NotFound):
        make_path("root/", key)


def test_temporaries_fit_and_are_known() -> None:
    assert make_temporary("/d/name", TOKEN) == f"/d/.name.alluxio-like.{TOKEN}"
    for name in ("x" * 255, "日" * 85, "a" + "日" * 84):
        made = make_temporary(f"/d/{name}", TOKEN).rpartition("/")[2]
        assert is_ours(made) and 250 < len(made.encode()) <= 255
        assert make_temporary(f"/d/{made[1:-46]}", TOKEN).rpartition("/")[2] == made


def test_a_token_cannot_lead_elsewhere() -> None:
    for token in ("", "x", "../" * 10 + "ab", TOKEN.upper() + "x"):
        with pytest.raises(errors.InvalidArgument):
            make_temporary("/d/name", token)


# -- errors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "shown"),
    [
        (FileNotFoundError("/x"), errors.NotFound, "no such"),
        (FileExistsError("/x"), errors.AlreadyExists, "already"),
        (OSError("Connection refused (os error 111)"), errors.StoreUnavailable, "hdfs://nn:8020 cannot be reached"),
        (
            RuntimeError(
                'RPCError("org.apache.hadoop.security.AccessControlException", "Permission denied: user=bob, \\"/\\"\\n\\tat x")'
            ),
            errors.StoreDenied,
            'the NameNode says: Permission denied: user=bob, "/: /x',
        ),
        (
            RuntimeError(
                'RPCError("org.apache.hadoop.hdfs.server.namenode.SafeModeException", "Cannot create. Safe mode is ON")'
            ),
            errors.StoreUnavailable,
            "Safe mode",
        ),
        (RuntimeError('RPCError("org.apache.hadoop.hdfs.protocol.NSQuotaExceededException", "x")'), errors.NoSpace, "x"),
        (RuntimeError('FatalRPCError("javax.security.sasl.SaslException", "GSS")'), errors.StoreDenied, "GSS"),
        (RuntimeError('GSSAPIError(GSS_S_FAILURE, 1, "no ticket")'), errors.StoreDenied, "no ticket"),
        (RuntimeError("NoSASLMechanism"), errors.StoreDenied, "NoSASLMechanism"),
        (RuntimeError('DataTransferError("All DataNodes failed: [many]")'), errors.StoreUnavailable, "no DataNode"),
        (RuntimeError("ChecksumError"), errors.StoreProtocol, "ChecksumError"),
        (RuntimeError('RPCError("java.io.IOException", "anything")'), errors.StoreUnavailable, "anything"),
        (RuntimeError(""), errors.StoreUnavailable, ""),
        (NotImplementedError("zones"), errors.Unsupported, "zones"),
    ],
)
def test_errors(error: BaseException, kind: type[errors.AlluxioLikeError], shown: str) -> None:
    found = convert_error(error, "/x", "hdfs://nn:8020")
    assert type(found) is kind
    assert shown in str(found) and "\n" not in str(found) and "\\tat" not in str(found)


# -- URIs and options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown", "prefix"),
    [
        ("hdfs://nn.example.com:8020/data/set/", "hdfs://nn.example.com:8020/data/set", "data/set/"),
        ("hdfs://nn:8020", "hdfs://nn:8020", ""),
        ("hdfs://service/", "hdfs://service", ""),
        ("hdfs://[::1]:8020//a", "hdfs://[::1]:8020/a", "a/"),
    ],
)
def test_uris(uri: str, shown: str, prefix: str) -> None:
    parsed = parse_uri(uri)
    assert (str(parsed), parsed.prefix) == (shown, prefix)
    assert parse_uri(str(parsed)) == parsed


@pytest.mark.parametrize("uri", ["hdfs://", "hdfs:///data", "hdfs://a b/", "hdfs://nn:x/", "hdfs://nn/a/../b", "hdfs://nn/a:b"])
def test_uris_that_are_none(uri: str) -> None:
    with pytest.raises(errors.ConfigError):
        parse_uri(uri)


def make_settings(uri: str, **options: str) -> HdfsSettings:
    return HdfsSettings.make(parse_uri(uri), parse_options("hdfs", options), 30.0)


def test_options_become_configuration() -> None:
    made = make_settings("hdfs://service/x", namenodes="a:8020, b:8021", timeout_s="2.5", use_datanode_hostname="yes")
    assert made.config["dfs.ha.namenodes.service"] == "nn1,nn2"
    assert made.config["dfs.namenode.rpc-address.service.nn2"] == "b:8021"
    assert made.config["dfs.client.socket-timeout"] == "2500"
    assert made.config["dfs.client.use.datanode.hostname"] == "true"
    assert make_settings("hdfs://nn:1").config["dfs.client.socket-timeout"] == "6000"
    assert make_settings("hdfs://nn:1", principal="me@REALM").config["hadoop.security.authentication"] == "kerberos"


@pytest.mark.parametrize(
    ("uri", "options", "shown"),
    [
        ("hdfs://service", {"namenodes": "a"}, "HOST:PORT"),
        ("hdfs://service:8020", {"namenodes": "a:1,b:1"}, "without a port"),
        ("hdfs://nn:1", {"keytab": "/k"}, "needs principal"),
        ("hdfs://nn:1", {"user": "me", "principal": "me@REALM"}, "only one"),
        ("hdfs://nn:1", {"config_dir": "/nonexistent"}, "core-site.xml"),
        ("hdfs://nn:1", {"usr": "me"}, "did you mean user"),
    ],
)
def test_options_that_cannot_be(uri: str, options: dict[str, str], shown: str) -> None:
    with pytest.raises(errors.ConfigError, match=shown):
        make_settings(uri, **options)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith(("hdfs_native", "alluxio_like.ufs.hdfs")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hdfs_native", None)
    with pytest.raises(errors.ConfigError, match=r"hdfs_native: pip install 'alluxio-like\[hdfs\]'"):
        open_ufs("hdfs://nn:8020/", {}, secrets={}, on_request=print, io_timeout_s=5)
