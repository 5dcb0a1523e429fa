"""What is in a file: writes, truncation, allocation and holes at every awkward place, compared with a model of bytes; mappings;
copies of ranges; sparse files and limits."""

import errno
import functools
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.system import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    attempt,
    fallocate,
    look,
    opened,
    seek,
    write,
)
from tests.posix.table import table

pytestmark = pytest.mark.mount

PAGE = 4096
MIB = 1 << 20
SIZES = (0, 1, 10, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, MIB + 17)
RANGES = ((0, 1), (5, 3), (0, PAGE), (PAGE - 1, 2), (PAGE, PAGE), (10, 3 * PAGE), (MIB - 5, 10), (2 * MIB, 100))


@functools.cache
def fill(size: int, salt: int = 1) -> bytes:
    """Bytes none of which is 0, no page of the first 32 like another."""
    pattern = bytes((i * 7 + (i >> 8) * 13 + salt) % 255 + 1 for i in range(min(size, 32 * PAGE)))
    return (pattern * (size // (32 * PAGE) + 1))[:size]


def check_content(path: Path, expected: bytes) -> None:
    """By stat, by a new reader, and by a mapping."""
    assert look(path).st_size == len(expected)
    assert path.read_bytes() == expected
    if expected:
        with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == expected


Model = Callable[[bytearray, int, int], None]


def _model_write(model: bytearray, offset: int, length: int) -> None:
    model.extend(bytes(max(0, offset - len(model))))
    model[offset : offset + length] = fill(length, 99)


def _model_extend(model: bytearray, offset: int, length: int) -> None:
    model.extend(bytes(max(0, offset + length - len(model))))


def _model_zero(model: bytearray, offset: int, length: int) -> None:
    end = min(len(model), offset + length)
    if offset < end:
        model[offset:end] = bytes(end - offset)


def _model_zero_and_extend(model: bytearray, offset: int, length: int) -> None:
    _model_extend(model, offset, length)
    _model_zero(model, offset, length)


def _nothing(model: bytearray, offset: int, length: int) -> None:
    pass


def _write_mapped(fd: int, offset: int, length: int) -> None:
    if os.fstat(fd).st_size < offset + length:
        os.ftruncate(fd, offset + length)
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with mmap.mmap(fd, offset - start + length, offset=start) as mapped:
        mapped[offset - start :] = fill(length, 99)


def _write_vector(fd: int, offset: int, length: int) -> None:
    data = fill(length, 99)
    os.lseek(fd, offset, os.SEEK_SET)
    assert os.writev(fd, [data[: length // 2], b"", data[length // 2 :]]) == length


CHANGES: dict[str, tuple[Callable[[int, int, int], object], Model]] = {
    "pwrite": (lambda fd, offset, length: os.pwrite(fd, fill(length, 99), offset), _model_write),
    "writev": (_write_vector, _model_write),
    "write through a mapping": (_write_mapped, _model_write),
    "fallocate": (lambda fd, offset, length: fallocate(fd, 0, offset, length), _model_extend),
    "fallocate KEEP_SIZE": (lambda fd, offset, length: fallocate(fd, KEEP_SIZE, offset, length), _nothing),
    "punch a hole": (lambda fd, offset, length: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length), _model_zero),
    "zero a range": (lambda fd, offset, length: fallocate(fd, ZERO_RANGE, offset, length), _model_zero_and_extend),
    "zero a range KEEP_SIZE": (lambda fd, offset, length: fallocate(fd, ZERO_RANGE | KEEP_SIZE, offset, length), _model_zero),
}


@table("change size offset length", [(change, size, *of) for change in CHANGES for size in SIZES for of in RANGES])
def test_changes_in_every_place(place: Path, change: str, size: int, offset: int, length: int) -> None:
    model = bytearray(fill(size))
    path = write(place / "file", bytes(model))
    do, follow = CHANGES[change]
    with opened(path, os.O_RDWR) as fd:
        do(fd, offset, length)
        follow(model, offset, length)
        assert os.fstat(fd).st_size == len(model)
        assert os.pread(fd, len(model) + 1, 0) == model
    check_content(path, bytes(model))


@table("size to", [(size, to) for size in SIZES for to in SIZES])
@pytest.mark.parametrize("how", ["truncate", "ftruncate"])
def test_truncation(place: Path, size: int, to: int, how: str) -> None:
    model = fill(size)
    path = write(place / "file", model)
    if how == "truncate":
        os.truncate(path, to)
    else:
        with opened(path, os.O_RDWR) as fd:
            os.ftruncate(fd, to)
            assert os.pread(fd, to + 1, 0) == (model + bytes(to))[:to]
    check_content(path, (model + bytes(max(0, to - size)))[:to])
    os.truncate(path, 2 * PAGE)  # what was cut off does not come back
    check_content(path, ((model + bytes(to))[:to] + bytes(2 * PAGE))[: 2 * PAGE])


@table("mode expected", [
    (COLLAPSE_RANGE, "ok"), (INSERT_RANGE, "ok"),
])  # fmt: skip
def test_ranges_are_taken_out_and_put_in(place: Path, mode: int, expected: str) -> None:
    model = fill(4 * PAGE)
    path = write(place / "file", model)
    with opened(path, os.O_RDWR) as fd:
        assert attempt(fallocate, fd, mode, PAGE, PAGE) == expected
    check_content(path, model[:PAGE] + (model[2 * PAGE :] if mode == COLLAPSE_RANGE else bytes(PAGE) + model[PAGE:]))


@table("mode offset length expected", [
    (0, -1, 10, "EINVAL"), (0, 0, 0, "EINVAL"), (0, 0, -1, "EINVAL"), (PUNCH_HOLE, 0, 10, "ENOTSUP"),
    (0, 1 << 62, 1 << 62, "EFBIG"), (PUNCH_HOLE | KEEP_SIZE, 0, 0, "EINVAL"),
])  # fmt: skip
def test_allocations_that_are_refused(place: Path, mode: int, offset: int, length: int, expected: str) -> None:
    with opened(write(place / "file", b"content"), os.O_RDWR) as fd:
        assert attempt(fallocate, fd, mode, offset, length) == expected
    check_content(place / "file", b"content")


# -- sparse files ----------------------------------------------------------------------------------------------------------------


def test_holes_read_as_zeros_and_cost_nothing(place: Path) -> None:
    path = place / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 1 << 26)
        assert os.pread(fd, 8, 12345) == bytes(8)
        assert os.pread(fd, 8, (1 << 26) - 5) == b"\0\0\0\0\0end"
        # (Afterwards a file of a store is shown without holes: an object has none.)
        assert os.fstat(fd).st_blocks * 512 <= MIB
    assert look(path).st_size == (1 << 26) + 3


@table("size", [((1 << 31) - 1,), (1 << 31,), (1 << 32,), ((1 << 32) + 5,), (1 << 40,)])
def test_large_offsets(place: Path, size: int) -> None:
    path = place / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        assert os.pwrite(fd, b"last", size) == 4
        assert os.pread(fd, 9, size) == b"last"
        assert os.lseek(fd, 0, os.SEEK_END) == size + 4
        os.ftruncate(fd, size + 1)
        assert os.pread(fd, 9, size) == b"l"
        assert look(path).st_size == size + 1
        os.ftruncate(fd, 10)  # a target that stores files elsewhere would carry all of it there
    assert look(path).st_size == 10


@table("size expected", [(1 << 62, "EFBIG"), ((1 << 63) - 1, "EFBIG")])
def test_sizes_that_are_too_large(place: Path, size: int, expected: str) -> None:
    assert attempt(os.truncate, write(place / "file"), size) == expected


def test_data_and_holes_are_found(place: Path) -> None:
    path = place / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 4 * MIB)
        os.pwrite(fd, fill(PAGE), MIB)
        os.pwrite(fd, fill(PAGE), 3 * MIB)
        os.fsync(fd)
        # (Just after its close a file may show none for a moment.)
        assert seek(path, 0, os.SEEK_DATA) == MIB
        assert seek(path, 0, os.SEEK_HOLE) == 0
        assert seek(path, MIB, os.SEEK_HOLE) == MIB + PAGE
        assert seek(path, MIB + PAGE, os.SEEK_DATA) == 3 * MIB
        assert seek(path, 3 * MIB, os.SEEK_HOLE) == 3 * MIB + PAGE
        assert attempt(seek, path, 3 * MIB + PAGE, os.SEEK_DATA) == "ENXIO"
        assert seek(path, 3 * MIB + PAGE, os.SEEK_HOLE) == 3 * MIB + PAGE


@table("offset how expected", [
    (7, os.SEEK_DATA, "ENXIO"), (7, os.SEEK_HOLE, "ENXIO"), (6, os.SEEK_DATA, "ok"), (6, os.SEEK_HOLE, "ok"),
    (-1, os.SEEK_DATA, "ENXIO"), (-8, os.SEEK_END, "EINVAL"), (-7, os.SEEK_END, "ok"), (5, os.SEEK_END, "ok"), (0, 77, "EINVAL"),
])  # fmt: skip
def test_seeking(place: Path, offset: int, how: int, expected: str) -> None:
    assert attempt(seek, write(place / "file", b"content"), offset, how) == expected


def test_every_byte_is_data_or_hole(place: Path) -> None:
    """What a copier does that leaves holes out gives the same content."""
    path = place / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        for offset in (5, 3 * PAGE + 1, MIB - 2, 2 * MIB):
            os.pwrite(fd, fill(100), offset)
        os.ftruncate(fd, 3 * MIB)
        copied = bytearray(3 * MIB)
        at = 0
        while True:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            assert at > start
            copied[start:at] = os.pread(fd, at - start, start)
    assert copied == path.read_bytes()


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, ZERO_RANGE])
def test_more_than_there_is_cannot_be_allocated(place: Path, mode: int) -> None:
    path = write(place / "file")
    space = os.statvfs(place)
    with opened(path, os.O_RDWR) as fd:
        assert attempt(fallocate, fd, mode, 0, space.f_bfree * space.f_frsize + 64 * MIB) == "ENOSPC"
        # (What could be allocated of it may have been.)
        os.ftruncate(fd, 0)
        fallocate(fd, mode, 0, MIB)


