"""The command line `alluxio-like`.

Owns which commands there are. Imports nothing heavy: each command imports what it needs when it runs.
"""

from typing import Annotated, NoReturn

import typer

from alluxio_like import __version__
from alluxio_like.cli import backup, doctor, fs, fsck, mounts, quota, report, services, snapshot, top, trash, up, why, writing
from alluxio_like.cli.common import make_app, run_app

app = make_app(
    """A distributed caching file system for AI training.

\b
The first minute:
  alluxio-like up s3://bucket/prefix /mnt/data     mount a bucket here
  cache load /mnt/data                             warm all of it
  alluxio-like report                              see what there is

A master that does not answer, such as one that is being replaced, is waited for: 10 s, or ALLUXIO_LIKE_MASTER_WAIT_S."""
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"alluxio-like {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the release.")] = False,
) -> None:
    pass


app.command("up")(up.up)
app.command("master")(services.run_master)
app.command("worker")(services.run_worker)
app.command("fuse")(services.run_fuse)
app.command("holder")(services.run_holder)
app.command("csi")(services.run_csi)
app.command("mount")(mounts.mount)
app.command("unmount")(mounts.unmount)
app.command("mounts")(mounts.mounts)
fs.app.command("wait")(writing.fs_wait)
fs.app.command("persist")(writing.fs_persist)
app.add_typer(fs.app, name="fs")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(quota.app, name="quota")
app.add_typer(trash.app, name="trash")
app.command("report")(report.report)
app.command("workers")(report.workers)
app.command("top")(top.top)
app.command("why")(why.why)
app.command("doctor")(doctor.doctor)
app.command("fsck")(fsck.fsck)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)


def main() -> NoReturn:
    """Entry point of `alluxio-like`."""
    run_app(app, "alluxio-like")


if __name__ == "__main__":
    main()
