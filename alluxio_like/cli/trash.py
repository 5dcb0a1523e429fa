"""Commands about the trash: on, off, list, restore, empty.

Owns their options and output; the master keeps and ends things. One command a process.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import JsonOption, MasterOption, make_app, open_client, print_json, run_async, to_plain
from alluxio_like.cli.finding import to_namespace_path
from alluxio_like.cli.render import count_files, print_table, show_name, show_size
from alluxio_like.config import parse_duration

if TYPE_CHECKING:
    from alluxio_like.rpc.trash import TrashPage

app = make_app("Keep removed files for a while, so that they can be had back.")

DirectoryArgument = Annotated[
    str, typer.Argument(metavar="PATH", help="A directory of the namespace, or a path below the mount.")
]


@app.command()
def on(
    path: DirectoryArgument,
    keep: Annotated[str, typer.Option("--keep", metavar="TIME", help="How long what is removed is kept, such as 7d or 12h.")],
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Keep what is removed below a directory, or replaced by a rename, from now on.

    It goes into .trash in the root of its mount, which the mount's owner can read and no listing shows. There it still
    takes the store's space, and no quota's. Directories and what is overwritten in place are not kept.

    \b
    Example:
      alluxio-like trash on /data/users --keep 7d
    """

    async def work() -> None:
        async with open_client(master, path) as client:
            await client.trash.keep(to_namespace_path(path), parse_duration(keep))

    run_async(work())
    if as_json:
        print_json({})


@app.command()
def off(path: DirectoryArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Take a directory's setting away; what is in the trash stays until its time.

    \b
    Example:
      alluxio-like trash off /data/users
    """

    async def work() -> None:
        async with open_client(master, path) as client:
            await client.trash.stop_keeping(to_namespace_path(path))

    run_async(work())
    if as_json:
        print_json({})


@app.command("list")
def list_(
    path: Annotated[str, typer.Argument(help="What was removed below it; anywhere without one.")] = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """What is in the trash, the oldest first, and for which directories it is turned on.

    \b
    Example:
      alluxio-like trash list /data/users/ann
    """

    async def work() -> "TrashPage":
        async with open_client(master, *([path] if path else [])) as client:
            return await client.trash.list(to_namespace_path(path) if path else "")

    page = run_async(work())
    if as_json:
        print_json(to_plain(page))
        return
    for setting in page.settings:
        print(f"on below {show_name(setting.path)}: kept for {setting.keep_s / 86400:g} days")
    rows = [
        [show_name(one.entry), show_size(one.size), _show_time(one.removed_ns), _show_time(one.expires_ns), show_name(one.path)]
        for one in page.entries
    ]
    print_table(["ENTRY", "SIZE", "REMOVED", "GOES", "PATH"], rows)
    if page.more:
        print("there are more: name a directory")


@app.command()
def restore(
    entry: Annotated[str, typer.Argument(metavar="ENTRY", help="As `trash list` names it, or the path where it was.")],
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give a removed file its name back; of a path, the one that was removed last. Nothing is overwritten.

    \b
    Examples:
      alluxio-like trash restore 1f3-model.pt
      alluxio-like trash restore /data/users/ann/model.pt
    """

    async def work() -> str:
        wanted = to_namespace_path(entry) if "/" in entry else entry
        async with open_client(master, *([entry] if "/" in entry else [])) as client:
            return await client.trash.restore(wanted)

    path = run_async(work())
    if as_json:
        print_json({"path": path})
        return
    print(f"{show_name(path)} is back")


@app.command()
def empty(path: DirectoryArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """End now what was removed below a directory: it cannot be had back.

    \b
    Example:
      alluxio-like trash empty /data/users/ann
    """

    async def work() -> int:
        async with open_client(master, path) as client:
            return await client.trash.empty(to_namespace_path(path))

    count = run_async(work())
    if as_json:
        print_json({"files": count})
        return
    print(f"{count_files(count)} removed for good")


def _show_time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
