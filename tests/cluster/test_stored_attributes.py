"""Owner, mode and mtime in objects' metadata (-o attrs=object): what s3fs and rclone write is shown, and what is written here
they show."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alluxio_like.fuse.mountpoint import find_top
from tests.cluster.writing import start_written, wait_until
from tests.servers.fixtures import S3Server

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not (shutil.which("s3fs") and shutil.which("rclone")), reason="s3fs or rclone is not installed"),
]

MODE, UID, GID, MTIME_S = 0o640, 1234, 2345, 1_600_000_000
START_S = 60.0


def describe(path: Path) -> tuple[int, int, int, float]:
    """Mode, owner, group and mtime."""
    found = path.stat()
    return found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns / 1e9


def about(seconds: float) -> float:
    """A time as a number of the length that rclone writes."""
    near: float = pytest.approx(seconds, abs=1e-3)
    return near


def set_attributes(path: Path, mtime_ns: int) -> None:
    path.chmod(MODE)
    os.chown(path, UID, GID)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@contextmanager
def s3fs_mounted(server: S3Server, bucket: str, workplace: Path) -> Iterator[Path]:
    place, secret = workplace / "s3fs", workplace / "s3fs-secret"
    place.mkdir()
    secret.write_text(f"{server.access_key}:{server.secret_key}\n")
    secret.chmod(0o600)
    options = f"url={server.endpoint},use_path_request_style,passwd_file={secret},allow_other"
    with open(workplace / "s3fs.log", "ab") as log:
        process = subprocess.Popen(["s3fs", bucket, str(place), "-f", "-o", options], stdout=log, stderr=log)
    try:
        wait_until(lambda: find_top(place) is not None or process.poll() is not None, "s3fs", START_S)
        assert process.poll() is None, (workplace / "s3fs.log").read_text()
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
        process.terminate()
        process.wait(30)


def run_rclone(server: S3Server, *arguments: str) -> str:
    settings = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_S_ACCESS_KEY_ID": server.access_key,
        "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": server.secret_key,
    }
    # (rclone fails where the environment has a bundle of certificates for AWS' own tools.)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")} | settings
    command = ["rclone", *arguments]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_s3fs_and_rclone_write_is_shown_and_they_show_what_is_written_here(
    s3_server: S3Server, s3_bucket: str, workplace: Path
) -> None:
    source = workplace / "source"
    source.mkdir()
    (source / "by-rclone").write_bytes(b"rclone")
    set_attributes(source / "by-rclone", MTIME_S * 10**9 + 250_000_000)
    run_rclone(s3_server, "copy", "--metadata", str(source), f"s:{s3_bucket}/d")
    # Without --metadata it keeps the time alone.
    run_rclone(s3_server, "copyto", str(source / "by-rclone"), f"s:{s3_bucket}/d/time-alone")
    s3_server.put(s3_bucket, "d/plain", b"plain")
    with s3fs_mounted(s3_server, s3_bucket, workplace) as other:
        (other / "d" / "by-s3fs").write_bytes(b"s3fs")
        set_attributes(other / "d" / "by-s3fs", MTIME_S * 10**9 + 500_000_000)
        options = {"attrs": "object", "uid": "77", "gid": "78"}
        with start_written(workplace, f"s3://{s3_bucket}", s3_server.environment, options=options) as stack:
            here = stack.mountpoint / "data" / "d"
            assert describe(here / "by-s3fs") == (MODE, UID, GID, about(MTIME_S + 0.5))
            assert describe(here / "by-rclone") == (MODE, UID, GID, about(MTIME_S + 0.25))
            assert describe(here / "time-alone") == (0o644, 77, 78, about(MTIME_S + 0.25))
            assert describe(here / "plain")[:3] == (0o644, 77, 78)
            assert (here / "by-s3fs").read_bytes() == b"s3fs"
            with open(here / "ours", "wb", buffering=0) as out:
                out.write(b"ours")
                set_attributes(here / "ours", MTIME_S * 10**9 + 500_000_000)
            assert describe(other / "d" / "ours") == (MODE, UID, GID, about(MTIME_S + 0.5))
            (told,) = json.loads(run_rclone(s3_server, "lsjson", "--metadata", f"s:{s3_bucket}/d/ours"))
            assert told["ModTime"].startswith("2020-09-13T12:26:40.5")
            assert (told["Metadata"]["uid"], told["Metadata"]["gid"]) == (str(UID), str(GID))
            # And what is listed anew, by another mount of the bucket.
            stack.run_command("alluxio-like", "mount", "/again", f"s3://{s3_bucket}", "-oattrs=object")
            again = stack.mountpoint / "again" / "d"
            assert describe(again / "ours") == (MODE, UID, GID, about(MTIME_S + 0.5))
            # A file that somebody else writes over ours has that one's attributes.
            (other / "d" / "ours").write_bytes(b"theirs")
            (other / "d" / "ours").chmod(0o604)
            stack.run_command("alluxio-like", "fs", "sync", "/data/d")
            assert describe(here / "ours")[:3] == (0o604, UID, GID)
            assert (here / "ours").read_bytes() == b"theirs"
