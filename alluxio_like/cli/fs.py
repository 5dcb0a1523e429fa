"""`alluxio-like fs`: what is in the namespace, file by file.

Owns the commands' options and output; everything they say comes from the master, bytes from workers and stores. One command
a process.
"""

import asyncio
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import (
    JsonOption,
    MasterOption,
    PathArgument,
    make_app,
    open_client,
    print_json,
    run_async,
    to_known_path,
    to_plain,
)
from alluxio_like.cli.mounts import parse_sync_interval, show_interval
from alluxio_like.cli.render import print_table, show_name, show_percent, show_size
from alluxio_like.errors import (
    AlreadyExists,
    Corrupt,
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

app = make_app("Look at the namespace: ls, stat, cat, get, restore, du, locate, checksum, sync, sync-interval, wait, persist.")


_CHUNK_BYTES = 8 << 20
_ASIDE_S = 2.0
"""What a store gets to add what is not known without it. A guess."""


@app.command("ls")
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


@app.command("stat")
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


@app.command("restore")
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


@app.command("cat")
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


@app.command("get")
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


@app.command("du")
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


@app.command("locate")
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


@app.command("checksum")
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


@app.command("sync")
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
        noun = "directory" if found.directories == 1 else "directories"
        print(f"{found.directories:,} {noun}: {found.added:,} added, {found.removed:,} removed, {found.replaced:,} replaced")

    run_async(run())


@app.command("sync-interval")
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
