"""The real daemon under a holder, over a tree in memory; its last argument is the descriptor of its channel.

Its configuration comes from the holder: FuseConfig's, and `tree` for memory_daemon.build.
"""

import os
import socket
import sys

import uvloop

from alluxio_like.config import FuseConfig
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.fuse.app_held import serve
from alluxio_like.fuse.held import Held
from alluxio_like.logs import setup_logging
from alluxio_like.metrics import Metrics
from tests.fuse.memory_daemon import build


async def main(descriptor: int) -> int:
    held = Held(socket.socket(fileno=descriptor))
    try:
        config = dict((await held.wait_hello()).config)
        if os.path.exists(config.pop("blocked_by", "")):
            held.tell_failed("blocked")
            return 4
        backend = build(config.pop("tree", {}))
        return await serve(FuseConfig(**config), backend, Metrics(), held)
    except AlluxioLikeError as error:
        held.tell_failed(str(error))
        return 1
    finally:
        held.close()


if __name__ == "__main__":
    setup_logging("fuse")
    sys.exit(uvloop.run(main(int(sys.argv[-1]))))
