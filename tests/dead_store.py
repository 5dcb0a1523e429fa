"""A cache store that ends as by kill -9, in this process."""

from alluxio_like.cache.store import CacheStore


def stop_dead(store: CacheStore) -> None:
    """Nothing more is committed; locks and descriptors are let go of, as the kernel does."""
    store._closed = True
    store._stop.set()
    store._wake.set()
    store._thread.join()
    for directory in store._dirs:
        directory.close(clean=False)
    store._recent.clear()
    for file in list(store._files.values()):
        file.close_idle()
