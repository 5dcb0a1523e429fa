"""Where a mount's credentials and the cluster's token may be, and where they may not: everything that a run says or writes."""

import contextlib
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.cluster.conftest import PATIENCE_S
from tests.cluster.data import put_samples, read_epoch
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack, start_stack

pytestmark = pytest.mark.mount

WRONG = "wrong-but-secret-0123456789abcdef"


def read_command_lines() -> list[bytes]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append((entry / "cmdline").read_bytes())
    return found


def find_in_files(below: Path, needles: list[bytes]) -> set[str]:
    """Files that hold one of the needles, by their place below; fails for one that others may read."""
    found = set()
    for file in below.rglob("*"):
        if file.is_symlink() or not file.is_file() or "mnt" in file.relative_to(below).parts or file.suffix == ".given":
            continue
        data = file.read_bytes()
        if any(needle in data for needle in needles):
            assert file.stat().st_mode & 0o077 == 0, f"{file} is open to others"
            found.add(str(file.relative_to(below)))
    return found


def read_all_pages(stack: Stack) -> str:
    services = [stack.ready["master"], *stack.ready["workers"], stack.ready["fuse"]]
    pages = ""
    for service in services:
        for page in ("metrics", "healthz"):
            with urllib.request.urlopen(f"http://{service['http_address']}/{page}", timeout=60) as reply:
                pages += reply.read().decode()
    return pages


def test_no_secret_appears_anywhere_and_new_ones_are_taken_up(
    workplace: Path, s3_via_proxy: S3Server, s3_server: S3Server, s3_bucket: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 20)
    server = s3_via_proxy
    given = {"access_key": server.access_key, "secret_key": server.secret_key}
    for name, value in given.items():
        (workplace / f"{name}.given").write_text(value)
    (workplace / "wrong.given").write_text(WRONG)
    mounts = {"/": f"s3://{s3_bucket}"}
    clean = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(workplace)}
    options = [f"-oendpoint={server.endpoint}", f"-oregion={server.region}"]
    keys = [f"-o{name}=@{workplace / name}.given" for name in given]
    arguments = ["--workers", "2", "--io-timeout", f"{PATIENCE_S:g}s", "--log-level", "debug", *options]
    said = ""
    secrets = [server.secret_key, server.access_key, WRONG]
    with start_stack(workplace, mounts, clean, *arguments, *keys) as stack:
        assert read_epoch(stack.mountpoint, list(objects)) == objects

        def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
            nonlocal said
            done = stack.try_command(program, *words)
            said += done.stdout + done.stderr
            return done

        for words in ("mounts", "mounts --json", "report", "report --json", "fs ls -l /", "fs stat /train --json"):
            assert run("alluxio-like", *words.split()).returncode == 0, words
        for words in ("load / --verify --json", "jobs --json", "status / --json"):
            assert run("cache", *words.split()).returncode == 0, words
        wrong = [f"-oaccess_key=@{workplace}/access_key.given", f"-osecret_key=@{workplace}/wrong.given"]
        for more in (
            ["/x", f"s3://{s3_bucket}", *options, *wrong],
            ["/x", f"s3://{s3_bucket}", *options, f"-osecret_kee=@{workplace}/secret_key.given"],
            ["/x", f"s3://{s3_bucket}", *options, f"-oendpoint=@{workplace}/secret_key.given"],
            ["/x", f"s3://{s3_bucket}-none", *options, *keys],
            ["--update", "/", f"s3://{s3_bucket}", *options, *wrong],
        ):
            assert run("alluxio-like", "mount", *more).returncode in {1, 2}, more
        shown = read_all_pages(stack)
        token = (workplace / "home/token").read_text().strip()
        secrets.append(token)
        lines = b"".join(read_command_lines())
        for secret in secrets:
            assert secret not in shown
            assert secret.encode() not in lines
    # New ones replace the old: wrong ones are said before anything starts, right ones are taken up.
    with pytest.raises(RuntimeError, match="up"), start_stack(workplace, mounts, clean, *arguments, *wrong):
        pass
    with start_stack(workplace, mounts, clean, *arguments, *keys) as stack:
        assert read_epoch(stack.mountpoint, list(objects)) == objects
        assert stack.try_command("alluxio-like", "fs", "ls", "/").returncode == 0
    said += (workplace / "home.log").read_text()
    for secret in secrets:
        # A value given where none is to be secret may be repeated to who gave it.
        assert secret not in said.replace(f"'{server.secret_key}'", "")
    assert find_in_files(workplace, [secret.encode() for secret in secrets]) == {"home/master/secrets.json", "home/token"}