def test_allocated_space_is_counted(place: Path) -> None:
    path = write(place / "file")
    with opened(path, os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 4 * MIB)
        assert os.fstat(fd).st_blocks * 512 >= 4 * MIB
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4 * MIB)
        assert os.fstat(fd).st_blocks * 512 < MIB
        assert os.fstat(fd).st_size == 4 * MIB


# -- mappings --------------------------------------------------------------------------------------------------------------------


def test_a_shared_mapping_and_writes_see_each_other(place: Path) -> None:
    path = write(place / "file", bytes(3 * PAGE))
    with opened(path, os.O_RDWR) as fd, opened(path, os.O_RDWR) as other, mmap.mmap(fd, 3 * PAGE) as mapped:
        mapped[PAGE : PAGE + 6] = b"mapped"
        assert os.pread(other, 6, PAGE) == b"mapped"
        os.pwrite(other, b"written", 2 * PAGE)
        assert mapped[2 * PAGE : 2 * PAGE + 7] == b"written"
        with mmap.mmap(other, 3 * PAGE) as second:
            second[:6] = b"second"
            assert mapped[:6] == b"second"
        mapped.flush()
    assert path.read_bytes()[PAGE : PAGE + 6] == b"mapped"


def test_what_is_written_through_a_mapping_outlives_the_descriptor(place: Path) -> None:
    path = write(place / "file", bytes(PAGE))
    with opened(path, os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, PAGE)
    mapped[:5] = b"later"
    assert path.read_bytes()[:5] == b"later"
    mapped.close()
    assert path.read_bytes()[:5] == b"later"


