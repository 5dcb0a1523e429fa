"""Commands about quotas: set, list, clear.

Owns their options and output; the master counts and refuses. One command a process.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import JsonOption, MasterOption, make_app, open_client, print_json, run_async, to_plain
from alluxio_like.cli.finding import to_namespace_path
from alluxio_like.cli.render import print_table, show_name, show_size
from alluxio_like.config import parse_size
from alluxio_like.errors import InvalidArgument

if TYPE_CHECKING:
    from alluxio_like.rpc.quotas import Quota

app = make_app("Limit how many bytes and files there may be below a directory.")

DirectoryArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="A directory of the namespace, or a path below the mount.")
]
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@app.command("set")
def set_(
    path: DirectoryArgument,
    max_bytes: Annotated[str, typer.Option("--bytes", metavar="SIZE", help="Bytes of all files, such as 2TB.")] = "",
    max_files: Annotated[str, typer.Option("--files", metavar="COUNT", help="Files and directories, such as 5M.")] = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give a directory a quota, or another one: what is not named is not limited.

    All quotas above a file hold for it. What would be too much is refused with EDQUOT. What is there already is counted in the
    background, and nothing is ever removed.

    \b
    Examples:
      alluxio-like quota set /data/users/ann --bytes 2TB --files 5M
      alluxio-like quota set /mnt/data/scratch --bytes 500GB
    """

    async def work() -> "Quota":
        wanted = to_namespace_path(path)
        async with open_client(master, path) as client:
            return await client.quotas.set_quota(
                wanted, parse_size(max_bytes) if max_bytes else None, parse_count(max_files) if max_files else None
            )

    _show([run_async(work())], as_json=as_json, single=True)


@app.command("list")
def list_(
    path: Annotated[str, typer.Argument(help="Those that hold there; all there are without one.")] = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Quotas, and what is used of them.

    \b
    Examples:
      alluxio-like quota list
      alluxio-like quota list /data/users/ann/run-7
    """

    async def work() -> "list[Quota]":
        wanted = to_namespace_path(path) if path else ""
        async with open_client(master, *([path] if path else [])) as client:
            return await client.quotas.list_quotas(wanted)

    _show(run_async(work()), as_json=as_json)


@app.command()
def clear(path: DirectoryArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Take a directory's quota away.

    \b
    Example:
      alluxio-like quota clear /data/users/ann
    """

    async def work() -> None:
        async with open_client(master, path) as client:
            await client.quotas.clear_quota(to_namespace_path(path))

    run_async(work())
    if as_json:
        print_json({})


def parse_count(text: str) -> int:
    """A number, or one of thousands (K), millions (M) or milliards (G). Raises InvalidArgument."""
    number, unit = text.strip(), ""
    if number[-1:].upper() in _UNITS:
        number, unit = number[:-1], number[-1:].upper()
    try:
        count = float(number) * _UNITS[unit]
    except ValueError:
        count = -1.0
    if not 0 <= count < 1 << 62:
        raise InvalidArgument("a count is a number such as 500000, 500K or 5M", subject=text)
    return int(count)


def _show(found: "list[Quota]", *, as_json: bool, single: bool = False) -> None:
    if as_json:
        plain = [to_plain(one) for one in found]
        print_json(plain[0] if single else plain)
        return
    rows = [
        [
            show_name(one.path),
            show_size(one.used_bytes),
            "-" if one.max_bytes is None else show_size(one.max_bytes),
            f"{one.used_files:,}",
            "-" if one.max_files is None else f"{one.max_files:,}",
            "counting" if one.counting else "counted",
        ]
        for one in found
    ]
    print_table(["PATH", "BYTES", "OF", "FILES", "OF", "STATE"], rows)
