"""How a store is opened from its URI and options.

Owns the registry of schemes. A library that a scheme needs is imported only when such a store is opened. Called on the event loop
that will use the store; does no I/O over the network (`Ufs.check` does).
"""

from collections.abc import Callable, Mapping

from alluxio_like import errors
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.options import (
    Option,
    change_options,
    describe_options,
    get_secret_names,
    list_schemes,
    parse_options,
    split_secrets,
)
from alluxio_like.ufs.references import Secrets, is_reference
from alluxio_like.ufs.uri import StoreUri, parse_uri

__all__ = [
    "Option",
    "StoreUri",
    "change_options",
    "describe_options",
    "get_secret_names",
    "is_reference",
    "list_schemes",
    "open_ufs",
    "parse_uri",
    "split_secrets",
]


def open_ufs(
    uri: str,
    options: Mapping[str, str],
    *,
    secrets: Mapping[str, str],
    on_request: Callable[[str], None],
    io_timeout_s: float,
) -> Ufs:
    """The store behind a URI.

    `options` and `secrets` are as `split_secrets` separates them (together they are what the user gave). `on_request` is called,
    on the event loop, once for each request to the store, with "GET", "LIST", "HEAD", "PUT" and the like. `io_timeout_s` bounds
    every call (of writes, beyond the time that their bytes take).
    Raises ConfigError for a wrong URI or option, an unknown scheme (naming those there are), or a missing library (naming the
    extra that brings it).
    """
    parsed = parse_uri(uri)
    values = parse_options(parsed.scheme, {**options, **secrets})
    if parsed.scheme not in {"s3", "gs", "az"}:  # which look themselves, again and again
        named = Secrets({name: str(values[name]) for name in get_secret_names(parsed.scheme) & values.keys()})
        values.update({name: named.get(name) for name in values if name in named})
    try:
        if parsed.scheme == "s3":
            from alluxio_like.ufs.s3_names import WritableS3Ufs

            return WritableS3Ufs.open(parsed, values, on_request=on_request, io_timeout_s=io_timeout_s)
        if parsed.scheme == "gs":
            from alluxio_like.ufs.gs_writing import WritableGsUfs

            return WritableGsUfs.open(parsed, values, on_request=on_request, io_timeout_s=io_timeout_s)
        if parsed.scheme == "az":
            from alluxio_like.ufs.az_writing import WritableAzUfs

            return WritableAzUfs.open(parsed, values, on_request=on_request, io_timeout_s=io_timeout_s)
        if parsed.scheme == "cephfs":
            from alluxio_like.ufs.cephfs import CephUfs

            return CephUfs.open(parsed, values, on_request=on_request, io_timeout_s=io_timeout_s)
        if parsed.scheme == "hdfs":
            from alluxio_like.ufs.hdfs_writing import WritableHdfsUfs

            return WritableHdfsUfs.open(parsed, values, on_request=on_request, io_timeout_s=io_timeout_s)
        from alluxio_like.ufs.file import FileUfs

        return FileUfs.open(parsed, values, on_request=on_request, io_timeout_s=io_timeout_s)
    except ImportError as error:
        raise errors.ConfigError(
            f"{parsed.scheme}:// needs the Python library {error.name}: pip install 'alluxio-like[{parsed.scheme}]'",
            subject=str(parsed),
        ) from error
