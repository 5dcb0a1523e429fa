"""The master's process: builds its parts from the configuration, wires them, and takes them down again.

Owns the order of start and stop, the home directory's lock, and signals. Decides nothing. One event loop, one process.
"""

from alluxio_like.config import MasterConfig
from alluxio_like.errors import Internal


async def run(config: MasterConfig) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process' exit status.

    Raises ConfigError, Conflict (another process has the home or the port), FormatTooNew before it serves. Writes
    `config.ready_file` (pid, address, http_address, cluster_id, token_file) once it serves.
    """
    raise Internal("not built yet")
