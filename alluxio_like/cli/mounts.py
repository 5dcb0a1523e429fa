"""Commands of the mount table: mount, unmount, mounts.

Owns their options and output, and how options of stores and intervals are written; everything they say comes from the master.
One command a process.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alluxio_like.cli.common import (
    JsonOption,
    MasterOption,
    open_client,
    print_json,
    run_async,
)
from alluxio_like.cli.render import print_table, show_name, show_seconds
from alluxio_like.cli.waiting import WaitOption, get_deadline
from alluxio_like.config import parse_duration
from alluxio_like.errors import (
    InvalidArgument,
)

if TYPE_CHECKING:
    pass

OptionsOption = Annotated[
    list[str],
    typer.Option("-o", metavar="KEY=VALUE", help="Option of the store; KEY=@FILE reads the value from a file. May be repeated."),
]
MountOptionsOption = Annotated[
    list[str],
    typer.Option(
        "-o",
        metavar="KEY=VALUE",
        help="Option of the store; -o help lists them. KEY=@FILE reads the value from a file now; KEY=file:/PATH and "
        "KEY=env:NAME have the master and the workers read a secret. May be repeated.",
    ),
]
SyncOption = Annotated[
    str,
    typer.Option("--sync-interval", metavar="TIME", help="How long a listing is believed: 30s, 5m, 0 (ask each time) or never."),
]


def parse_options(options: list[str]) -> dict[str, str]:
    """-o key=value, each its own, as a mapping; @FILE values are read. Raises InvalidArgument."""
    parsed = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"-o {key or text}: write -o KEY=VALUE", subject=key)
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text().strip()
            except OSError as error:
                raise InvalidArgument(f"-o {key}: cannot read the file {value[1:]} ({error.strerror})", subject=key) from None
        parsed[key] = value
    return parsed


def parse_sync_interval(text: str) -> float:
    """Seconds as the master wants them: 0 for its default (empty text), negative for never, a moment for 0."""
    if not text:
        return 0.0
    if text == "never":
        return -1.0
    return max(parse_duration(text), 1e-3)


def mount(
    path: Annotated[str, typer.Argument(help="Where in the namespace.", show_default=False)] = "",
    uri: Annotated[
        str,
        typer.Argument(
            help="What: s3://bucket/prefix, gs://bucket, az://container, hdfs://host/path, cephfs:///path or file:///directory.",
            show_default=False,
        ),
    ] = "",
    options: MountOptionsOption = [],  # noqa: B006
    sync_interval: SyncOption = "",
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not ask the store whether it answers.")] = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Change single options of what is mounted there, such as credentials: KEY=VALUE sets one, KEY= takes it away, "
            "all others stay; nothing that is cached is lost.",
        ),
    ] = False,
    declared: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Mount all that a file declares, or update it where it is mounted already."),
    ] = None,
    wait: WaitOption = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Mount a store into the namespace: to be read alone, or with -o write= also to be written.

    -o help lists the options of all stores; with the store in front (mount s3:// -o help) its own.

    Credentials come from the AWS chain of the workers and the master (environment, profile, instance) or from -o; they are kept
    unreadable to others and never shown. A secret may also be named: file:/path or env:NAME is looked up where the master and the
    workers run, and again when the file changes.

    \b
    Examples:
      alluxio-like mount s3:// -o help
      alluxio-like mount /data s3://bucket/prefix
      alluxio-like mount /ceph s3://bucket -o endpoint=http://10.0.0.5:7480 \\
          -o access_key=AK -o secret_key=@/etc/ceph.key
      alluxio-like mount /data/extra file:///srv/extra --sync-interval 30s
      alluxio-like mount /ckpt s3://bucket/ckpt -o write=back:2
      alluxio-like mount --update /data -o access_key=AK -o secret_key=@/etc/new.key
      alluxio-like mount --update /data -o session_token=
      alluxio-like mount /data s3://bucket -o access_key=file:/run/secrets/s3/id -o secret_key=file:/run/secrets/s3/key
      alluxio-like mount --from mounts.json --wait 5m

    \b
    A file declares mounts as a JSON list:
      [{"path": "/data", "uri": "s3://bucket/prefix", "sync_interval": "5m", "options": {"region": "eu-central-1"}}]
    """
    from alluxio_like.cli.mount_file import mount_declared, read_mounts
    from alluxio_like.rpc.messages import MountSpec

    deadline = get_deadline(wait)
    if "help" in options:
        show_options(next((text for text in (path, uri) if "://" in text), ""), as_json)
        return
    if declared is not None:
        wanted = read_mounts(declared)

        async def run_all() -> None:
            async with open_client(master, deadline=deadline) as client:
                done = await mount_declared(client, wanted)
            if as_json:
                print_json([info for _, info in done])
            else:
                for what, info in done:
                    print(f"{what} {info.uri} at {show_name(info.path)}")
                    if info.trouble:
                        print(f"{show_name(info.path)}: {info.trouble}", file=sys.stderr)

        run_async(run_all())
        return
    if not path or not (uri or update):
        raise InvalidArgument("give the path and the store: alluxio-like mount /data s3://bucket/prefix")
    parsed = parse_options(options)
    if uri.startswith("/"):
        uri = f"file://{os.path.abspath(uri)}"  # noqa: PTH100
    spec = MountSpec(
        path=path,
        uri=uri,
        options=parsed,
        sync_interval_s=parse_sync_interval(sync_interval),
        uid=_to_number(parsed, "uid", os.getuid()),
        gid=_to_number(parsed, "gid", os.getgid()),
        skip_check=no_check,
        update=update,
        keep_others=update,
    )

    async def run() -> None:
        async with open_client(master, deadline=deadline) as client:
            info = await client.mount(spec)
        if as_json:
            print_json(info)
        else:
            print(f"{'updated' if update else 'mounted'} {info.uri} at {show_name(info.path)}")
            if info.trouble:
                print(f"{show_name(info.path)}: {info.trouble}", file=sys.stderr)
            if "write" in parsed and (warning := describe_loss(info.write)):
                print(warning, file=sys.stderr)

    run_async(run())


