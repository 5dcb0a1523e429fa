"""The URI of a mounted store: SCHEME://AUTHORITY/PATH, and keys below it.

Owns parsing and the one spelling under which a URI is kept and compared. Pure functions; safe from any thread.
"""

import re
from dataclasses import dataclass

from alluxio_like import errors
from alluxio_like.ufs.options import describe_options

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


@dataclass(frozen=True, slots=True)
class StoreUri:
    """A parsed URI.

    `authority` is the bucket (s3, gs), the container (az) or empty (file). `prefix` is "" or ends in "/", and has no leading
    slash: the key prefix of the root, or the directory's absolute path without its leading slash (file). It is taken literally,
    byte for byte.
    """

    scheme: str
    authority: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}/{self.prefix}".rstrip("/") if self.prefix else self._get_root()

    def _get_root(self) -> str:
        return f"{self.scheme}://{self.authority}" if self.authority else f"{self.scheme}:///"


def parse_uri(uri: str) -> StoreUri:
    """Read a URI. Raises ConfigError with one line that says what is wrong and what would be right."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        raise errors.ConfigError("not a store's URI: it looks like s3://bucket/prefix or file:///directory", subject=uri)
    describe_options(scheme)
    if scheme == "file":
        return _parse_file(uri, rest)
    authority, _, path = rest.partition("/")
    if not _BUCKET.fullmatch(authority):
        what = (
            "container: it looks like az://container/prefix, with the option account"
            if scheme == "az"
            else (f"bucket: it looks like {scheme}://bucket/prefix")
        )
        raise errors.ConfigError(f"the URI names no valid {what}", subject=uri)
    if "\0" in path:
        raise errors.ConfigError("the URI has a NUL byte in it", subject=repr(uri))
    return StoreUri(scheme, authority, f"{path.rstrip('/')}/" if path.strip("/") else "")


def _parse_file(uri: str, rest: str) -> StoreUri:
    if not rest.startswith("/"):
        raise errors.ConfigError("a directory is given by its absolute path: file:///directory", subject=uri)
    parts = [part for part in rest.split("/") if part]
    if "\0" in rest or "." in parts or ".." in parts:
        raise errors.ConfigError("a directory is given by its plain absolute path, without . and ..", subject=repr(uri))
    return StoreUri("file", "", "".join(f"{part}/" for part in parts))
