"""When what is written gets to the store: policies of mounts and paths, and the commands that wait and ask for it, on a mount."""

import os
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import StackMaker
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.stack import Stack

pytestmark = pytest.mark.mount

APPENDS = 1000 if os.environ.get("ALLUXIO_LIKE_TEST_SOAK") else 300


def get_trouble(stack: Stack, path: str) -> tuple[int, str]:
    """What a wait that gives up at once says."""
    done = stack.try_command("alluxio-like", "fs", "wait", path, "--timeout", "200ms")
    return done.returncode, done.stderr


def test_only_cached_until_it_is_asked_for(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    stack = make_stack("-o", "write=cache")
    place = stack.mountpoint
    (place / "d").mkdir()
    (place / "d" / "a").write_bytes(b"first")
    (place / "b").write_bytes(b"second")
    os.rename(place / "d", place / "e")  # noqa: PTH104 - the call itself
    assert (place / "e" / "a").read_bytes() == b"first"
    found = stack.run_command("alluxio-like", "fs", "wait", str(place))
    assert (found["files"], found["kept_files"], found["kept_bytes"], found["steps"]) == (2, 2, 11, 0)
    with pytest.raises(LookupError):
        s3_server.get(s3_bucket, "b")
    status = stack.run_command("cache", "status", "/e")
    assert status["unpersisted"]["files"] == 1
    assert stack.run_command("alluxio-like", "fs", "persist", str(place / "e")) == {"files": 1, "out_of_reach": 0}
    assert s3_server.get(s3_bucket, "e/a") == b"first"
    with pytest.raises(LookupError):
        s3_server.get(s3_bucket, "b")
    assert "only to be cached" in stack.try_command("cache", "status", "/").stdout
    refused = stack.try_command("alluxio-like", "unmount", "/")
    assert refused.returncode == 1
    assert "--force" in refused.stderr


def test_a_path_has_a_policy_of_its_own(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    stack = make_stack("-o", "write=cache")
    place = stack.mountpoint
    (place / "kept" / "deep").mkdir(parents=True)
    stack.run_command("cache", "policy", str(place / "kept"), "through")
    found = stack.run_command("cache", "policy", "/kept/deep")
    assert found == {"path": "/kept/deep", "policy": "through", "set_at": "/kept"}
    (place / "kept" / "deep" / "x").write_bytes(b"now")
    assert s3_server.get(s3_bucket, "kept/deep/x") == b"now", "a close waits for the store"
    stack.run_command("cache", "policy", "/kept", "--clear")
    (place / "kept" / "y").write_bytes(b"never")
    assert stack.run_command("cache", "policy", "/kept") == {"path": "/kept", "policy": "cache", "set_at": "/"}
    refused = stack.try_command("cache", "policy", "/kept", "back:2")
    assert refused.returncode == 2
    assert "needs 2 workers" in refused.stderr
    assert "write policy" in stack.try_command("cache", "policy", "/kept", "sometimes").stderr
    (mount,) = stack.run_command("alluxio-like", "mounts")
    assert (mount["write"], mount["write_paths"]) == ("cache", {})


def test_closes_do_not_wait_for_a_store_that_is_down(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    stack = make_stack("-o", "write=back")
    place = stack.mountpoint
    (place / "d").mkdir()
    (place / "d" / "before").write_bytes(b"before")
    stack.run_command("alluxio-like", "fs", "wait", "/")
    proxy.set_rules({"status": 503, "code": "ServiceUnavailable"})
    for number in range(5):
        (place / "d" / f"{number}").write_bytes(b"%d" % number * 1000)
    os.rename(place / "d", place / "e")  # noqa: PTH104 - the call itself
    (place / "e" / "before").unlink()
    assert sorted(os.listdir(place / "e")) == ["0", "1", "2", "3", "4"]  # noqa: PTH208
    assert (place / "e" / "3").read_bytes() == b"3" * 1000
    code, said = get_trouble(stack, "/")
    assert code == 1
    assert "not in the store" in said
    report = stack.run_command("alluxio-like", "report")
    assert report["unpersisted_files"] == 5
    proxy.reset()
    stack.run_command("alluxio-like", "fs", "wait", "/", "--timeout", "240s")
    for number in range(5):
        assert s3_server.get(s3_bucket, f"e/{number}") == b"%d" % number * 1000
    for key in ("d/before", "e/before", "d/0"):
        with pytest.raises(LookupError):
            s3_server.get(s3_bucket, key)
    assert stack.run_command("alluxio-like", "report")["journal_steps"] == 0


def test_a_close_waits_where_more_is_waiting_than_can_go(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CAP_UNPERSISTED", "true"), ("DRAIN_S", "10"), ("UPLOAD_GUESS_BYTES_S", "100")):
        monkeypatch.setenv(f"ALLUXIO_LIKE_{name}", value)
    stack = make_stack("-o", "write=back")
    for name in "abc":
        (stack.mountpoint / name).write_bytes(name.encode() * 5000)
        assert s3_server.get(s3_bucket, name) == name.encode() * 5000
    (worker,) = stack.run_command("alluxio-like", "workers")["workers"]
    # 16 MiB at the guessed speed stand against what was measured.
    assert worker["unpersisted_limit_bytes"] == pytest.approx(1000, abs=10)
    assert "TO UPLOAD" in stack.try_command("alluxio-like", "report").stdout


def test_a_directory_of_many_files_is_renamed_and_removed_at_once(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str
) -> None:
    for number in range(300):
        s3_server.put(s3_bucket, f"many/{number:03}", b"%d" % number)
    place = make_stack("-o", "write=through")
    os.rename(place.mountpoint / "many", place.mountpoint / "other")  # noqa: PTH104 - the call itself
    assert len(os.listdir(place.mountpoint / "other")) == 300  # noqa: PTH208
    assert (place.mountpoint / "other" / "123").read_bytes() == b"123"
    place.run_command("alluxio-like", "fs", "wait", "/", "--timeout", "240s")
    assert s3_server.get(s3_bucket, "other/299") == b"299"
    with pytest.raises(LookupError):
        s3_server.get(s3_bucket, "many/299")
    for number in range(300):
        Path(place.mountpoint / "other" / f"{number:03}").unlink()
    (place.mountpoint / "other").rmdir()
    place.run_command("alluxio-like", "fs", "wait", "/", "--timeout", "240s")
    assert "Contents" not in s3_server.client.list_objects_v2(Bucket=s3_bucket)


def test_open_files_are_read_on_wherever_their_bytes_go(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, workplace: Path
) -> None:
    data = os.urandom(20 << 20)
    s3_server.put(s3_bucket, "d/stored", data)
    stack = make_stack("-o", "write=cache")
    place = stack.mountpoint
    with open(place / "d" / "stored", "rb") as stored:
        assert stored.read(10) == data[:10]
        os.rename(place / "d", place / "e")  # noqa: PTH104 - the call itself
        stack.run_command("alluxio-like", "fs", "wait", "/", "--timeout", "240s")
        with pytest.raises(LookupError):
            s3_server.get(s3_bucket, "d/stored")
        stack.free("/")
        assert stored.read() == data[10:]
    (place / "e" / "local").write_bytes(data)
    with open(place / "e" / "local", "rb") as local:
        stack.run_command("alluxio-like", "fs", "persist", "/")
        stack.free("/")
        assert local.read() == data
    assert s3_server.get(s3_bucket, "e/local") == data


def test_a_file_that_is_appended_to_hundreds_of_times_goes_a_few_times(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    log = make_stack("-o", "write=through").mountpoint / "log"
    log.write_bytes(b"begin\n")
    assert s3_server.get(s3_bucket, "log") == b"begin\n", "a new file's close waits for the store"
    proxy.reset_log()
    began = time.monotonic()
    content = b"begin\n"
    longest_s, last = 0.0, began
    for number in range(APPENDS):
        line = b"%06d %s\n" % (number, b"x" * 900)
        with log.open("ab") as file:
            file.write(line)
        content += line
        now = time.monotonic()
        longest_s, last = max(longest_s, now - last), now
    took_s = last - began
    assert log.read_bytes() == content
    wait_until("the whole log in the store", lambda: s3_server.get(s3_bucket, "log") == content, timeout_s=240)
    # A pause of two seconds has it sent, then only one of four, and so on up to a minute; and each minute without one.
    puts = proxy.get_log("PUT")
    assert 1 <= len(puts) <= 8 + (time.monotonic() - began) / 60
    sent = sum(request.body_bytes for request in puts)
    assert sent >= len(content)
    if took_s < 60 and longest_s < 2:
        assert sent <= 2 * len(content), "as long as nothing pauses it goes once"
