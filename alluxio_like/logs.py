"""Structured logs with request ids, free of secrets.

Owns the standard library's logging, its formats and the context variable that carries a request's id. Modules log by
`logging.getLogger(__name__)` and give values as `extra={"mount": 3}`: they end up as `mount=3` in text and as keys in JSON.
Does not own what is logged; masking is the last defence, secrets must not be passed to a logger at all.
Set up once per process, before other threads start; logging itself is safe from any thread.
"""

import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, TextIO

from alluxio_like.errors import ConfigError

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is being served; rpc sets it from x-request-id."""

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_SECRETS = (
    # key=value, "key": "value", --key value, of the options that are secret, however they are spelled
    re.compile(
        r"""(?ix) ( (?:aws_)? (?:secret(?:[_-]?access)?[_-]?key|session[_-]?token|sas[_-]?token|password|alluxio-token)
        ["'\\]* \s* [=:\s] \s* ["'\\]* ) ([^\s"',;&)}\\]+)"""
    ),
    re.compile(r"(?i)((?:x-amz-signature|x-amz-security-token|x-amz-credential|signature|credential)=)([^\s&,\"']+)"),
    re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*)(.+)"),
    # user:password@ in a URI
    re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)([^\s/@]+)(?=@)"),
)


def mask_secrets(text: str) -> str:
    """`text` with the values of what looks like a secret replaced by ***."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


def _get_extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}


def _to_time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """One line for a person: time, level, service, module, message, key=value, request id."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows it on lines of its own."""
        name = record.name.removeprefix("alluxio_like.")
        parts = [f"{_to_time(record)} {record.levelname:<7} {self._service} {name}: {record.getMessage()}"]
        for key, value in _get_extra(record).items():
            text = str(value)
            parts.append(f"{key}={json.dumps(text) if not text or ' ' in text or chr(10) in text else text}")
        if request := request_id.get():
            parts.append(f"request={request}")
        line = " ".join(parts).replace("\n", "\\n")
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return mask_secrets(line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, logger, message, request, and each extra value under its name."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The object as one line."""
        fields: dict[str, Any] = {
            "time": _to_time(record),
            "level": record.levelname.lower(),
            "service": self._service,
            "pid": record.process,
            "logger": record.name,
            "message": mask_secrets(record.getMessage()),
        }
        if request := request_id.get():
            fields["request"] = request
        for key, value in _get_extra(record).items():
            fields.setdefault(key, value if isinstance(value, int | float | bool | None) else mask_secrets(str(value)))
        if record.exc_info:
            fields["traceback"] = mask_secrets(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


def setup_logging(service: str, *, level: str = "info", log_format: str = "text", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream` (standard error) in one format; replaces what was set up before.

    Raises ConfigError for an unknown level or format. Libraries that log headers at debug level are kept at warning.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r} is not known: use one of {', '.join(LEVELS)}", subject="log_level")
    if log_format not in {"text", "json"}:
        raise ConfigError(f"log format {log_format!r} is not known: use text or json", subject="log_format")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    # Bytes of names that are not UTF-8 are surrogates in our strings; a log line must not fail on them.
    if stream is None and hasattr(sys.stderr, "reconfigure"):
        sys.stderr.reconfigure(errors="backslashreplace")
    handler.setFormatter(TextFormatter(service) if log_format == "text" else JsonFormatter(service))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level.lower()])
    for name in ("botocore", "boto3", "urllib3", "s3transfer", "asyncio", "hpack"):
        logging.getLogger(name).setLevel(max(logging.WARNING, LEVELS[level.lower()]))
