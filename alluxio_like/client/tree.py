"""A tree's pages as Arrow record batches.

Owns the schema. The columns of a page become a batch's buffers as they are: nothing is done for each entry. Needs pyarrow (the
extra `arrow`), which is imported when the first page comes. Pure functions.
"""

import sys
from array import array
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

    def number(kind: Any, code: str, data: bytes) -> Any:
        return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(_make_native(code, data))])

    def strings(ends: bytes, data: bytes) -> Any:
        offsets = _make_native("i", b"\0\0\0\0" + ends)
        return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])

    counts = array("I", _make_native("I", columns.counts))
    places = b"".join(place.to_bytes(4, sys.byteorder) * held for place, held in enumerate(counts))
    places_column = pa.Array.from_buffers(pa.int32(), count, [None, pa.py_buffer(places)])
    directory = pa.DictionaryArray.from_arrays(places_column, pa.array(columns.directories, pa.binary()))
    return pa.RecordBatch.from_arrays(
        [
            directory,
            strings(columns.name_ends, columns.names),
            number(pa.uint8(), "B", columns.kinds),
            number(pa.uint64(), "Q", columns.inodes),
            number(pa.int64(), "q", columns.sizes),
            number(pa.timestamp("ns", "UTC"), "q", columns.mtimes_ns),
            strings(columns.token_ends, columns.tokens),
        ],
        names=["directory", "name", "kind", "inode", "size", "mtime", "etag"],
    )


def _make_native(code: str, data: bytes) -> bytes:
    """Numbers as this machine has them, which nearly always is how they came."""
    if sys.byteorder == "little":
        return data
    numbers = array(code, data)
    numbers.byteswap()
    return numbers.tobytes()


def _get_arrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError("Arrow batches need pyarrow: pip install 'alluxio-like[arrow]'") from None
    return pyarrow