def test_a_private_mapping_changes_nothing(place: Path) -> None:
    path = write(place / "file", b"content")
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:3] = b"CON"
    assert path.read_bytes() == b"content"


def test_beyond_the_end_a_mapping_is_zeros_that_are_not_written(place: Path) -> None:
    path = write(place / "file", b"content")
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, PAGE)
        with mmap.mmap(fd, PAGE) as mapped:
            os.ftruncate(fd, 7)
            mapped[7:12] = b"after"
            mapped.flush()
            os.ftruncate(fd, 12)
            assert os.pread(fd, 99, 0) == b"content" + bytes(5)


def test_truncation_under_a_mapping(place: Path) -> None:
    path = write(place / "file", fill(2 * PAGE))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 2 * PAGE) as mapped:
        os.ftruncate(fd, 10)
        assert mapped[:PAGE] == fill(2 * PAGE)[:10] + bytes(PAGE - 10)
        os.ftruncate(fd, 2 * PAGE)
        assert mapped[:] == fill(2 * PAGE)[:10] + bytes(2 * PAGE - 10)


@table("flags access expected", [("R", "read", "ok"), ("R", "write", "EACCES"), ("W", "read", "EACCES"), ("RW", "write", "ok")])
def test_what_may_be_mapped(place: Path, flags: str, access: str, expected: str) -> None:
    with opened(write(place / "file", b"content"), {"R": os.O_RDONLY, "W": os.O_WRONLY, "RW": os.O_RDWR}[flags]) as fd:
        how = mmap.ACCESS_READ if access == "read" else mmap.ACCESS_WRITE
        assert attempt(lambda: mmap.mmap(fd, 0, access=how).close()) == expected