def describe_loss(write: str) -> str:
    """What a write policy means where a worker is lost; empty: nothing that was closed is lost with one."""
    from alluxio_like.rpc.messages_writing import WriteMode, WritePolicy

    policy = WritePolicy.parse(write) if write else WritePolicy()
    if policy.mode is WriteMode.THROUGH or policy.replicas > 1:
        return ""
    when = "until they are in the store" if policy.mode is WriteMode.BACK else "as long as they are only cached"
    return f"with {policy} files are on one worker alone {when}: losing its disk, or its machine, loses them"


def show_options(uri: str, as_json: bool) -> None:
    """The options of a store, or of all."""
    from alluxio_like.ufs.options import describe_options, list_schemes

    scheme = uri.partition("://")[0]
    known = [(name, option) for name in ([scheme] if scheme else list_schemes()) for option in describe_options(name)]
    if as_json:
        print_json([{"store": name, **asdict(option)} for name, option in known])
        return
    rows = []
    for name, option in known:
        meaning = option.help + (" (secret)" if option.secret else "")
        rows.append([f"{name}://", option.name, option.shown_kind, option.default or "-", meaning])
    print_table(["STORE", "OPTION", "VALUE", "DEFAULT", "MEANING"], rows, left=(0, 1, 2, 3, 4))


def _to_number(options: dict[str, str], name: str, default: int) -> int:
    text = options.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise InvalidArgument(f"-o {name}={text}: must be a number", subject=name)
    return int(text)


def unmount(
    path: Annotated[str, typer.Argument(help="The mount's path in the namespace.")],
    force: Annotated[
        bool, typer.Option("--force", help="Lose what was written there and is not in the store, links and extended attributes.")
    ] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Take a store out of the namespace, with all that is cached of it. The store itself is not touched.

    \b
    Example:
      alluxio-like unmount /data
    """

    async def run() -> None:
        async with open_client(master) as client:
            await client.unmount(path, force=force)
        print_json({"unmounted": path}) if as_json else print(f"unmounted {show_name(path)}")

    run_async(run())


def mounts(master: MasterOption = "", as_json: JsonOption = False) -> None:
    """List what is mounted where. Secrets are shown as ***.

    \b
    Example:
      alluxio-like mounts --json
    """

    async def run() -> None:
        async with open_client(master) as client:
            found = await client.list_mounts()
        if as_json:
            print_json(found)
            return
        print_mounts(found)
        if not found:
            print("nothing is mounted: alluxio-like mount /data s3://bucket/prefix", file=sys.stderr)

    run_async(run())


def show_interval(seconds: float) -> str:
    """A sync interval as a person reads it."""
    return "never" if seconds < 0 else "always" if seconds < 0.01 else show_seconds(seconds)


def print_mounts(found: Any) -> None:
    """Mounts as a table."""
    rows = []
    for m in found:
        sync = show_interval(m.sync_interval_s) if m.sync_interval_s else "default"
        options = ",".join(f"{key}={value}" for key, value in sorted(m.options.items()))
        rows.append([show_name(m.path), m.uri, m.write or "read-only", sync, options or "-"])
        for path in sorted({*m.sync_paths, *m.write_paths}):
            own_sync = show_interval(m.sync_paths[path]) if path in m.sync_paths else ""
            rows.append([show_name(path), "", m.write_paths.get(path, ""), own_sync, ""])
    print_table(["PATH", "STORE", "WRITE", "SYNC", "OPTIONS"], rows, left=(0, 1, 2, 4))
    for m in found:
        if m.trouble:
            print(f"{show_name(m.path)}: {m.trouble}", file=sys.stderr)
