"""What every command shares: options, output, and how an error becomes one line and an exit code.

Owns the shape of the command line (0 done, 1 failed, 2 wrong usage; --json prints one JSON value on standard output, errors are
one line on standard error). Does not talk to services. A command is one process with one thread of control.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from alluxio_like.errors import AlluxioLikeError, InvalidArgument, Unavailable, Untrusted

if TYPE_CHECKING:
    from alluxio_like.client import Client
    from alluxio_like.config import ClientConfig

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3.0
"""A guess: one try to connect takes so long at most."""
WAIT_S = 0.2
"""Between two tries, where a master is waited for."""
SILENT_S = 1.0
"""So long a wait is not worth a line."""

MasterOption = Annotated[
    str,
    typer.Option("--master", metavar="HOST:PORT", help="The master; found by itself on a machine where one is used."),
]
PathArgument = Annotated[str, typer.Argument(help="A path of the namespace, a path below a mount, or a store's URI.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]


def make_app(sentence: str, **settings: Any) -> typer.Typer:
    """A command line with our ways: plain help that keeps its line breaks, no tracebacks drawn by the library."""
    return typer.Typer(
        help=sentence,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        **settings,
    )


def run_app(app: Callable[..., Any], program: str) -> NoReturn:
    """Run a command line and end the process with its exit code."""
    # gRPC's own lines about each connection that did not come about; ours say what matters.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    for stream in (sys.stdout, sys.stderr):
        # Names are bytes: those that are not UTF-8 come out as they are.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        app(prog_name=program)
    except AlluxioLikeError as error:
        sys.exit(report_error(program, error))
    except BrokenPipeError:
        # The reader of our output has gone (head); nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(report_error(program, AlluxioLikeError(f"{where}{error.strerror or error}")))
    sys.exit(0)


def report_error(program: str, error: AlluxioLikeError) -> int:
    """Say an error in one line on standard error (and as JSON on standard output with --json); the exit code."""
    line = " ".join(str(error).split())
    print(f"{program}: {line}", file=sys.stderr)
    if "--json" in sys.argv:
        print_json({"error": {"code": error.code, "message": error.message, "subject": error.subject}})
    return 2 if isinstance(error, InvalidArgument) else 1


def to_plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses as objects, enumerations by their names in lower case."""
    if isinstance(value, Enum):
        return value.name.lower()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def print_json(value: Any) -> None:
    """One line of JSON on standard output, at once."""
    print(json.dumps(to_plain(value)), flush=True)


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end on an event loop of its own."""
    import uvloop

    return uvloop.run(coroutine)


def load_client_config(master: str = "") -> "ClientConfig":
    """The client's settings from the file named by ALLUXIO_LIKE_CONFIG, the environment, and `master` if it is not empty."""
    from alluxio_like.config import ClientConfig, load_config

    file = os.environ.get("ALLUXIO_LIKE_CONFIG")
    return load_config(ClientConfig, file=Path(file) if file else None, flags={"master": master or None})


@contextlib.asynccontextmanager
async def open_client(master: str, *paths: str, deadline: float | None = None) -> AsyncIterator["Client"]:
    """A client of the master that `master` names or that is found (finding.py).

    A master that does not answer may be starting anew: it is waited for until `deadline` (on the monotonic clock; None: for
    `master_wait_s` of the settings). Where it goes away later the client's calls wait by themselves. Raises Unavailable if nobody
    came.
    """
    from alluxio_like.cli.finding import find_master, lookup_token_file
    from alluxio_like.client import Client
    from alluxio_like.metrics import split_address

    # What a person has written into the configuration goes before whatever happens to run on this machine.
    configured = "master" in load_client_config().model_fields_set
    address, why = find_master(master, *paths, configured=configured)
    config = load_client_config(address)
    if config.token_file is None:
        config = config.model_copy(update={"token_file": lookup_token_file(config.master)})
    host, port = split_address(config.master)
    if deadline is None:
        deadline = time.monotonic() + config.master_wait_s
    if not await _wait_listening(host, port, deadline, lambda: _say_waiting(config.master)):
        raise Unavailable(
            f"no master answers at {config.master} ({why}): start one with 'alluxio-like up' or give --master HOST:PORT"
        )
    client = Client.open(config)
    telling = asyncio.create_task(_tell_away(client, config.master), name="tell that the master is away")
    try:
        yield client
    except Unavailable as error:
        if client.master_away_s and not isinstance(error, Untrusted):
            raise Unavailable(
                f"the master at {config.master} went away, and was not back in {config.io_timeout_s:g} s: "
                "see its log, and repeat the command when it is there again"
            ) from error
        raise
    finally:
        telling.cancel()
        await client.close()


async def _tell_away(client: "Client", address: str) -> None:
    """Say once that the master is waited for, where it goes away under a command."""
    while client.master_away_s < SILENT_S:
        await asyncio.sleep(SILENT_S / 4)
    _say_waiting(address)


async def _wait_listening(host: str, port: int, deadline: float, say: Callable[[], object]) -> bool:
    """Whether somebody listens there, now or until `deadline`; `say` is called once if that takes a while."""
    saying = asyncio.get_running_loop().call_later(SILENT_S, say)
    patience_s = CONNECT_TIMEOUT_S
    try:
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    _, writer = await asyncio.open_connection(host, port)
                writer.close()
                return True
            except (OSError, TimeoutError):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                await asyncio.sleep(min(WAIT_S, left_s))
                patience_s = min(CONNECT_TIMEOUT_S, max(deadline - time.monotonic(), WAIT_S))
    finally:
        saying.cancel()


def _say_waiting(address: str) -> None:
    print(f"waiting for the master at {address}", file=sys.stderr, flush=True)


async def to_known_path(client: "Client", path: str) -> str:
    """A path or URI as a path of the namespace."""
    from alluxio_like.cli.finding import match_uri, to_namespace_path

    path = to_namespace_path(path)
    if "://" not in path:
        return path
    return match_uri(path, [(mount.path, mount.uri) for mount in await client.list_mounts()])