# -- copies of ranges ------------------------------------------------------------------------------------------------------------


@table("size start to length", [
    (100, 0, 0, 100), (100, 10, 0, 50), (100, 50, 200, 100), (100, 100, 0, 10), (0, 0, 0, 10), (PAGE * 3, PAGE, PAGE * 2, PAGE),
    (MIB + 17, 5, 3, MIB), (MIB, 0, MIB, MIB), (3 * MIB, MIB, 0, 2 * MIB),
])  # fmt: skip
def test_copies_of_ranges(place: Path, size: int, start: int, to: int, length: int) -> None:
    model, target = fill(size), bytearray(fill(64, 5))
    write(place / "source", model)
    write(place / "target", bytes(target))
    done = 0
    with opened(place / "source") as source, opened(place / "target", os.O_RDWR) as copy:
        while part := os.copy_file_range(source, copy, length - done, start + done, to + done):
            done += part
            if done == length:
                break
    assert done == max(0, min(length, size - start))
    if done:
        target.extend(bytes(max(0, to - len(target))))
        target[to : to + done] = model[start : start + done]
    check_content(place / "target", bytes(target))
    check_content(place / "source", model)


def test_copies_within_a_file(place: Path) -> None:
    path = write(place / "file", fill(4 * PAGE))
    with opened(path, os.O_RDWR) as fd:
        assert os.copy_file_range(fd, fd, PAGE, 0, 2 * PAGE) == PAGE
        assert attempt(os.copy_file_range, fd, fd, PAGE, 0, 100) == "EINVAL"
    model = fill(4 * PAGE)
    check_content(path, model[: 2 * PAGE] + model[:PAGE] + model[3 * PAGE :])


@table("source target expected", [("R", "R", "EBADF"), ("W", "W", "EBADF"), ("R", "A", "EBADF"), ("R", "W", "ok")])
def test_copies_between_what_is_open_how(place: Path, source: str, target: str, expected: str) -> None:
    flags = {"R": os.O_RDONLY, "W": os.O_WRONLY, "A": os.O_WRONLY | os.O_APPEND}
    write(place / "source", b"content")
    write(place / "target")
    with opened(place / "source", flags[source]) as one, opened(place / "target", flags[target]) as other:
        assert attempt(os.copy_file_range, one, other, 7) == expected


@table("call", [("sendfile",), ("splice",)])
def test_other_ways_from_file_to_file(place: Path, call: str) -> None:
    write(place / "source", fill(100_000))
    done = 0
    with opened(place / "source") as source, opened(place / "target", os.O_CREAT | os.O_WRONLY) as target:
        if call == "sendfile":
            while part := os.sendfile(target, source, done, 100_000):
                done += part
        else:
            end, begin = os.pipe()
            while part := os.splice(source, begin, 32768):
                while part:
                    moved = os.splice(end, target, part)
                    part -= moved
                    done += moved
            os.close(end)
            os.close(begin)
    assert done == 100_000
    check_content(place / "target", fill(100_000))


# -- several at once -------------------------------------------------------------------------------------------------------------


def test_many_descriptors_of_one_file(place: Path) -> None:
    path = write(place / "file")
    model = bytearray()
    fds = [os.open(path, os.O_RDWR) for _ in range(8)]
    for i in range(64):
        offset, data = (i * 37) % 50 * 100, fill(150, i)
        os.pwrite(fds[i % 8], data, offset)
        model.extend(bytes(max(0, offset + 150 - len(model))))
        model[offset : offset + 150] = data
        assert os.pread(fds[(i + 1) % 8], len(model), 0) == model
        if i % 8 == 7:
            os.close(fds[i // 8])
            fds[i // 8] = os.open(path, os.O_RDWR)
    for fd in fds:
        os.close(fd)
    check_content(path, bytes(model))


def test_close_sync_and_open_again(place: Path) -> None:
    path = place / "file"
    model = b""
    for i in range(20):
        with opened(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, fill(777, i))
            if i % 3 == 0:
                os.fsync(fd)
            if i % 3 == 1:
                os.fdatasync(fd)
        model += fill(777, i)
        check_content(path, model)


def test_a_file_that_grows_is_read_as_it_is(place: Path) -> None:
    path = write(place / "file")
    with opened(path, os.O_WRONLY) as writer, opened(path) as reader:
        for i in range(30):
            os.write(writer, fill(1000, i))
            assert os.read(reader, 5000) == fill(1000, i)
            assert os.read(reader, 10) == b""
            assert look(path).st_size == 1000 * (i + 1)
