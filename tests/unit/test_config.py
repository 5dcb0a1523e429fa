"""Where settings come from, which source wins, and what wrong ones are answered with."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like.config import (
    ClientConfig,
    FuseConfig,
    MasterConfig,
    TlsConfig,
    WorkerConfig,
    load_config,
    parse_duration,
    parse_size,
    save_config,
    write_ready_file,
)
from alluxio_like.errors import ConfigError, InvalidArgument


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("ALLUXIO_LIKE_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "conf.toml"
    file.write_text(text)
    return file


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, '[worker]\nhome = "/a"\nmaster = "file:1"\nfetch_concurrency = 3\n[common]\nlog_level = "debug"\n')
    assert load_config(WorkerConfig, file=file).master == "file:1"
    monkeypatch.setenv("ALLUXIO_LIKE_MASTER", "env:2")
    config = load_config(WorkerConfig, file=file)
    assert (config.master, config.fetch_concurrency, config.log_level, config.load_concurrency) == ("env:2", 3, "debug", 12)
    assert load_config(WorkerConfig, file=file, flags={"master": "flag:3"}).master == "flag:3"
    assert load_config(WorkerConfig, file=file, flags={"master": None}).master == "env:2"


def test_lists_and_nested_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLUXIO_LIKE_HOME", "/h")
    monkeypatch.setenv("ALLUXIO_LIKE_TLS__CA", "/ca.pem")
    monkeypatch.setenv("ALLUXIO_LIKE_CACHE_DIRS", json.dumps([{"path": "/c", "quota_bytes": 5}]))
    config = load_config(WorkerConfig)
    assert config.tls.ca == Path("/ca.pem")
    assert [(d.path, d.quota_bytes) for d in config.cache_dirs] == [(Path("/c"), 5)]


def test_the_client_inside_fuse_takes_the_clients_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, '[client]\nbuffer_bytes = 7\nmaster = "a:1"\n[fuse]\nmountpoint = "/m"\n')
    assert load_config(FuseConfig, file=file).client == ClientConfig(buffer_bytes=7, master="a:1")
    common = '[common]\nio_timeout_s = 5\ntoken_file = "/t"\ntls = { ca = "/ca" }\n'
    both = write(tmp_path, common + '[client]\nio_timeout_s = 6\n[fuse]\nmountpoint = "/m"\n')
    assert load_config(FuseConfig, file=both).client == load_config(ClientConfig, file=both)
    assert load_config(ClientConfig, file=both) == ClientConfig(
        io_timeout_s=6, token_file=Path("/t"), tls=TlsConfig(ca=Path("/ca"))
    )
    file = write(tmp_path, '[client]\nbuffer_bytes = 7\nmaster = "a:1"\n[fuse]\nmountpoint = "/m"\n')
    monkeypatch.setenv("ALLUXIO_LIKE_MASTER", "b:2")
    assert load_config(FuseConfig, file=file).client.master == "b:2"
    assert load_config(FuseConfig, file=file, flags={"client": {"master": "c:3"}}).client.master == "c:3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[worker]\nfetch_concurency = 3\n", "did you mean fetch_concurrency?"),
        ("[workr]\n", "did you mean worker?"),
        ("home = '/h'\n", "settings stand in the tables [common], [master]"),
        ("[common]\nlog_levle = 'x'\n", "did you mean log_level?"),
        ("[worker]\nhome = '/h'\nio_timeout_s = -1\n", "io_timeout_s = -1"),
        ("[worker]\nio_timeout_s = 2\n", "'home' is not set"),
        ("[worker]\nhome = '/h'\n[worker.tls]\ncaa = '/x'\n", "did you mean ca?"),
        ("not toml", "is not TOML"),
        ("worker = 3", "must be a table"),
    ],
)
def test_a_wrong_file_gets_one_line_that_says_what_is_right(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(WorkerConfig, file=write(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml.*No such file"):
        load_config(WorkerConfig, file=tmp_path / "no.toml")


def test_an_unknown_variable_fails_and_those_of_kubernetes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALLUXIO_LIKE_MASTER_SERVICE_HOST", "ALLUXIO_LIKE_MASTER_PORT_19998_TCP", "ALLUXIO_LIKE_MASTER_PORT"):
        monkeypatch.setenv(name, "x")
    load_config(ClientConfig)
    monkeypatch.setenv("ALLUXIO_LIKE_LOG_LEVLE", "debug")
    with pytest.raises(ConfigError, match="did you mean ALLUXIO_LIKE_LOG_LEVEL"):
        load_config(ClientConfig)


def test_a_saved_configuration_is_private_and_comes_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = WorkerConfig(home=tmp_path, master="m:1", cache_dirs=({"path": tmp_path, "quota_bytes": 3},))  # type: ignore[arg-type]
    file = tmp_path / "worker.json"
    file.write_text("left from before")
    file.chmod(0o644)
    save_config(config, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setenv("ALLUXIO_LIKE_MASTER", "other:2")
    assert load_config(WorkerConfig, file=file) == config


def test_a_ready_file_is_one_json_line(tmp_path: Path) -> None:
    config = MasterConfig(home=tmp_path, ready_file=tmp_path / "ready")
    write_ready_file(config, address="a:1")
    text = (tmp_path / "ready").read_text()
    assert text.count("\n") == 1
    assert json.loads(text)["address"] == "a:1"


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("500MB", 500_000_000), ("20 GiB", 20 << 30), ("1.5k", 1500), ("1t", 10**12), ("300MB/s", 300_000_000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "5 parsecs", "1e9", "i", "5 ib x"])
def test_what_is_not_a_size_says_what_would_be(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a size: write"):
        parse_size(text)


@given(st.integers(0, 1 << 60))
def test_a_plain_number_is_itself(size: int) -> None:
    assert abs(parse_size(str(size)) - size) == 0


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("500ms", 0.5), ("5m", 300), ("2h", 7200), ("1d", 86400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    with pytest.raises(InvalidArgument):
        parse_duration(text + "x")
