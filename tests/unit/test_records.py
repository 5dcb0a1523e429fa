"""The namespace's records: bytes there and back, sizes, order of keys."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.master.core import paths, records
from alluxio_like.master.core.model import MountRecord, Totals
from alluxio_like.types import InodeId, Kind, MountId, VersionId

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)
NAMES = st.binary(max_size=1024) | st.sampled_from([b"p" * 470, b"p" * 469 + b"\xff", b"p" * 471, b"p" * 500, b"p" * 470 + b"\0"])


@settings(deadline=None)
@given(
    st.builds(
        records.Inode,
        st.sampled_from(Kind),
        st.integers(0, 2**14 - 1),
        U16,
        U16,
        U32,
        U32,
        U32.map(MountId),
        U64,
        TIMES,
        TIMES,
        U32.map(VersionId),
        U64,
        U64.map(InodeId),
        st.binary(max_size=1000),
        st.binary(max_size=1000),
        st.none() | TIMES,
    ),
    st.booleans(),
)
def test_inode(inode: records.Inode, one_time: bool) -> None:
    if one_time:
        inode = inode._replace(ctime_ns=inode.mtime_ns)
    assert records.unpack_inode(records.pack_inode(inode)) == inode


HEX = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("token", "size"),
    [
        (HEX, 17),
        (f'"{HEX}"', 17),
        (f"{HEX}-12", 20),
        (f'"{HEX}-12"', 20),
        (HEX.upper(), 33),
        (HEX + "0", 34),
        (f'"{HEX}', 34),
        (HEX[:-1] + " ", 33),
        ("", 1),
        ('"', 2),
        ('""', 3),
        ("\udcff", 2),
    ],
)
def test_tokens(token: str, size: int) -> None:
    packed = records.pack_token(token)
    assert records.unpack_token(packed) == token
    assert len(packed) == size


@settings(max_examples=50, deadline=None)
@given(st.text() | st.text('0123456789abcdef-"', min_size=30, max_size=40))
def test_any_token(token: str) -> None:
    token = token.encode("utf-8", "ignore").decode()
    assert records.unpack_token(records.pack_token(token)) == token


def test_other_records() -> None:
    state = records.State(True, False, True, 5, 6, 7, 8, 9)
    assert records.unpack_state(records.pack_state(state)) == state
    assert records.unpack_state(None) == records.State()
    totals = Totals(1, 2, 3, 4, 5)
    assert records.unpack_totals(records.pack_totals(totals)) == totals
    mount = MountRecord(MountId(3), "/a\udcff", "s3://b", True, 1, 2, 3, InodeId(4), None, {"endpoint": "http://x"})
    assert records.unpack_mount(records.pack_mount(mount)) == mount
    assert records.unpack_orphan_key(records.orphan_key(5, 6)) == (5, 6)
    assert records.orphan_key(-5, 0) == records.orphan_key(0, 0)
    for number in (0, 1, 255, 256, 2**63):
        assert records.unpack_id(records.pack_id(number)) == number


def test_dentries_of_a_table_lie_together() -> None:
    keys = [records.dentry_key(table, name) for table in (1, 255, 256) for name in (b"", b"a", b"\xff" * 502)]
    assert keys == sorted(keys)
    assert records.dentry_key(1, b"\xff" * 502) < records.dentry_stop(1) <= records.dentry_key(2, b"")


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, max_size=12), st.none() | NAMES, st.none() | NAMES)
def test_filed_names(names: list[bytes], after: bytes | None, upto: bytes | None) -> None:
    low, stop = paths.get_bounds(after, upto)
    filed = {name: paths.file_name(name) for name in names}
    assert len(set(filed.values())) == len(filed)
    assert all(len(key) <= 502 for key in filed.values())
    for name, key in filed.items():
        inside = (after is None or name > after) and (upto is None or name <= upto)
        scanned = low <= key and (stop is None or key < stop)
        # All that is asked for is scanned, and what is more is hashed.
        assert scanned or not inside
        assert inside or not scanned or len(key) == paths.HASHED_BYTES
    plain = sorted(name for name in names if len(name) <= 470)
    assert [filed[name] for name in plain] == sorted(filed[name] for name in plain)


RAW = st.binary(max_size=20).filter(lambda name: b"/" not in name) | st.sampled_from(
    [
        b"",
        b".",
        b"..",
        b"%~",
        b"%~%~",
        b"a%~file",
        b"a",
        b"%2E",
        b"%2E%~",
        b"a%~" + b"0" * 32,
        b"x" * 255,
        b"x" * 256,
        b"%\0" * 80,
    ]
)


@settings(deadline=None)
@given(st.lists(st.tuples(RAW, st.sampled_from([Kind.FILE, Kind.DIRECTORY])), unique=True, max_size=30))
def test_shown_names(children: list[tuple[bytes, Kind]]) -> None:
    shown = {}
    for raw, kind in children:
        shadowed = kind is Kind.FILE and (raw, Kind.DIRECTORY) in children
        name = paths.show_name(raw, kind, shadowed)
        assert name not in shown
        shown[name] = raw
        assert 0 < len(name) <= 255
        assert name not in (b".", b"..")
        assert b"\0" not in name
        read = paths.read_name(name)
        if read.raw is None:
            assert read.shown_hash == paths.get_shown_hash(raw, kind)
            assert paths.needs_index(raw)
        else:
            assert (read.raw, read.shadowed) == (raw, shadowed)


def test_long_names_are_cut_between_characters() -> None:
    name = paths.show_name("aü€😀".encode() * 100, Kind.FILE, False)
    assert name.decode().startswith("aü€😀")


def test_paths() -> None:
    assert paths.split_path("/") == ()
    assert paths.split_path("//a/./b/") == ("a", "b")
    assert paths.join_path(()) == "/"
    assert paths.join_path(("a", "b")) == "/a/b"
    with pytest.raises(errors.InvalidArgument):
        paths.split_path("a")
