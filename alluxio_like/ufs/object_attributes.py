"""Owner, group, mode and time of a file as texts in its object's metadata, in the forms of those who write such.

Owns the names and forms: what is written with an upload, and what is understood of s3fs, rclone and those like them. Pure
functions, safe from any thread.

    mode    s3fs and this program: decimal, with the file's type (33188); rclone: octal, with it (100644)
    uid     decimal; so is gid
    mtime   s3fs, this program, and rclone to S3: seconds, with or without a fraction; rclone elsewhere: RFC 3339
"""

import re
import stat
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from alluxio_like.types import StoredAttributes

_MAX_ID = (1 << 32) - 2
"""The largest number of a user or group: the next one means "as it is" in chown(2)."""
_KEPT_MODE = 0o1777
"""Set-id bits are not taken: whoever may write to a bucket would give rights on the machines that mount it."""
_SECONDS = re.compile(r"(-?)(\d{1,12})(?:\.(\d+))?")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_STOP_NS = 1 << 63


def make_metadata(mode: int, uid: int, gid: int, mtime_ns: int) -> dict[str, str]:
    """The metadata that go with a file's content; `mode` are its permission bits."""
    seconds, rest = divmod(abs(mtime_ns), 10**9)
    mtime = f"{'-' if mtime_ns < 0 else ''}{seconds}.{rest:09}"
    return {"mode": str(stat.S_IFREG | mode), "uid": str(uid), "gid": str(gid), "mtime": mtime}


def read_attributes(metadata: Mapping[str, str]) -> StoredAttributes:
    """What an object's metadata say of its file; None for each thing of which they say nothing that can be understood."""
    texts = {name.lower(): text.strip() for name, text in metadata.items()}
    return StoredAttributes(
        mode=_read_mode(texts.get("mode", "")),
        uid=_read_id(texts.get("uid", "")),
        gid=_read_id(texts.get("gid", "")),
        mtime_ns=_read_time(texts.get("mtime", "")),
    )


def _read_mode(text: str) -> int | None:
    """Permission bits. A regular file's mode with its type is five decimal digits or six octal ones, so that each tells which it
    is; one without a type is believed where a zero before it says that it is octal."""
    if not (text.isascii() and text.isdigit()) or len(text) > 8:
        return None
    if stat.S_ISREG(int(text)) and int(text) < 1 << 16:
        return int(text) & _KEPT_MODE
    if set(text) & set("89"):
        return None
    octal = int(text, 8)
    is_plain = text[0] == "0" and octal <= 0o7777
    return octal & _KEPT_MODE if is_plain or (stat.S_ISREG(octal) and octal < 1 << 16) else None


def _read_id(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    return int(text) if int(text) <= _MAX_ID else None


def _read_time(text: str) -> int | None:
    """Nanoseconds since the epoch."""
    found = _read_seconds(text)
    if found is None:
        found = _read_moment(text)
    return found if found is not None and -_TIME_STOP_NS <= found < _TIME_STOP_NS else None


def _read_seconds(text: str) -> int | None:
    parts = _SECONDS.fullmatch(text) if text.isascii() else None
    if parts is None:
        return None
    sign, seconds, fraction = parts.groups()
    found = int(seconds) * 10**9 + _read_fraction(fraction)
    return -found if sign else found


def _read_moment(text: str) -> int | None:
    parts = _MOMENT.fullmatch(text) if text.isascii() else None
    if parts is None:
        return None
    day, hour, fraction, zone = parts.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{hour}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        return None
    return (moment - _EPOCH) // timedelta(seconds=1) * 10**9 + _read_fraction(fraction)


def _read_fraction(digits: str | None) -> int:
    return int((digits or "0")[:9].ljust(9, "0"))
