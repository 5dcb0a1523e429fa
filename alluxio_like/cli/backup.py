"""The commands `backup` and `restore`: a master's metadata in one file.

Owns their options and output. What they do is in backup_work.py. One command a process.
"""

import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import JsonOption, print_json
from alluxio_like.cli.render import show_size
from alluxio_like.errors import InvalidArgument

if TYPE_CHECKING:
    from alluxio_like.cli.metadata import Metadata

_SHOWN_EVERY_S = 0.5

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
HomeOption = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="The master's home, or that of `up`.")]
MetadataOption = Annotated[
    str, typer.Option("--metadata", metavar="URL", help="The metadata's database: postgresql://USER@HOST/DATABASE.")
]


def backup(
    file: FileArgument,
    home: HomeOption = None,
    metadata: MetadataOption = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="The cluster's token, if it is not in --home.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a master's metadata into one file, while it serves or not.

    Names, attributes, what the stores do not have yet, snapshots, mounts with
    their secrets, the cluster's id and token: keep the file as you keep those
    (its mode is 0600). No content of files. Run it on the master's machine.

    \b
    Examples:
      alluxio-like backup /backup/alluxio-$(date +%F).backup --home /var/lib/alluxio-like
      alluxio-like backup /backup/a.backup --metadata postgresql://alluxio@db.example/alluxio --token-file token
    """
    from alluxio_like.cli.backup_work import write_backup

    count, size = write_backup(file, _find(home, metadata), token_file=token_file, on_progress=_Progress(0))
    if as_json:
        print_json({"pairs": count, "bytes": size})
    else:
        print(f"{file}: {count} records, {show_size(size)}")


def restore(
    file: FileArgument,
    home: HomeOption = None,
    metadata: MetadataOption = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Move aside what is in the home; delete what is in the database.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only read the backup and say whether it is whole.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a master's metadata from a backup; into a home, or a database, whichever it came from.

    The master is stopped. What programs wrote after the backup has no name
    then: what the stores have of it is listed again, what only a worker has
    stays there (docs/keeping.md).

    \b
    Examples:
      alluxio-like restore a.backup --home /var/lib/alluxio-like --replace
      alluxio-like restore a.backup --home /var/lib/alluxio-like --metadata postgresql://alluxio@db.example/alluxio
    """
    from alluxio_like.cli import backup_work

    facts = backup_work.read_facts(file)
    progress = _Progress(file.stat().st_size)
    if check:
        count = backup_work.verify(file, progress)
    else:
        count = backup_work.restore(file, _find(home, metadata), replace=replace, on_progress=progress)
    if as_json:
        print_json({"pairs": count, **facts})
        return
    made = datetime.fromtimestamp(facts["created_ns"] / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    print(f"{count} records of {made}, cluster {facts['cluster_id']}: {'whole' if check else 'restored; start the master'}")


def _find(home: Path | None, url: str) -> "Metadata":
    from alluxio_like.cli.metadata import Metadata, find_master_home

    if home is None and not url:
        raise InvalidArgument("say whose metadata: --home DIR of a master (or of `up`), or --metadata URL")
    return Metadata(find_master_home(home), url)


class _Progress:
    """A line on standard error, where that is a terminal."""

    def __init__(self, whole_bytes: int) -> None:
        self._whole_bytes = whole_bytes
        self._next = time.monotonic() + _SHOWN_EVERY_S

    def __call__(self, pairs: int, size: int) -> None:
        if not sys.stderr.isatty() or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SHOWN_EVERY_S
        share = f" ({100 * size // self._whole_bytes} %)" if self._whole_bytes else ""
        print(f"\r{pairs} records, {show_size(size)}{share} ", end="", file=sys.stderr, flush=True)
