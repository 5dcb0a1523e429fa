"""The POSIX door: a mount whose operations are written once and adapted to the kernel by thin sessions.

`run` is the daemon; it imports the session's library only when it starts, so that the package can be imported anywhere.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alluxio_like.config import FuseConfig


async def run(config: "FuseConfig") -> int:
    """Serve one mount until it is unmounted or told to stop; the process's exit code (0: unmounted cleanly).

    Raises the package's errors (ConfigError, Conflict, Unavailable, ...) when the mount cannot be made; nothing stays behind
    then.
    """
    from alluxio_like.fuse import app

    return await app.run(config)
