"""What READs can give on this machine at most, answered in Python: a mount of one local file, and nothing else.

python -m bench.bare_reads MOUNTPOINT FILE    mounts, says so, serves until something comes on standard input
"""

import argparse
import errno
import os
import select
import stat
import sys
from pathlib import Path

from alluxio_like.fuse import libc, mountpoint, wire
from alluxio_like.fuse.device import BUFFER_BYTES, Device

READ_AHEAD_KB = 4096
"""As the daemon's."""
_ATTR_S = 3600.0
_FILE_NODE = 2
_HEAD_BYTES = wire.OUT_HEADER.size


def serve(device: Device, file: int, until: int) -> None:
    """Answer requests until there is something to read from `until`."""
    size = os.fstat(file).st_size
    buffer = bytearray(BUFFER_BYTES)
    reply = memoryview(bytearray(_HEAD_BYTES + BUFFER_BYTES))
    poll = select.poll()
    poll.register(until, select.POLLIN)
    poll.register(device.fd, select.POLLIN)
    while until not in [fd for fd, _ in poll.poll()]:
        try:
            os.readv(device.fd, [buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            continue
        _, opcode, unique, node, *_ = wire.IN_HEADER.unpack_from(buffer)
        if opcode == wire.READ:
            _, offset, length, *_ = wire.READ_IN.unpack_from(buffer, wire.IN_HEADER.size)
            count = _HEAD_BYTES + os.preadv(file, [reply[_HEAD_BYTES : _HEAD_BYTES + length]], offset)
            wire.OUT_HEADER.pack_into(reply, 0, count, 0, unique)
            os.write(device.fd, reply[:count])
        elif opcode not in wire.UNANSWERED:
            os.write(device.fd, _answer(opcode, unique, node, size))


def _answer(opcode: int, unique: int, node: int, size: int) -> bytes:
    if opcode == wire.LOOKUP:
        return wire.pack_reply(unique, wire.pack_entry(_FILE_NODE, _pack_attr(_FILE_NODE, size), _ATTR_S, _ATTR_S))
    if opcode == wire.GETATTR:
        return wire.pack_reply(unique, wire.pack_attr_out(_pack_attr(node, size), _ATTR_S))
    if opcode == wire.OPEN:
        return wire.pack_reply(unique, wire.pack_open(1, wire.FOPEN_NOFLUSH))
    if opcode == wire.RELEASE:
        return wire.pack_reply(unique)
    return wire.pack_error(unique, errno.ENOSYS)


def _pack_attr(node: int, size: int) -> bytes:
    is_file = node == _FILE_NODE
    return wire.pack_attr(
        inode=node,
        size=size if is_file else 0,
        mode=stat.S_IFREG | 0o444 if is_file else stat.S_IFDIR | 0o555,
        uid=0,
        gid=0,
        mtime_ns=0,
        ctime_ns=0,
        atime_ns=0,
        nlink=1,
        block_bytes=1 << 20,
        blocks=size // 512 if is_file else 0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    place = arguments.mountpoint
    place.mkdir(parents=True, exist_ok=True)
    file = os.open(arguments.file, os.O_RDONLY)
    device = Device.mount(place, allow_other=False)
    try:
        device.shake_hands(passthrough=False)
        top = mountpoint.find_top(place)
        if top is not None:
            mountpoint.tune(top.device, READ_AHEAD_KB)
        print("ready", flush=True)
        serve(device, file, sys.stdin.fileno())
    finally:
        libc.unmount(place)
        device.close()


if __name__ == "__main__":
    main()
