"""The checksum of a page: xxh3-64 (in C, releases the GIL for large input). Pure; safe from any thread."""

import xxhash

from alluxio_like.types import PAGE_BYTES

compute_checksum = xxhash.xxh3_64_intdigest
"""The checksum of bytes, as an unsigned 64-bit number."""


def compute_checksums(data: memoryview | bytes) -> list[int]:
    """One checksum a page of `data`, which begins at a page; the last page may be short."""
    if len(data) <= PAGE_BYTES:
        return [compute_checksum(data)] if len(data) else []
    view = memoryview(data)
    return [compute_checksum(view[start : start + PAGE_BYTES]) for start in range(0, len(view), PAGE_BYTES)]
