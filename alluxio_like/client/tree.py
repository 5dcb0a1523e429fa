"""A tree's pages as Arrow record batches.

Owns the schema. The columns of a page become a batch's buffers as they are: nothing is done for each entry. Needs pyarrow (the
extra `arrow`), which is imported when the first page comes. Pure functions.
"""

from typing import TYPE_CHECKING, Any

from alluxio_like.errors import ConfigError
from alluxio_like.rpc.messages import TreePage

if TYPE_CHECKING:
    import pyarrow as pa


def make_batch(page: TreePage) -> "pa.RecordBatch":
    """directory (dictionary of binary), name (binary), kind (1 file, 2 directory, 3 symbolic link), inode, size, mtime, etag.

    Names and directories are bytes, as file systems have them.
    """
    pa = _get_arrow()
    columns = page.columns
    count = len(columns)

    def number(kind: Any, data: Any) -> Any:
        return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(data)])

    def strings(ends: Any, data: Any) -> Any:
        offsets = b"\0\0\0\0" + bytes(ends)
        return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])

    places = b"".join(place.to_bytes(4, "little") * held for place, held in enumerate(columns.counts))
    directory = pa.DictionaryArray.from_arrays(number(pa.int32(), places), pa.array(columns.directories, pa.binary()))
    return pa.RecordBatch.from_arrays(
        [
            directory,
            strings(columns.name_ends, columns.names),
            number(pa.uint8(), columns.kinds),
            number(pa.uint64(), columns.inodes),
            number(pa.int64(), columns.sizes),
            number(pa.timestamp("ns", "UTC"), columns.mtimes_ns),
            strings(columns.token_ends, columns.tokens),
        ],
        names=["directory", "name", "kind", "inode", "size", "mtime", "etag"],
    )


def _get_arrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError("Arrow batches need pyarrow: pip install 'alluxio-like[arrow]'") from None
    return pyarrow
