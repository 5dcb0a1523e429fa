"""The command lines: help, usage errors, exit codes, one-line messages; and the plan of `up`."""

import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.cli import cache, main
from alluxio_like.cli.common import to_plain
from alluxio_like.cli.finding import recorded
from alluxio_like.cli.mounts import parse_options, parse_sync_interval
from alluxio_like.cli.services import parse_cache_dir
from alluxio_like.cli.up import Plan, make_plan, reserve_master_bind
from alluxio_like.errors import ConfigError, InvalidArgument
from alluxio_like.rpc.messages import Job, JobState
from alluxio_like.types import JobId


class Run:
    """One run of a command line, in this process (each of its own would take most of the time of all unit tests)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        self._monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as ended:
            {"main": main.main, "cache": cache.main}[module]()
        said = self._capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    for name in list(os.environ):
        if name.startswith("ALLUXIO_LIKE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALLUXIO_LIKE_RUN_DIR", str(tmp_path))
    # Where there is no master none will come.
    monkeypatch.setenv("ALLUXIO_LIKE_MASTER_WAIT_S", "0")
    handlers, hook = list(logging.getLogger().handlers), sys.excepthook
    yield Run(monkeypatch, capsys)
    logging.getLogger().handlers[:] = handlers
    sys.excepthook = hook


@pytest.mark.parametrize("arguments", [("up",), ("mount",), ("fs", "ls")])
def test_help_has_examples(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("main", *arguments, "--help")
    assert done.returncode == 0
    assert re.search(r"Examples?:\n +alluxio-like ", done.stdout)


def test_every_command_has_help_with_an_example_and_json() -> None:
    from typer.main import get_command

    from alluxio_like.cli.cache import app as cache_app
    from alluxio_like.cli.main import app as main_app

    def walk(command: Any, name: str) -> None:
        for child_name, child in getattr(command, "commands", {}).items():
            walk(child, f"{name} {child_name}")
        if not hasattr(command, "commands"):
            assert "Example" in (command.help or ""), name
            options = {option for parameter in command.params for option in parameter.opts}
            services = {f"alluxio-like {name}" for name in ("master", "worker", "fuse", "holder", "csi")}
            if name not in services | {"alluxio-like fs cat", "alluxio-like fs get"}:
                assert "--json" in options, name

    walk(get_command(main_app), "alluxio-like")
    walk(get_command(cache_app), "cache")


def test_help_loads_no_grpc() -> None:
    code = "import sys, alluxio_like.cli.main, alluxio_like.cli.cache; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("module", "arguments", "code", "said"),
    [
        ("cache", ("load",), 2, "give a PATH or --from-file"),
        ("cache", ("load", "/x", "--bandwidth", "fast"), 2, "is not a size: write 500MB"),
        ("cache", ("load", "--from-file", "/nonexistent/list"), 2, "cannot read the list"),
        ("cache", ("statu",), 2, "status"),
        (
            "cache",
            ("status", "/x", "--master", "127.0.0.1:1"),
            1,
            "no master answers at 127.0.0.1:1 (given by --master): start one",
        ),
        ("cache", ("status", "/x", "--master", "nonsense"), 2, "is not host:port"),
        ("main", ("up",), 2, "alluxio-like up s3://bucket/prefix /mnt/data"),
        ("main", ("up", "s3://bucket"), 2, "where to?"),
        ("main", ("up", "hdfss://bucket", "/mnt"), 2, "unknown store hdfss://; there are az://"),
        ("main", ("up", "s3://bucket", "/mnt", "-o", "endpont=x"), 2, "did you mean endpoint?"),
        ("main", ("mount", "/x", "s3://b", "-o", "endpoint"), 2, "write -o KEY=VALUE"),
        ("main", ("worker",), 2, "'home' is not set: give --home"),
        ("main", ("worker", "--home", "/x", "--set", "fetch_concurency=3"), 2, "did you mean fetch_concurrency?"),
        ("main", ("worker", "--home", "/x", "--set", "allow_root_disk=perhaps"), 2, "allow_root_disk = 'perhaps'"),
        ("main", ("fuse", "/dev/null/x", "--set", "session=pyfuse4"), 2, "session = 'pyfuse4'"),
        ("main", ("master", "--config", "/nonexistent.toml"), 2, "cannot read the configuration file"),
        ("main", ("fuse",), 2, "'mountpoint' is not set"),
    ],
)
def test_wrong_usage_gets_one_line_and_the_right_code(
    run: Run, module: str, arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    done = run(module, *arguments)
    assert said in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_masters_address_in_the_configuration_goes_before_what_runs_here(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "al.toml").write_text('[client]\nmaster = "127.0.0.1:1"\n')
    with recorded("up", master="127.0.0.1:2", mountpoint=str(tmp_path / "mnt")):
        assert "127.0.0.1:2 (running here)" in run("cache", "status", "/x").stderr
        monkeypatch.setenv("ALLUXIO_LIKE_CONFIG", str(tmp_path / "al.toml"))
        assert "127.0.0.1:1 (given by the configuration)" in run("cache", "status", "/x").stderr
        assert "127.0.0.1:2 (of the mount" in run("cache", "status", str(tmp_path / "mnt" / "x")).stderr


def test_errors_are_json_too_when_asked(run: Run) -> None:
    done = run("cache", "jobs", "--json", "--master", "127.0.0.1:1")
    assert json.loads(done.stdout)["error"]["code"] == "unavailable"
    assert done.returncode == 1


def test_version(run: Run) -> None:
    assert re.fullmatch(r"alluxio-like \d+\.\d+\.\d+\n", run("main", "--version").stdout)


def plan(**given: Any) -> Plan:
    settings: dict[str, Any] = {
        "uri": "", "mountpoint": "", "home": None, "mounts": [], "options": {}, "sync_interval": "", "workers": 1,
        "cache_size": "", "cache_dirs": [], "fuse_path": "", "bind": "", "config": None, "common": {"io_timeout_s": None},
    }  # fmt: skip
    return make_plan(**{**settings, **given})


def test_the_short_form_is_the_long_one() -> None:
    short = plan(uri="s3://bucket/prefix", mountpoint="/mnt/data")
    assert [(w.path, w.uri) for w in short.mounts] == [("/", "s3://bucket/prefix")]
    assert (short.mountpoint, short.shown_path) == ("/mnt/data", "/")
    assert short.home == plan(mounts=["/=s3://bucket/prefix"], mountpoint="/elsewhere").home


def test_a_mountpoint_that_ends_in_a_mounts_path_shows_it(tmp_path: Path) -> None:
    assert plan(mounts=["/data=s3://bucket/prefix"], mountpoint="/mnt/data").shown_path == "/data"
    assert plan(mounts=["/data=s3://bucket/prefix"], mountpoint="/mnt/al").shown_path == "/"
    assert plan(mounts=["/data=s3://bucket"], mountpoint="/mnt/data", fuse_path="/").shown_path == "/"


def test_homes_differ_by_store_and_endpoint() -> None:
    homes = {
        plan(uri=uri, mountpoint="/m", options=options).home
        for uri in ("s3://bucket", "s3://other")
        for options in ({}, {"endpoint": "http://h:1"})
    }
    assert len(homes) == 4


def test_options_go_to_the_stores_that_know_them(tmp_path: Path) -> None:
    made = plan(home=tmp_path, mounts=["/a=s3://bucket", f"/b=file://{tmp_path}"], options={"endpoint": "http://h:1", "uid": "5"})
    assert [w.options for w in made.mounts] == [{"endpoint": "http://h:1", "uid": "5"}, {"uid": "5"}]
    with pytest.raises(ConfigError, match="no option nonsense"):
        plan(home=tmp_path, mounts=[f"/b=file://{tmp_path}"], options={"nonsense": "5"})


def test_the_cache_size_is_shared_out(tmp_path: Path) -> None:
    assert plan(home=tmp_path, workers=4, cache_size="20GB").quota_bytes == 5_000_000_000
    assert (
        plan(home=tmp_path, workers=2, cache_size="20GB", cache_dirs=[tmp_path / "a", tmp_path / "b"]).quota_bytes
        == 5_000_000_000
    )


@pytest.mark.parametrize("mounts", [["data=s3://b"], ["/data"], ["/data="], ["/a=s3://bucket", "/a/=s3://other"]])
def test_wrong_mounts_are_refused(mounts: list[str], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        plan(home=tmp_path, mounts=mounts)


def test_options_can_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("S3CR3T\n")
    assert parse_options(["a=b=c", f"secret_key=@{tmp_path}/key"]) == {"a": "b=c", "secret_key": "S3CR3T"}
    with pytest.raises(InvalidArgument, match="cannot read the file"):
        parse_options(["secret_key=@/nonexistent"])


def test_small_parsers() -> None:
    assert [parse_sync_interval(text) for text in ("", "never", "5m")] == [0.0, -1.0, 300.0]
    assert 0 < parse_sync_interval("0") < 0.01
    assert parse_cache_dir("/a=2GB") == {"path": Path("/a"), "quota_bytes": 2_000_000_000}
    assert parse_cache_dir("/a") == {"path": Path("/a")}


def test_what_json_shows() -> None:
    shown = to_plain(Job(JobId("j"), JobState.DONE, paths=("/a",)))
    assert (shown["state"], shown["paths"], shown["spec"]["replicas"]) == ("done", ["/a"], 1)
    json.dumps(shown)


def test_two_that_start_at_once_choose_different_ports() -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        address = reserve_master_bind("", first)
        assert reserve_master_bind("", second) != address
        first.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.bind(f"\0alluxio-like/{address}")  # given back
    with contextlib.ExitStack() as held:
        assert reserve_master_bind("127.0.0.1:5", held) == "127.0.0.1:5"


@pytest.mark.parametrize("words", [("fuse",), ("holder",), ("csi", "--mountpoint")])
def test_a_mount_point_is_taken_without_a_look_at_it(run: Run, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount whose daemons are all gone does not answer, and these are who would serve it again."""
    asked: list[str] = []
    stat = os.stat

    def look(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        asked.append(str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", look)
    done = run("main", *words, "/mnt/of-ours", "--config", "/none/there.toml")
    assert done.returncode == 2, done.stderr
    assert "/none/there.toml" in asked
    assert "/mnt/of-ours" not in asked
