"""The FUSE daemon: wires client, operations and session, and serves until the mount is gone.

The only module here that builds concrete things. Runs on one event loop (uvloop).
"""

from alluxio_like.config import FuseConfig
from alluxio_like.errors import Internal


async def run(config: FuseConfig) -> int:
    """Serve one mount until it is unmounted or told to stop by SIGTERM or SIGINT; the exit code."""
    raise Internal("not here yet", subject=str(config.mountpoint))
