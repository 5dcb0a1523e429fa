"""The daemon as a holder starts it: `python -P -m alluxio_like.fuse.daemon DESCRIPTOR`, its end of their channel.

Owns the process: its log, its event loop, and how an error becomes a line and an exit code. What it serves is app_held.py's; its
configuration comes from the holder, checked, so that a restart reads no file and parses no options.

As joiner.py starts it (`--join SOCKET SINCE_NS DESCRIPTOR`) it goes to a holder by itself, waiting for one where there is none;
the descriptor holds its configuration then.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import time
from typing import Any

import uvloop

from alluxio_like import pauses
from alluxio_like.config import FuseConfig
from alluxio_like.descriptors import raise_limit
from alluxio_like.errors import AlluxioLikeError, InvalidArgument, Unavailable
from alluxio_like.fuse import app_held, control
from alluxio_like.fuse.held import Held
from alluxio_like.logs import setup_logging

log = logging.getLogger(__name__)


def _log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("unhandled in the event loop: %s", context.get("message"), exc_info=context.get("exception"))


_JOIN_S = 0.5
"""Between two tries to find a holder; requests wait meanwhile. A guess."""
_CONNECTION_TIMEOUT_S = 5.0
_BRIEF_S = 5.0


async def _join(path: str, since_ns: int, config: dict[str, Any]) -> Held:
    """Go to the holder that listens at a path, and wait until it wants this daemon. Raises the package's errors."""
    setup_logging("fuse", level=config["log_level"], log_format=config["log_format"])
    told = False
    while True:
        sock = control.connect(path, _CONNECTION_TIMEOUT_S)
        message = {"kind": "join", "version": control.VERSION, "since_ns": since_ns, "config": config}
        if sock is not None and control.send(sock, message):
            held = Held(sock, since_ns)
            joined_s = time.monotonic()
            try:
                await held.wait_hello()
                return held
            except Unavailable:
                told = told and time.monotonic() - joined_s < _BRIEF_S
            held.close()
        elif sock is not None:
            sock.close()
        if not told:
            told = True
            log.info("waiting for the mount's holder: alluxio-like holder MOUNTPOINT", extra={"socket": path})
        await asyncio.sleep(_JOIN_S)


async def _run(arguments: list[str]) -> int:
    asyncio.get_running_loop().set_exception_handler(_log_unhandled)
    if arguments[0] != "--join":
        return await _serve(Held(socket.socket(fileno=int(arguments[0]))))
    with os.fdopen(int(arguments[3])) as stream:
        config = json.load(stream)
    try:
        held = await _join(arguments[1], int(arguments[2]), config)
    except AlluxioLikeError as error:
        log.error("%s", error)
        return 1
    return await _serve(held)


async def _serve(held: Held) -> int:
    try:
        hello = await held.wait_hello()
        # Another release may have written it down: what it had and this one has not is left out.
        config = FuseConfig.model_validate({name: hello.config[name] for name in hello.config if name in FuseConfig.model_fields})
        setup_logging("fuse", level=config.log_level, log_format=config.log_format)
        return await app_held.run(config, held)
    except AlluxioLikeError as error:
        line = " ".join(str(error).split())
        held.tell_failed(line)
        print(f"alluxio-like: {line}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, InvalidArgument) else 1
    except Exception as error:
        held.tell_failed(f"{type(error).__name__}: {error}")
        log.exception("the daemon failed")
        return 1
    finally:
        held.close()


if __name__ == "__main__":
    setup_logging("fuse")
    pauses.keep_short()
    raise_limit()
    sys.exit(uvloop.run(_run(sys.argv[1:])))
