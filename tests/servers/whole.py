"""Whether what lies on the disks is whole, as `alluxio-like fsck` says: asked after tests that kill."""

from pathlib import Path

from alluxio_like.cli.fsck_work import examine, find_places


def assert_whole_disks(home: Path | None = None, *caches: Path, metadata: str = "", online: bool = False) -> None:
    """Nothing is wrong in a master's home (or that of `up`) and in cache directories. What a crash leaves behind may be there."""
    report = examine(find_places(home, metadata, list(caches), online=online), verify=True)
    assert not report.wrong, report.wrong
