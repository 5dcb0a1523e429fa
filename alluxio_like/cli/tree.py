"""Commands about the namespace: mount, unmount, mounts, and `fs`.

Owns their options and output; everything they say comes from the master. One command a process.
"""

import asyncio
import os
import stat
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alluxio_like.cli.common import JsonOption, MasterOption, make_app, open_client, print_json, run_async, to_plain
from alluxio_like.cli.finding import match_uri, to_namespace_path
from alluxio_like.cli.render import print_table, show_name, show_percent, show_seconds, show_size
from alluxio_like.cli.waiting import WaitOption, get_deadline
from alluxio_like.config import parse_duration
from alluxio_like.errors import (
    AlreadyExists,
    Corrupt,
    InvalidArgument,
    IsADirectory,
    NotFound,
    StoreError,
    Unavailable,
    Unsupported,
)
from alluxio_like.types import Entry, Kind

if TYPE_CHECKING:
    from alluxio_like.client import Client
    from alluxio_like.rpc.messages import ArchiveStatus

fs = make_app("Look at the namespace: ls, stat, cat, get, restore, du, locate, checksum, sync, sync-interval, wait, persist.")

PathArgument = Annotated[str, typer.Argument(help="A path of the namespace, a path below a mount, or a store's URI.")]
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

_CHUNK_BYTES = 8 << 20
_ASIDE_S = 2.0
"""What a store gets to add what is not known without it. A guess."""


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


async def to_known_path(client: "Client", path: str) -> str:
    """A path or URI as a path of the namespace."""
    path = to_namespace_path(path)
    if "://" not in path:
        return path
    return match_uri(path, [(mount.path, mount.uri) for mount in await client.list_mounts()])


