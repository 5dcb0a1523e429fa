"""Memory for pages that are only looked at.

Owns one page for each thread that asks. Fresh memory for each page costs a fault for each 4 KiB of it, and the host of a virtual
machine may take milliseconds to give it. Safe from any thread; what is in it lasts until the same thread asks again.
"""

import threading

from alluxio_like.types import PAGE_BYTES

_scratch = threading.local()


def get_scratch(length: int) -> memoryview:
    """`length` bytes, a page at most, whatever is in them."""
    page: memoryview | None = getattr(_scratch, "page", None)
    if page is None:
        page = _scratch.page = memoryview(bytearray(PAGE_BYTES))
    return page[:length]
