"""Formats of log lines, request ids, and that no secret gets through."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from alluxio_like.errors import ConfigError
from alluxio_like.logs import mask_secrets, request_id, setup_logging


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def log_lines(log_format: str, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    setup_logging("worker", level=level, log_format=log_format, stream=stream)
    return logging.getLogger("alluxio_like.worker.fetcher"), stream


def test_text_has_extras_and_the_request() -> None:
    log, stream = log_lines("text")
    token = request_id.set("abc")
    log.warning("slow %s", "store", extra={"mount": 3, "reason": "two words"})
    request_id.reset(token)
    line = stream.getvalue()
    assert line.endswith('WARNING worker worker.fetcher: slow store mount=3 reason="two words" request=abc\n')


def test_json_is_one_object_a_line_with_a_traceback() -> None:
    log, stream = log_lines("json")
    try:
        raise ValueError("x\ny")
    except ValueError:
        log.exception("failed", extra={"size": 5, "path": b"\xff"})
    fields = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert (fields["message"], fields["size"], fields["service"]) == ("failed", 5, "worker")
    assert "ValueError" in fields["traceback"]


def test_a_message_with_newlines_stays_on_one_line() -> None:
    log, stream = log_lines("text")
    log.info("a\nb")
    assert stream.getvalue().count("\n") == 1


def test_below_the_level_nothing_is_written() -> None:
    log, stream = log_lines("text", level="error")
    log.info("x")
    assert not stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "message",
    [
        "secret_key=S3CR3T",
        "options {'secret_key': 'S3CR3T', 'region': 'x'}",
        '{"session_token": "S3CR3T"}',
        "aws_secret_access_key = S3CR3T",
        "-o secret_key=S3CR3T",
        "GET /b/k?X-Amz-Signature=S3CR3T&x=1",
        "Authorization: AWS4-HMAC-SHA256 Credential=AK/x, Signature=S3CR3T",
        "https://me:S3CR3T@host/bucket",
        "SecretAccessKey=S3CR3T",
    ],
)
def test_secrets_are_masked(message: str, log_format: str) -> None:
    log, stream = log_lines(log_format)
    log.info("%s", message, extra={"detail": message})
    try:
        raise RuntimeError(message)
    except RuntimeError:
        log.exception("it failed")
    assert "S3CR3T" not in stream.getvalue()
    assert "***" in stream.getvalue()


def test_what_is_no_secret_stays() -> None:
    text = "the key a/b of s3://bucket/prefix at http://127.0.0.1:9000/x has token 5"
    assert mask_secrets(text) == text


def test_unknown_levels_and_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match="use one of debug"):
        setup_logging("x", level="loud")
    with pytest.raises(ConfigError, match="use text or json"):
        setup_logging("x", log_format="xml")
