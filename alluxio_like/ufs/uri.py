"""The URI of a mounted store: SCHEME://AUTHORITY/PATH, and keys below it.

Owns parsing and the one spelling under which a URI is kept and compared. Pure functions; safe from any thread.
"""

import re
from dataclasses import dataclass

from alluxio_like import errors
from alluxio_like.ufs.options import describe_options

_FILE_SYSTEM = re.compile(r"[A-Za-z0-9._-]*")
_MONITORS = re.compile(r"[A-Za-z0-9.:,\[\]-]+")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HDFS_AUTHORITY = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,254}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class StoreUri:
    """A parsed URI.

    `authority` is the bucket (s3, gs), the container (az), the file system's name or its monitors (cephfs), HOST:PORT or a
    nameservice (hdfs), or empty (file). `prefix` is "" or ends in "/", and has no leading slash: the key prefix of the root, or
    the directory's absolute path without its leading slash (cephfs, hdfs, file). It is taken literally, byte for byte.
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
        raise errors.ConfigError(
            "not a store's URI: it looks like s3://bucket/prefix, gs://bucket, az://container, hdfs://host/path, cephfs:///path "
            "or file:///directory",
            subject=uri,
        )
    describe_options(scheme)
    if scheme == "file":
        return _parse_file(uri, rest)
    if scheme == "hdfs":
        return _parse_hdfs(uri, rest)
    authority, _, path = rest.partition("/")
    if scheme == "cephfs":
        if not (_FILE_SYSTEM.fullmatch(authority) or is_monitors(authority)):
            raise errors.ConfigError(
                "it looks like cephfs://FSNAME/path, cephfs:///path or cephfs://HOST:PORT,.../path", subject=uri
            )
        return StoreUri(scheme, authority, _parse_path(uri, path))
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
    return StoreUri("file", "", _parse_path(uri, rest))


def is_monitors(authority: str) -> bool:
    """Whether a cephfs URI names monitors there, and no file system."""
    return any(mark in authority for mark in ":,") and _MONITORS.fullmatch(authority) is not None


def _parse_path(uri: str, path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if "\0" in path or "." in parts or ".." in parts:
        raise errors.ConfigError("a directory is given by its plain absolute path, without . and ..", subject=repr(uri))
    return "".join(f"{part}/" for part in parts)


def _parse_hdfs(uri: str, rest: str) -> StoreUri:
    authority, _, path = rest.partition("/")
    if not _HDFS_AUTHORITY.fullmatch(authority):
        what = "the URI names no NameNode: it looks like hdfs://HOST:8020/path or hdfs://NAMESERVICE/path"
        raise errors.ConfigError(what, subject=uri)
    parts = [part for part in path.split("/") if part]
    if "\0" in path or any(part in {".", ".."} or ":" in part for part in parts):
        raise errors.ConfigError("HDFS has no paths with . or .. or colons in them", subject=repr(uri))
    return StoreUri("hdfs", authority, "".join(f"{part}/" for part in parts))
