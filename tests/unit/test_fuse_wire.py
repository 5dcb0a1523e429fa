"""The FUSE protocol's bytes: against the installed kernel header, back and forth, and with anything else that might come."""

import contextlib
import errno
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like.errors import InvalidArgument
from alluxio_like.fuse import wire
from alluxio_like.fuse.wire import layouts, requests

HEADER = Path("/usr/include/linux/fuse.h")

NEWER = {
    # What an older header lacks is skipped, if it is named here. (Debian 12 has that of protocol 7.38.)
    "fuse_sx_time", "fuse_statx", "fuse_statx_in", "fuse_statx_out", "fuse_backing_map", "fuse_notify_prune_out",
    "fuse_copy_file_range_out", "fuse_open_out.backing_id", "fuse_init_out.max_stack_depth", "fuse_init_out.request_timeout",
    "fuse_in_header.total_extlen", "fuse_ext_header", "fuse_init_in.flags2", "fuse_init_out.flags2",
    "fuse_notify_inval_entry_out.flags", "fuse_setxattr_in.setxattr_flags", "fuse_syncfs_in",
    "FUSE_UNIQUE_RESEND", "FUSE_STATX", "FUSE_COPY_FILE_RANGE_64", "FUSE_NOTIFY_RESEND", "FUSE_NOTIFY_INC_EPOCH",
    "FUSE_NOTIFY_PRUNE", "FUSE_CREATE_SUPP_GROUP", "FUSE_DIRECT_IO_ALLOW_MMAP", "FUSE_PASSTHROUGH", "FUSE_NO_EXPORT_SUPPORT",
    "FUSE_HAS_RESEND", "FUSE_ALLOW_IDMAP", "FUSE_OVER_IO_URING", "FUSE_REQUEST_TIMEOUT", "FOPEN_PASSTHROUGH",
    "FUSE_DEV_IOC_BACKING_OPEN", "FUSE_DEV_IOC_BACKING_CLOSE", "FUSE_HAS_EXPIRE_ONLY", "FUSE_EXPIRE_ONLY",
    "FUSE_TMPFILE", "FUSE_SYNCFS",
}  # fmt: skip

NOT_THE_HEADERS = {"KERNEL_MINOR_VERSION"}


