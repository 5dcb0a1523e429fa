"""Commands about snapshots: create, list, diff, delete.

Owns their options and output; the master makes and keeps snapshots. One command a process.
"""

import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import JsonOption, MasterOption, make_app, open_client, print_json, run_async, to_plain
from alluxio_like.cli.finding import to_namespace_path
from alluxio_like.cli.render import print_table, show_name, show_size
from alluxio_like.errors import InvalidArgument

if TYPE_CHECKING:
    from alluxio_like.rpc.snapshots import Difference, Snapshot

app = make_app("Freeze the state of a tree: made in an instant, read below PATH/.snapshots/NAME.")

NamedArgument = Annotated[str, typer.Argument(metavar="PATH@NAME", help="A directory and the name of its snapshot.")]

_ELSE = "what is replaced or deleted later can be read there only while it is cached"
_OLD_VERSIONS = {
    "yes": "the store keeps old versions: what is replaced or deleted later can be read there for as long as it does",
    "no": f"the store keeps no old versions: {_ELSE}",
    "partly": f"only some of the stores below it keep old versions; in the others, {_ELSE}",
    "unknown": f"the store did not say whether it keeps old versions (S3: that needs s3:GetBucketVersioning); if not, {_ELSE}",
}
"""By rpc.snapshots.OldVersions, which is imported only by a command that runs."""


@app.command()
def create(target: NamedArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Freeze the tree below a directory, whatever its size, in an instant.

    Names, attributes and which contents they have stay as they are now, below PATH/.snapshots/NAME. Contents are not copied: one
    that is replaced or deleted later is read there from the store's older versions, where it keeps those (the command says so),
    and else only while it is cached.

    \b
    Example:
      alluxio-like snapshot create /data/train@before-cleaning
    """

    async def work() -> "Snapshot":
        path, name = _split(target)
        async with open_client(master, path) as client:
            return await client.create_snapshot(path, name, operation_id=uuid.uuid4().hex)

    made = run_async(work())
    if as_json:
        print_json(to_plain(made))
        return
    print(f"{show_name(made.path)}@{show_name(made.name)}: read it below {show_name(_get_folder(made))}")
    print(_OLD_VERSIONS[made.old_versions])
    if made.unlisted:
        print(
            f"{made.unlisted} directories below it were never listed, and are empty in it: "
            f"run `alluxio-like fs sync -r {show_name(made.path)}` before, to have them too"
        )


@app.command("list")
def list_(
    path: Annotated[str, typer.Argument(help="A directory; all there are without one.")] = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Snapshots of a directory, or all; OLD VERSIONS says whether the store keeps what is replaced or deleted.

    \b
    Example:
      alluxio-like snapshot list /data/train
    """

    async def work() -> "list[Snapshot]":
        async with open_client(master) as client:
            return await client.list_snapshots(to_namespace_path(path) if path else "")

    found = run_async(work())
    if as_json:
        print_json([to_plain(one) for one in found])
        return
    rows = [
        [
            show_name(one.path) or "(removed)",
            show_name(one.name),
            _show_time(one.created_ns),
            one.old_versions,
            show_name(_get_folder(one)),
        ]
        for one in found
    ]
    print_table(["PATH", "NAME", "CREATED", "OLD VERSIONS", "READ IT AT"], rows)


@app.command()
def diff(
    target: NamedArgument,
    other: Annotated[str, typer.Argument(help="A second snapshot's name; without one the tree as it is now.")] = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """What was added, removed and changed since a snapshot, one path a line; with --json one object a line.

    \b
    Examples:
      alluxio-like snapshot diff /data/train@monday
      alluxio-like snapshot diff /data/train@monday tuesday
    """
    signs = {"added": "+", "removed": "-", "changed": "M", "attributes": "a"}

    def show(one: "Difference") -> None:
        if as_json:
            print_json(to_plain(one))
        else:
            print(f"{signs.get(one.what, '?')} {show_name(one.path)}  {show_size(one.size)}")

    async def work() -> None:
        path, name = _split(target)
        async with open_client(master, path) as client:
            async for part in client.diff_snapshots(path, name, other.removeprefix("@")):
                for one in part:
                    show(one)

    run_async(work())


@app.command()
def delete(target: NamedArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Delete a snapshot; the tree itself stays.

    \b
    Example:
      alluxio-like snapshot delete /data/train@monday
    """

    async def work() -> None:
        path, name = _split(target)
        async with open_client(master, path) as client:
            await client.delete_snapshot(path, name, operation_id=uuid.uuid4().hex)

    run_async(work())
    if as_json:
        print_json({})


def _split(target: str) -> tuple[str, str]:
    path, at, name = target.rpartition("@")
    if not at or not path or not name:
        raise InvalidArgument(
            "name the directory and the snapshot: alluxio-like snapshot create /data/train@monday", subject=target
        )
    return to_namespace_path(path), name


def _get_folder(one: "Snapshot") -> str:
    return f"{one.path.rstrip('/')}/.snapshots/{one.name}"


def _show_time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
