"""The command `fsck`: whether what is on the disks is whole.

Owns its options, its output and its exit codes, which are those of fsck(8). What is looked at is in fsck_work.py. One command a
process.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import JsonOption, print_json, report_error
from alluxio_like.errors import AlluxioLikeError, ConfigError, InvalidArgument

if TYPE_CHECKING:
    from alluxio_like.cli.fsck_work import Report
    from alluxio_like.findings import Finding

_CLEAN, _REPAIRED, _LEFT, _FAILED, _USAGE = 0, 1, 4, 8, 16


def fsck(
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="A master's home, or that of `up` with all that is in it.")
    ] = None,
    metadata: Annotated[
        str, typer.Option("--metadata", metavar="URL", help="The metadata's database: postgresql://USER@HOST/DATABASE.")
    ] = "",
    cache: Annotated[
        list[Path], typer.Option("--cache", metavar="DIR", help="A worker's cache directory. May be repeated.")
    ] = [],  # noqa: B006 (typer reads it, nobody changes it)
    online: Annotated[bool, typer.Option("--online", help="Look while master and workers run on this machine.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every cached page and compare its checksum, too.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended without losing anything.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that metadata and caches on this machine are whole.

    Names, links, parents, counts, the journal, snapshots, and what the store
    does not have yet; of caches index, files and (--verify) every byte. What
    a crash may leave behind and goes by itself is shown apart.

    \b
    Ends with 0 (clean), 1 (all of it was repaired), 4 (something is left),
    8 (it could not be looked at), 16 (wrong usage).

    \b
    Examples:
      alluxio-like fsck --home ~/.alluxio-like/s3-bucket-prefix-5b0d7c1e
      alluxio-like fsck --home /var/lib/alluxio-like --online
      alluxio-like fsck --cache /nvme0/cache --verify --repair
    """
    try:
        if repair and online:
            raise InvalidArgument("--repair needs master and workers stopped: leave out --online")
        from alluxio_like.cli.fsck_work import examine, find_places

        report = examine(find_places(home, metadata, cache, online=online), verify=verify, repair=repair)
    except AlluxioLikeError as error:
        report_error("alluxio-like fsck", error)
        is_usage = isinstance(error, InvalidArgument) and not isinstance(error, ConfigError)
        raise typer.Exit(_USAGE if is_usage else _FAILED) from None
    if as_json:
        print_json({"wrong": _list(report.wrong), "leftovers": _list(report.leftovers), "repaired": report.repaired})
    else:
        _print(report)
    sys.stdout.flush()
    if report.wrong:
        raise typer.Exit(_LEFT)
    raise typer.Exit(_REPAIRED if report.repaired else _CLEAN)


def _list(findings: "list[Finding]") -> list[dict[str, str]]:
    return [{"rule": one.rule, "message": one.message, "cure": one.cure} for one in findings]


def _print(report: "Report") -> None:
    for one in report.wrong:
        print(f"WRONG  {one.rule}: {one.message}" + (f"; cure: {one.cure}" if one.cure else ""))
    for one in report.leftovers:
        print(f"-      {one.rule}: {one.message}")
    left = f", {len(report.leftovers)} left over by a crash, harmless" if report.leftovers else ""
    mended = f", {report.repaired} repaired" if report.repaired else ""
    print(f"{len(report.wrong)} wrong{left}{mended}" if report.wrong or left or mended else "clean")