def test_structs_and_constants_are_those_of_the_kernels_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiler = shutil.which("gcc")
    if compiler is None or not HEADER.exists():
        pytest.skip("needs gcc and linux-libc-dev")
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    lines, wanted, skipped = [], {}, []

    def ask(key: str, expression: str, value: int) -> None:
        lines.append(f'printf("{key} %lld\\n", (long long)({expression}));')
        wanted[key] = value

    for c_name, fields in layouts.LAYOUTS.items():
        found = re.search(rf"struct {c_name} \{{(.*?)^\}};", text, flags=re.DOTALL | re.MULTILINE)
        if not found:
            skipped.append(c_name)
            continue
        ask(c_name, f"sizeof(struct {c_name})", struct.calcsize("<" + "".join(code for _, code in fields)))
        offset = 0
        for name, code in fields:
            size = struct.calcsize("<" + code)
            if name != "_" and re.search(rf"\b{name}\b", found[1]):
                ask(f"{c_name}.{name}", f"offsetof(struct {c_name}, {name})", offset)
                ask(f"sizeof.{c_name}.{name}", f"sizeof(((struct {c_name} *)0)->{name})", size)
                if not code.endswith("s"):
                    signed = f"(__typeof__(((struct {c_name} *)0)->{name}))-1 < 0"
                    ask(f"signed.{c_name}.{name}", signed, int(code.islower()))
            elif name != "_":
                skipped.append(f"{c_name}.{name}")
            offset += size
    for name, value in vars(layouts).items():
        if not isinstance(value, int) or name in NOT_THE_HEADERS:
            continue
        c_name = name if name.startswith(("FOPEN_", "FATTR_")) else f"FUSE_{name}"
        if re.search(rf"\b{c_name}\b", text):
            ask(c_name, f"(uint64_t){c_name} & 0xffffffffffffffff" if value < 1 << 32 else c_name, value)
        else:
            skipped.append(c_name)

    source = tmp_path / "sizes.c"
    program = tmp_path / "sizes"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <linux/fuse.h>\n#include <linux/ioctl.h>\n"
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    subprocess.run([compiler, "-w", "-o", str(program), str(source)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    seen = {key: int(value) for key, value in (line.split() for line in output.splitlines())}
    assert seen == {key: (value - (1 << 64) if value >= 1 << 63 else value) for key, value in wanted.items()}
    assert len(seen) > 400
    assert set(skipped) <= NEWER
    with capsys.disabled():
        sys.stdout.write(f"\n{HEADER}: {len(seen)} values agree; not in it: {', '.join(skipped) or 'nothing'}\n")


def test_layouts_name_each_field_once() -> None:
    for c_name, fields in layouts.LAYOUTS.items():
        names = [name for name, _ in fields if name != "_"]
        assert len(set(names)) == len(names), c_name


# requests

u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
names = st.binary(min_size=1, max_size=40).filter(lambda name: 0 not in name)
long_names = st.binary(min_size=9, max_size=255).filter(lambda name: 0 not in name)
data = st.binary(max_size=200)


def make(opcode: int, body: bytes, unique: int = 7, extension: bytes = b"") -> bytes:
    size = wire.IN_HEADER.size + len(body) + len(extension)
    return wire.IN_HEADER.pack(size, opcode, unique, 9, 1, 2, 3, len(extension) // 8) + body + extension


FIXED = {
    wire.FORGET: wire.FORGET_IN, wire.GETATTR: wire.GETATTR_IN, wire.SETATTR: wire.SETATTR_IN, wire.OPEN: wire.OPEN_IN,
    wire.READ: wire.READ_IN, wire.RELEASE: wire.RELEASE_IN, wire.FSYNC: wire.FSYNC_IN, wire.LISTXATTR: wire.GETXATTR_IN,
    wire.FLUSH: wire.FLUSH_IN, wire.OPENDIR: wire.OPEN_IN, wire.READDIR: wire.READ_IN, wire.RELEASEDIR: wire.RELEASE_IN,
    wire.FSYNCDIR: wire.FSYNC_IN, wire.ACCESS: wire.ACCESS_IN, wire.INTERRUPT: wire.INTERRUPT_IN, wire.BMAP: wire.BMAP_IN,
    wire.POLL: wire.POLL_IN, wire.FALLOCATE: wire.FALLOCATE_IN, wire.READDIRPLUS: wire.READ_IN, wire.LSEEK: wire.LSEEK_IN,
    wire.COPY_FILE_RANGE: wire.COPY_FILE_RANGE_IN, wire.COPY_FILE_RANGE_64: wire.COPY_FILE_RANGE_IN, wire.STATX: wire.STATX_IN,
}  # fmt: skip


@st.composite
def valid_requests(draw: st.DrawFn) -> tuple[int, bytes, tuple[object, ...]]:
    """An opcode, a well-formed body, and what it parses to (compared as a plain tuple)."""
    opcode = draw(st.sampled_from(sorted(requests._PARSERS)))

    def some(layout: struct.Struct) -> tuple[int, ...]:
        codes = [code for code in re.findall(r"[A-Za-z]", layout.format) if code != "x"]
        ranges = {"H": u16, "I": u32, "Q": u64}
        return tuple(draw(ranges[code]) for code in codes)

    if opcode in FIXED:
        values = some(FIXED[opcode])
        return opcode, FIXED[opcode].pack(*values), values
    a, b, value = draw(names), draw(names), draw(data)
    match opcode:
        case wire.LOOKUP | wire.UNLINK | wire.RMDIR | wire.REMOVEXATTR:
            return opcode, a + b"\0", (a,)
        case wire.READLINK | wire.STATFS | wire.DESTROY:
            return opcode, b"", ()
        case wire.SYNCFS:
            return opcode, wire.SYNCFS_IN.pack(), ()
        case wire.SYMLINK:
            return opcode, a + b"\0" + b + b"\0", (a, b)
        case wire.MKNOD | wire.MKDIR | wire.LINK | wire.CREATE | wire.TMPFILE | wire.GETXATTR:
            layout = {
                wire.MKNOD: wire.MKNOD_IN, wire.MKDIR: wire.MKDIR_IN, wire.LINK: wire.LINK_IN, wire.GETXATTR: wire.GETXATTR_IN,
            }.get(opcode, wire.CREATE_IN)  # fmt: skip
            values = some(layout)
            return opcode, layout.pack(*values) + a + b"\0", (*values, a)
        case wire.RENAME | wire.RENAME2:
            values = some(wire.RENAME_IN if opcode == wire.RENAME else wire.RENAME2_IN)
            packed = wire.RENAME_IN.pack(*values) if opcode == wire.RENAME else wire.RENAME2_IN.pack(*values)
            return opcode, packed + a + b"\0" + b + b"\0", (*values, *[0] * (2 - len(values)), a, b)
        case wire.BATCH_FORGET:
            items = draw(st.lists(st.tuples(u64, u64), max_size=5))
            return (
                opcode,
                wire.BATCH_FORGET_IN.pack(len(items)) + b"".join(wire.FORGET_ONE.pack(*i) for i in items),
                (tuple(items),),
            )
        case wire.WRITE:
            fh, offset, write_flags, owner, flags = (draw(u32) for _ in range(5))
            body = wire.WRITE_IN.pack(fh, offset, len(value), write_flags, owner, flags) + value
            return opcode, body, (fh, offset, write_flags, owner, flags, value)
        case wire.SETXATTR:
            flags, more, name = draw(u32), draw(st.none() | st.sampled_from([0, 1])), draw(names | long_names)
            head = (
                wire.SETXATTR_IN_SHORT.pack(len(value), flags) if more is None else wire.SETXATTR_IN.pack(len(value), flags, more)
            )
            return opcode, head + name + b"\0" + value, (flags, more or 0, name, value)
        case wire.GETLK | wire.SETLK | wire.SETLKW:
            fh, owner, start, end, kind, pid, flags = (draw(u32) for _ in range(7))
            body = wire.LK_IN.pack(fh, owner, wire.FILE_LOCK.pack(start, end, kind, pid), flags)
            return opcode, body, (fh, owner, start, end, kind, pid, flags)
        case wire.IOCTL:
            fh, flags, cmd, arg, out = (draw(u32) for _ in range(5))
            return opcode, wire.IOCTL_IN.pack(fh, flags, cmd, arg, len(value), out) + value, (fh, flags, cmd, arg, out, value)
        case wire.NOTIFY_REPLY:
            offset = draw(u64)
            return opcode, wire.RETRIEVE_IN.pack(offset, len(value)) + value, (offset, value)
        case wire.INIT:
            major, minor, readahead, flags, flags2 = draw(st.tuples(u32, u32, u32, u32, u32))
            if draw(st.booleans()):
                return opcode, wire.INIT_IN_SHORT.pack(major, minor, readahead, flags), (major, minor, readahead, flags)
            high = flags2 << 32 if flags & wire.INIT_EXT else 0
            return opcode, wire.INIT_IN.pack(major, minor, readahead, flags, flags2), (major, minor, readahead, flags | high)
    raise AssertionError(f"opcode {opcode} has no example")


@given(valid_requests(), st.booleans())
def test_every_kind_of_request_is_parsed(case: tuple[int, bytes, tuple[object, ...]], extended: bool) -> None:
    opcode, body, values = case
    extension = wire.EXT_HEADER.pack(16, 32) + bytes(8) if extended else b""
    header, parsed = wire.parse(memoryview(make(opcode, body, unique=5 | wire.UNIQUE_RESEND, extension=extension)))
    assert header == (40 + len(body) + len(extension), opcode, 5 | wire.UNIQUE_RESEND, 9, 1, 2, 3, len(extension) // 8)
    assert header.is_resent
    assert tuple(parsed) == values


@given(valid_requests(), st.data())
def test_a_request_cut_short_or_grown_is_refused(case: tuple[int, bytes, tuple[object, ...]], choice: st.DataObject) -> None:
    opcode, body, values = case
    whole = make(opcode, body)
    cut = whole[: choice.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(InvalidArgument):
        wire.parse(memoryview(cut))
    # With a header that agrees, the body must still be what it says (names and INIT may be cut or grown to another valid one).
    other = body[: choice.draw(st.integers(0, max(0, len(body) - 1)))] if choice.draw(st.booleans()) else body + b"\1" * 8
    if other != body:
        try:
            parsed = wire.parse(memoryview(make(opcode, other))).body
        except InvalidArgument:
            return
        assert tuple(parsed) != values or opcode == wire.INIT


@given(valid_requests(), st.data())
def test_mutated_requests_raise_nothing_else(case: tuple[int, bytes, tuple[object, ...]], choice: st.DataObject) -> None:
    changed = bytearray(make(case[0], case[1]))
    for _ in range(choice.draw(st.integers(1, 4))):
        changed[choice.draw(st.integers(0, len(changed) - 1))] = choice.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidArgument):
        wire.parse(memoryview(changed))


@given(st.sampled_from([*sorted(requests._PARSERS), 0, 7, 99, 4096]), st.binary(max_size=150), u16)
def test_any_bytes_raise_nothing_else(opcode: int, body: bytes, extension: int) -> None:
    header = wire.IN_HEADER.pack(40 + len(body), opcode, 1, 1, 0, 0, 0, extension)
    for whole in (header + body, body, b""):
        with contextlib.suppress(InvalidArgument):
            wire.parse(memoryview(whole))


def test_a_kind_that_is_not_known_is_told_apart() -> None:
    assert isinstance(wire.parse(memoryview(make(4096, b"abc"))).body, wire.Unknown)
    assert isinstance(wire.parse(memoryview(make(wire.SETUPMAPPING, b"abc"))).body, wire.Unknown)


@pytest.mark.parametrize("body", [b"\0", b"", b"a", b"a\0b\0", b"a\0\0"])
def test_a_name_must_be_one(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        wire.parse(memoryview(make(wire.LOOKUP, body)))


# answers


def test_answers_carry_their_length_and_error() -> None:
    assert wire.pack_reply(5, b"abc") == struct.pack("<IiQ", 19, 0, 5) + b"abc"
    assert wire.pack_header(5, 3) + b"abc" == wire.pack_reply(5, b"abc")
    assert wire.pack_error(5, errno.ENOENT) == struct.pack("<IiQ", 16, -errno.ENOENT, 5)


def make_attr(**changes: int) -> bytes:
    given_ = {
        "inode": 3, "size": 4, "mode": 0o100644, "uid": 5, "gid": 6, "mtime_ns": 7_000_000_008, "ctime_ns": 9, "atime_ns": -1,
        "nlink": 1, "block_bytes": 4096, "blocks": 1,
    }  # fmt: skip
    return wire.pack_attr(**{**given_, **changes})


def test_attributes() -> None:
    fields = wire.ATTR.unpack(make_attr())
    minus_one = (1 << 64) - 1
    assert fields == (3, 4, 1, minus_one, 7, 0, 999_999_999, 8, 9, 0o100644, 1, 5, 6, 0, 4096, 0)


def test_what_a_fast_path_packs_is_what_the_functions_pack() -> None:
    attr = make_attr()
    entry = wire.pack_entry(11, attr, 1.5, 2.25, generation=12)
    assert wire.ENTRY_REPLY.pack(wire.ENTRY_REPLY.size, 0, 5, 11, 12, 1, 2, 500_000_000, 250_000_000, attr) == wire.pack_reply(
        5, entry
    )
    assert wire.ATTR_REPLY.pack(wire.ATTR_REPLY.size, 0, 5, 1, 0, attr) == wire.pack_reply(5, wire.pack_attr_out(attr, 1))
    opened = wire.pack_open(11, wire.FOPEN_PASSTHROUGH, 3)
    assert wire.OPEN_REPLY.pack(wire.OPEN_REPLY.size, 0, 5, 11, wire.FOPEN_PASSTHROUGH, 3) == wire.pack_reply(5, opened)


@given(st.floats(allow_nan=True))
def test_any_validity_can_be_packed(valid_s: float) -> None:
    seconds, ns = wire.split_valid(valid_s)
    assert 0 <= seconds <= 1 << 31
    assert 0 <= ns < 1_000_000_000
    if 0 <= valid_s < 1 << 31:
        assert abs(seconds + ns / 1e9 - valid_s) < 1e-6
    else:
        assert seconds + ns in (0, 1 << 31)


@given(
    st.lists(st.tuples(u64, u64, st.sampled_from([0o100644, 0o40755, 0o120777]), names.filter(lambda n: b"/" not in n))),
    st.integers(0, 700),
    st.booleans(),
)
def test_a_listing_holds_whole_names_up_to_its_limit(entries: list[tuple[int, int, int, bytes]], limit: int, plus: bool) -> None:
    directory = wire.Directory(limit)
    entry = wire.pack_entry(1, make_attr(), 1, 1) if plus else b""
    added = []
    for inode, following, mode, name in entries:
        if not (directory.add_plus(entry, inode, following, mode, name) if plus else directory.add(inode, following, mode, name)):
            break
        added.append((inode, following, mode >> 12, name))
    assert len(directory.data) <= limit
    seen, at = [], 0
    while at < len(directory.data):
        assert at % 8 == 0
        at += len(entry)
        inode, following, size, kind = wire.DIRENT.unpack_from(directory.data, at)
        start = at + wire.DIRENT.size
        seen.append((inode, following, kind, bytes(directory.data[start : start + size])))
        at = start + size + -(at + size) % 8
    assert seen == added


@pytest.mark.parametrize("name", [b"", b"a/b", b"a\0", b"x" * 1025])
def test_a_name_the_kernel_would_not_take_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidArgument):
        wire.Directory(4096).add(1, 1, 0o100644, name)


def test_notifications_carry_their_length() -> None:
    for code, message in {
        wire.NOTIFY_INVAL_INODE: wire.pack_inval_inode(1, -1, 0),
        wire.NOTIFY_INVAL_ENTRY: wire.pack_inval_entry(1, b"name", wire.EXPIRE_ONLY),
        wire.NOTIFY_DELETE: wire.pack_delete(1, 2, b"name"),
        wire.NOTIFY_STORE: wire.pack_store(1, 2, b"data"),
        wire.NOTIFY_RETRIEVE: wire.pack_retrieve(1, 2, 3, 4),
        wire.NOTIFY_POLL: wire.pack_poll_wakeup(1),
        wire.NOTIFY_RESEND: wire.pack_resend(),
        wire.NOTIFY_INC_EPOCH: wire.pack_inc_epoch(),
        wire.NOTIFY_PRUNE: wire.pack_prune([1, 2]),
    }.items():
        assert wire.OUT_HEADER.unpack_from(message) == (len(message), code, 0)


def test_the_wire_needs_no_library() -> None:
    """It is the holder's too, which must stay small."""
    heavy = {"asyncio", "pydantic", "grpc", "uvloop", "logging", "pyfuse3", "subprocess"}
    code = "import sys, alluxio_like.fuse.device; print(*{module.split('.')[0] for module in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not heavy & set(found.split())
