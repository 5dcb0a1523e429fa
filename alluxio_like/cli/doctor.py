"""The command `doctor`: looks at everything that tends to be wrong, and names the cure.

Owns its options and its output; what is looked at is in diagnosis.py and checks.py. One command a process.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alluxio_like.cli.common import JsonOption, MasterOption, print_json

if TYPE_CHECKING:
    from alluxio_like.cli.checks import Check

_SIGNS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL", "skip": "-   "}


def doctor(
    master: MasterOption = "",
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", envvar="ALLUXIO_LIKE_CONFIG", help="TOML file of the services.")
    ] = None,
    cache_dir: Annotated[
        list[str], typer.Option("--cache-dir", metavar="DIR", help="Look at this directory too. May be repeated.")
    ] = [],  # noqa: B006 (typer reads it, nobody changes it)
    everything: Annotated[bool, typer.Option("--all", help="Show what is well, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong or could be faster on this machine, and name the cure.

    \b
    It changes nothing, and needs nothing that runs. Run it as the user of the
    services: some things only root can try. Ends with 1 if something fails.

    \b
    Examples:
      alluxio-like doctor
      alluxio-like doctor --cache-dir /nvme0/cache --all
    """
    from alluxio_like.cli.diagnosis import diagnose

    checks = diagnose(master, config, cache_dir)
    if as_json:
        print_json({"checks": checks, "failed": sum(one.state == "fail" for one in checks)})
    else:
        _print(checks, everything=everything)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def _print(checks: "list[Check]", *, everything: bool) -> None:
    shown = [check for check in checks if everything or check.state in {"warn", "fail"}]
    width = max((len(check.name) for check in shown), default=0)
    for check in shown:
        print(f"{_SIGNS[check.state]}  {check.name:{width}}  {check.message}" + (f"; cure: {check.cure}" if check.cure else ""))
    count = {state: sum(check.state == state for check in checks) for state in _SIGNS}
    rest = "" if everything else " (--all shows them)"
    well = f"{count['ok']} are well{rest}, {count['skip']} could not be looked at"
    print(f"{count['fail']} failed, {count['warn']} could be better, {well}")
