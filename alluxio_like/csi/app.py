"""The CSI node plugin's process: builds its parts, serves them on a unix socket, and takes it away at the end.

Owns the socket's file and signals. Decides nothing. One event loop, one process; it may be killed at any time, since what is
published is kept by the kernel.
"""

import asyncio
import logging
import os
import signal
import stat
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc.aio

from alluxio_like.config import CsiConfig, write_ready_file
from alluxio_like.csi.service import Identity, Node
from alluxio_like.csi.v1 import csi_pb2_grpc
from alluxio_like.csi.volumes import Publisher
from alluxio_like.errors import ConfigError

_LOG = logging.getLogger(__name__)
_GRACE_S = 5.0


async def run(config: CsiConfig) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises ConfigError where the socket cannot be made."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    path = Path(config.endpoint.removeprefix("unix:").removeprefix("//"))
    publisher = Publisher(config.mountpoint, config.path, config.check_s)
    server = grpc.aio.server()
    add: Any = csi_pb2_grpc
    add.add_IdentityServicer_to_server(Identity(config, publisher, version("alluxio-like")), server)
    add.add_NodeServicer_to_server(Node(config, publisher), server)
    _bind(server, path)
    await server.start()
    try:
        write_ready_file(config, socket=str(path))
        _LOG.info("serving %s for %s at %s", config.driver_name, config.mountpoint, path)
        await stop.wait()
    finally:
        await server.stop(_GRACE_S)
        _remove(path)
    return 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _bind(server: grpc.aio.Server, path: Path) -> None:
    """Listen at a path, where a plugin that was killed may have left its socket; open to our own user alone."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
        else:
            raise ConfigError("something other than a socket is there", subject=str(path))
    except FileNotFoundError:
        pass
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        raise ConfigError(f"cannot listen at {path}: its directory must be there, and the path shorter than 108 bytes") from None
    finally:
        os.umask(before)
