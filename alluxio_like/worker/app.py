"""The worker's process: builds its parts from the configuration, wires them, and takes them down again.

Owns the order of start and stop, and signals. Decides nothing. One event loop, one process.
"""

from alluxio_like.config import WorkerConfig
from alluxio_like.errors import Internal


async def run(config: WorkerConfig) -> int:
    """Serve until SIGTERM or SIGINT, then leave the cluster cleanly. Returns the process' exit status.

    Raises ConfigError, Conflict (another process has the home or a cache directory), FormatTooNew before it serves.
    Writes `config.ready_file` once it is registered or has begun to wait for its master.
    """
    raise Internal("not built yet")
