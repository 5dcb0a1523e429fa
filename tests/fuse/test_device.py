"""The kernel's end of a mount, tried on the running kernel: mounting, the first exchange, clones, backing files,
notifications."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alluxio_like.errors import AccessDenied, ConfigError, InvalidArgument, TimedOut, Unsupported
from alluxio_like.fuse import libc, wire
from alluxio_like.fuse.device import BUFFER_BYTES, Device, Handshake, negotiate
from alluxio_like.fuse.mountpoint import find_top

pytestmark = pytest.mark.mount

MountAt = Callable[[], tuple[Device, Path]]


@pytest.fixture
def mount_here(tmp_path: Path) -> Iterator[MountAt]:
    """A function that mounts a device on a fresh directory; what it mounted is taken away."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    made: list[tuple[Device, Path]] = []

    def mount() -> tuple[Device, Path]:
        place = tmp_path / f"mnt{len(made)}"
        place.mkdir()
        made.append((Device.mount(place, allow_other=False), place))
        return made[-1]

    yield mount
    for device, place in made:
        while find_top(place) is not None:
            libc.unmount(place, libc.MNT_DETACH | libc.MNT_FORCE)
        device.close()


def answer_one(device: Device) -> wire.Request:
    """Answer a request in the simplest way: one file named f, nodeid 2."""
    request = wire.parse(memoryview(os.read(device.fd, BUFFER_BYTES)))
    answer(device, request)
    return request


def answer(device: Device, request: wire.Request) -> None:
    header, body = request
    attr = wire.pack_attr(
        inode=header.nodeid,
        size=5,
        mode=0o40755 if header.nodeid == 1 else 0o100644,
        uid=0,
        gid=0,
        mtime_ns=1,
        ctime_ns=1,
        atime_ns=1,
        nlink=1,
        block_bytes=4096,
        blocks=1,
    )
    file_attr = wire.pack_attr(
        inode=2, size=5, mode=0o100644, uid=0, gid=0, mtime_ns=1, ctime_ns=1, atime_ns=1, nlink=1, block_bytes=4096, blocks=1
    )
    match body:
        case wire.Name(name=b"f"):
            os.write(device.fd, wire.pack_reply(header.unique, wire.pack_entry(2, file_attr, 60, 60)))
        case wire.Name():
            os.write(device.fd, wire.pack_error(header.unique, errno.ENOENT))
        case wire.Getattr():
            os.write(device.fd, wire.pack_reply(header.unique, wire.pack_attr_out(attr, 60)))
        case wire.Forget() | wire.BatchForget():
            pass
        case _:
            os.write(device.fd, wire.pack_error(header.unique, errno.ENOSYS))


def test_mount_first_exchange_and_end(mount_here: MountAt) -> None:
    device, place = mount_here()
    top = find_top(place)
    assert top is not None
    assert top.fstype == "fuse.alluxio_like"
    handshake = device.shake_hands(timeout_s=60)
    assert handshake.minor >= 31
    assert handshake.flags & wire.DO_READDIRPLUS
    assert Handshake.from_facts(handshake._asdict()) == handshake
    statting = threading.Thread(target=lambda: os.stat(place / "f"))
    statting.start()
    seen = [answer_one(device).header.opcode]
    while seen[-1] != wire.LOOKUP:
        seen.append(answer_one(device).header.opcode)
    statting.join(60)
    assert not statting.is_alive()
    libc.unmount(place)
    assert find_top(place) is None


def test_without_a_first_request_the_exchange_ends(mount_here: MountAt) -> None:
    device, _ = mount_here()
    device.shake_hands(timeout_s=60)
    with pytest.raises(TimedOut):
        device.shake_hands(timeout_s=0.05)


def test_flags_can_be_forced_off(mount_here: MountAt) -> None:
    device, _ = mount_here()
    handshake = device.shake_hands(passthrough=False, resend=False)
    assert not handshake.passthrough
    assert not handshake.resend
    with open(__file__, "rb") as stream, pytest.raises(Unsupported) as caught:
        device.open_backing(stream.fileno())
    assert isinstance(caught.value.__cause__, OSError)


def test_backing_files(mount_here: MountAt, tmp_path: Path) -> None:
    device, _ = mount_here()
    with open(__file__, "rb") as stream:
        with pytest.raises(Unsupported) as caught:
            device.open_backing(stream.fileno())
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno in (errno.EPERM, errno.ENOTTY)
        if not device.shake_hands().passthrough:
            pytest.skip("this kernel has no passthrough")
        file = tmp_path / "backing"
        file.write_bytes(b"12345")
        with open(file, "rb") as backing:
            first, second = device.open_backing(backing.fileno()), device.open_backing(backing.fileno())
        assert 0 < first < second
        assert device.close_backing(first)
        assert not device.close_backing(first)
        assert device.close_backing(second)


def test_a_notification_of_what_is_not_known_fails(mount_here: MountAt) -> None:
    device, _ = mount_here()
    device.shake_hands()
    with pytest.raises(FileNotFoundError):
        device.notify(wire.pack_inval_inode(12345, 0, 0))


def test_requests_end_with_the_clone_they_were_read_through(mount_here: MountAt) -> None:
    device, place = mount_here()
    device.shake_hands()
    clone = device.clone()
    outcome: list[int | None] = []

    def stat() -> None:
        try:
            os.stat(place / "f")
        except OSError as error:
            outcome.append(error.errno)

    statting = threading.Thread(target=stat)
    statting.start()
    while (request := wire.parse(memoryview(os.read(clone.fd, BUFFER_BYTES)))).header.opcode != wire.LOOKUP:
        answer(clone, request)
    clone.close()
    statting.join(60)
    assert outcome == [errno.ECONNABORTED]


def test_what_cannot_be_mounted_on_says_so(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    with pytest.raises(ConfigError, match="cannot mount"):
        Device.mount(tmp_path / "missing", allow_other=False)


def test_a_kernel_that_is_too_old_is_refused() -> None:
    for major, minor in ((7, 30), (6, 40), (8, 0)):
        with pytest.raises(ConfigError, match="pyfuse3"):
            negotiate(wire.Init(major, minor, 0, 0))
    assert issubclass(AccessDenied, Exception)


def test_facts_of_another_release_are_refused() -> None:
    for facts in ({}, {"minor": "x", "flags": 0, "offered": 0, "max_write": 1}, {"minor": 1}):
        with pytest.raises(ConfigError):
            Handshake.from_facts(facts)
    with pytest.raises(InvalidArgument):
        wire.parse(memoryview(b""))