def mount(
    path: Annotated[str, typer.Argument(help="Where in the namespace.", show_default=False)] = "",
    uri: Annotated[
        str,
        typer.Argument(help="What: s3://bucket/prefix, gs://bucket, az://container or file:///directory.", show_default=False),
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


@fs.command("ls")
def fs_ls(
    path: PathArgument = "/",
    long: Annotated[bool, typer.Option("-l", help="Mode, owner, size and time too.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Ask the store first, whatever the sync interval says.")] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """List a directory, as it comes; with --json one object a line.

    \b
    Examples:
      alluxio-like fs ls /data
      alluxio-like fs ls -l s3://bucket/prefix
      alluxio-like fs ls --sync /data/new
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            known_path = await to_known_path(client, path)
            if sync:
                await client.sync_path(known_path)
            entry = await client.get_path(known_path)
            if entry.attr.kind is not Kind.DIRECTORY:
                _show_entry(entry, long, as_json)
                return
            async for child in client.iter_dir(entry.attr.inode):
                _show_entry(child, long, as_json)

    run_async(run())


def _show_entry(entry: Entry, long: bool, as_json: bool) -> None:
    attr = entry.attr
    if as_json:
        print_json(entry)
        return
    name = show_name(entry.name) + ("/" if attr.kind is Kind.DIRECTORY else "")
    if not long:
        print(name)
        return
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(attr.mtime_ns / 1e9))
    kind = stat.S_IFDIR if attr.kind is Kind.DIRECTORY else stat.S_IFLNK if attr.kind is Kind.SYMLINK else stat.S_IFREG
    print(f"{stat.filemode(kind | attr.mode)} {attr.uid:5} {attr.gid:5} {attr.size:14} {when} {name}")


@fs.command("stat")
def fs_stat(
    path: PathArgument,
    sync: Annotated[bool, typer.Option("--sync", help="Ask the store first.")] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Everything that is known of one file or directory.

    \b
    Example:
      alluxio-like fs stat /data/train/0001.tar
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            entry = await client.get_path(await to_known_path(client, path), sync=sync)
            archive = await _get_archive(client, entry)
        if as_json:
            print_json({**to_plain(entry), "archive": to_plain(archive)})
            return
        attr = entry.attr
        rows = [("kind", attr.kind.name.lower()), ("mode", f"{attr.mode:04o}"), ("owner", f"{attr.uid}:{attr.gid}")]
        rows += [
            ("size", f"{attr.size} ({show_size(attr.size)})"),
            ("modified", time.ctime(attr.mtime_ns / 1e9)),
            ("inode", str(attr.inode)),
        ]
        if entry.ref:
            rows += [("version", str(attr.version)), ("mount", str(entry.ref.mount_id)), ("key", show_name(entry.ref.key))]
            rows += [("fingerprint", entry.ref.fingerprint.token), ("pinned", "yes" if entry.ref.pinned else "no")]
        if archive:
            rows.append(("archive", show_archive(archive)))
        for name, value in rows:
            print(f"{name:12} {value}")

    run_async(run())


async def _get_archive(client: "Client", entry: Entry) -> "ArchiveStatus | None":
    """What the store says of a file's archive; None where there is none, or where the store does not say so at once."""
    if entry.ref is None:
        return None
    try:
        async with asyncio.timeout(_ASIDE_S):
            return await client.get_archive_status(entry.ref)
    except (Unsupported, NotFound, StoreError, Unavailable, TimeoutError):
        return None


def show_archive(status: "ArchiveStatus") -> str:
    """The state of a file's archive, for a person."""
    until = f" until {time.ctime(status.until_ns / 1e9)}" if status.until_ns else ""
    return f"{status.state}{until} ({status.storage_class})" if status.storage_class else status.state


@fs.command("restore")
def fs_restore(
    path: PathArgument,
    days: Annotated[int, typer.Option("--days", min=1, help="How long it is to stay readable.")] = 7,
    tier: Annotated[
        str, typer.Option("--tier", help="Speed and price, by the store's words: of S3 Standard, Bulk or Expedited.")
    ] = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ask the store for the return of an archived file, which takes minutes to hours; `fs stat` shows how it stands.

    Asked for again, or for what can be read, it does nothing. The store bills it.

    \b
    Example:
      alluxio-like fs restore /data/2019/train.tar --days 3 --tier Bulk
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            entry = await client.get_path(await to_known_path(client, path))
            if entry.ref is None:
                raise IsADirectory("only files are asked back, one by one", subject=path)
            status = await client.restore(entry.ref, days, tier)
        print_json(status) if as_json else print(f"{show_name(path)}: {show_archive(status)}")

    run_async(run())


@fs.command("cat")
def fs_cat(path: PathArgument, master: MasterOption = "") -> None:
    """Write a file's bytes to standard output.

    \b
    Example:
      alluxio-like fs cat /data/labels.json | head
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            entry = await client.get_path(await to_known_path(client, path))
            await _copy(client, entry, 1)

    run_async(run())


async def _copy(client: "Client", entry: Entry, descriptor: int) -> None:
    if entry.attr.kind is Kind.DIRECTORY:
        raise IsADirectory("this is a directory", subject=entry.name)
    reader = client.open_file(entry)
    try:
        offset = 0
        while offset < entry.attr.size:
            data = memoryview(await reader.read(offset, _CHUNK_BYTES))
            if not data:
                raise Corrupt(f"the file ended at {offset} of {entry.attr.size} bytes", subject=entry.name)
            offset += len(data)
            # A slow reader of our output must not stop read-ahead: the write waits in a thread.
            while data:
                data = data[await asyncio.to_thread(os.write, descriptor, data) :]
    finally:
        await reader.close()


@fs.command("get")
def fs_get(
    path: PathArgument,
    target: Annotated[Path, typer.Argument(help="Local file or directory.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    master: MasterOption = "",
) -> None:
    """Copy a file out of the namespace. The local file appears only when it is whole.

    \b
    Example:
      alluxio-like fs get /data/model.bin /tmp/
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            entry = await client.get_path(await to_known_path(client, path))
            place = target / entry.name if target.is_dir() else target
            if place.exists() and not force:
                raise AlreadyExists(f"{place} is there: --force writes over it", subject=str(place))
            part = place.with_name(f".{place.name[:200]}.{os.getpid()}.part")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                await _copy(client, entry, descriptor)
                part.replace(place)
            finally:
                os.close(descriptor)
                part.unlink(missing_ok=True)

    run_async(run())


@fs.command("du")
def fs_du(
    path: PathArgument = "/",
    sync: Annotated[bool, typer.Option("--sync", help="List all of it first, whatever is known.")] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Files and bytes known below a path, and how much of it is cached.

    \b
    Example:
      alluxio-like fs du --sync /data/train
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            known_path = await to_known_path(client, path)
            if sync:
                await client.sync_path(known_path, recursive=True)
            found = await client.get_cache_status(known_path)
        if as_json:
            print_json(found)
            return
        part = show_percent(found.cached_bytes, found.known_bytes)
        print(
            f"{found.files:,} files, {show_size(found.known_bytes)}, {part} cached"
            + ("" if found.complete else "; not all of it is listed yet (fs du --sync lists it)")
        )

    run_async(run())


@fs.command("locate")
def fs_locate(path: PathArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """Which workers hold which blocks of a file.

    \b
    Example:
      alluxio-like fs locate /data/train/0001.tar
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            entry = await client.get_path(await to_known_path(client, path))
            if entry.ref is None:
                raise IsADirectory("only files have blocks: cache status tells of directories", subject=path)
            found = (await client.locate([entry.ref.file_id]))[0]
            addresses = {worker.worker_id: worker.address for worker in (await client.get_cluster()).workers}
        if as_json:
            print_json(found)
            return
        rows = [
            [
                str(b.block),
                addresses.get(b.worker_id, "?"),
                str(b.present_bits.bit_count()),
                show_size(b.present_bytes),
                b.worker_id,
            ]
            for b in found
        ]
        print_table(["BLOCK", "WORKER", "PAGES", "BYTES", "ID"], rows, left=(1, 4))
        if not rows:
            print("nothing of it is cached", file=sys.stderr)

    run_async(run())


@fs.command("checksum")
def fs_checksum(path: PathArgument, master: MasterOption = "", as_json: JsonOption = False) -> None:
    """The xxh3-128 checksum of a file's bytes, as `xxh128sum` prints it. Reads all of the file.

    \b
    Example:
      alluxio-like fs checksum /data/model.bin
    """
    import xxhash

    async def run() -> None:
        digest = xxhash.xxh3_128()
        async with open_client(master, path) as client:
            entry = await client.get_path(await to_known_path(client, path))
            if entry.attr.kind is Kind.DIRECTORY:
                raise IsADirectory("this is a directory", subject=path)
            reader = client.open_file(entry)
            try:
                offset = 0
                while offset < entry.attr.size:
                    data = await reader.read(offset, _CHUNK_BYTES)
                    digest.update(data)
                    offset += len(data)
            finally:
                await reader.close()
        print_json({"path": path, "xxh128": digest.hexdigest()}) if as_json else print(f"{digest.hexdigest()}  {show_name(path)}")

    run_async(run())


@fs.command("sync")
def fs_sync(
    path: PathArgument,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All known directories below it too.")] = False,
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """Ask the store again about a path, whatever the sync interval says.

    \b
    Example:
      alluxio-like fs sync -r /data/train
    """

    async def run() -> None:
        async with open_client(master, path) as client:
            found = await client.sync_path(await to_known_path(client, path), recursive=recursive)
        if as_json:
            print_json(found)
            return
        print(f"{found.directories:,} directories: {found.added:,} added, {found.removed:,} removed, {found.replaced:,} replaced")

    run_async(run())


@fs.command("sync-interval")
def fs_sync_interval(
    path: PathArgument,
    interval: Annotated[
        str, typer.Argument(metavar="[TIME]", help="30s, 5m, 0 (ask each time), never, or default (as above it).")
    ] = "",
    master: MasterOption = "",
    as_json: JsonOption = False,
) -> None:
    """How long the store's listings of a directory, and of all below it, are believed; with TIME set it.

    It holds below the directory down to where another one is set, and goes before the mount's.

    \b
    Examples:
      alluxio-like fs sync-interval /data/incoming 10s
      alluxio-like fs sync-interval /data/archive never
      alluxio-like fs sync-interval /data/incoming
    """

    async def run() -> None:
        seconds = parse_sync_interval("" if interval == "default" else interval)
        async with open_client(master, path) as client:
            known_path = await to_known_path(client, path)
            if interval:
                found = await client.set_sync_interval(known_path, seconds)
            else:
                found = await client.get_sync_interval(known_path)
        if as_json:
            print_json(found)
            return
        where = f"set at {show_name(found.set_at)}" if found.set_at else "the default"
        print(f"{show_interval(found.interval_s)} ({where})")

    run_async(run())


__all__ = ["fs", "mount", "mounts", "unmount"]
