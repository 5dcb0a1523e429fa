"""The daemon as a holder starts it: `python -P -m alluxio_like.fuse.daemon DESCRIPTOR`, its end of their channel.

Owns the process: its log, its event loop, and how an error becomes a line and an exit code. What it serves is app_held.py's; its
configuration comes from the holder, checked, so that a restart reads no file and parses no options.
"""

import asyncio
import logging
import socket
import sys
from typing import Any

import uvloop

from alluxio_like import pauses
from alluxio_like.config import FuseConfig
from alluxio_like.errors import AlluxioLikeError, InvalidArgument
from alluxio_like.fuse import app_held
from alluxio_like.fuse.held import Held
from alluxio_like.logs import setup_logging

log = logging.getLogger(__name__)


def _log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("unhandled in the event loop: %s", context.get("message"), exc_info=context.get("exception"))


async def _run(descriptor: int) -> int:
    asyncio.get_running_loop().set_exception_handler(_log_unhandled)
    held = Held(socket.socket(fileno=descriptor))
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
    sys.exit(uvloop.run(_run(int(sys.argv[-1]))))
