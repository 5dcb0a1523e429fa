"""Owner, mode and time in objects' metadata: what is written, and what is understood of others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like.types import StoredAttributes
from alluxio_like.ufs.object_attributes import make_metadata, read_attributes
from alluxio_like.ufs.writing import WriteOptions


@given(
    mode=st.integers(0, 0o1777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    mtime_ns=st.integers(-(2**63), 2**63 - 1),
)
def test_what_is_written_is_read(mode: int, uid: int, gid: int, mtime_ns: int) -> None:
    written = make_metadata(mode, uid, gid, mtime_ns)
    WriteOptions("0" * 32, written)
    assert read_attributes(written) == StoredAttributes(mode, uid, gid, mtime_ns)
    if abs(mtime_ns) < 2**50:
        assert float(written["mtime"]) == mtime_ns / 1e9


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("33188", 0o644),  # s3fs
        ("100640", 0o640),  # rclone
        ("0100640", 0o640),
        ("0640", 0o640),
        ("36352", 0o1000),
        ("35309", 0o755),  # with set-id bits
        ("104755", 0o755),
        ("644", None),  # decimal, or octal?
        ("420", None),
        ("16877", None),  # a directory
        ("41471", None),  # a symbolic link, decimal
        ("120777", None),  # and octal
        ("98724", None),
        ("", None),
        ("-rw-r--r--", None),
        ("\u0663\u0663188", None),
        ("9" * 40, None),
    ],
)
def test_modes(text: str, mode: int | None) -> None:
    assert read_attributes({"mode": text}).mode == mode


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [
        ("1700000000", 1_700_000_000_000_000_000),  # s3fs
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("1700000000.1234567899", 1_700_000_000_123_456_789),
        ("-1.5", -1_500_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),  # rclone elsewhere than to S3
        ("2023-11-14T23:13:20.123456789+01:00", 1_700_000_000_123_456_789),
        ("1969-12-31T23:59:59.25Z", -750_000_000),
        ("2023-13-14T22:13:20Z", None),
        ("9999999999", None),  # after 2262
        ("yesterday", None),
        ("1e9", None),
        ("", None),
    ],
)
def test_times(text: str, mtime_ns: int | None) -> None:
    assert read_attributes({"Mtime": text}).mtime_ns == mtime_ns


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("4294967294", 2**32 - 2), ("4294967295", None), ("-1", None), ("me", None)]
)
def test_owners(text: str, number: int | None) -> None:
    assert read_attributes({"uid": text, "gid": text}) == StoredAttributes(uid=number, gid=number)
