"""How the C library's allocator holds a worker's memory.

Owns one call at the start of the process. Fetched bytes live in buffers of 1 to 8 MiB that one thread allocates and another
frees.
glibc's arenas, one for each thread, then keep much of it: loading 1 GiB objects again and again, a worker's own memory rose to
440 MB, with two arenas to 313 MB, with buffers mapped one by one (M_MMAP_THRESHOLD of 128 KiB) to 200 MB (two cores, loaded).
Two arenas and maps from 4 MiB on bound the memory without a page fault for every small object.
"""

import ctypes

# malloc.h
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_ARENAS = 2
_MAPPED_BYTES = 4 << 20


def bound_arenas() -> bool:
    """Before any thread is started. False where the C library has no such setting (it is not glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_ARENA_MAX, _ARENAS)) and bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES))
