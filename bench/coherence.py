"""How soon every mount's kernel has forgotten what it believed of a file, once the master learned that it is another one."""

import statistics
import threading
import time
from pathlib import Path

from alluxio_like import connect
from bench.measure import Result
from tests.cluster.writing import mounted_again
from tests.servers.stack import start_stack

FILES = 50
LIMIT_S = 2.0
"""What is asked for of the slowest hundredth."""
_GIVE_UP_S = 30.0
_LOOK_S = 0.0005


def measure_coherence(directory: Path, *, quick: bool) -> list[Result]:
    """Files of a directory that are replaced one by one, looked at through two mounts whose kernels know them all."""
    changes = 50 if quick else 200
    store = directory / "store"
    store.mkdir()
    for number in range(FILES):
        (store / str(number)).write_bytes(b"x")
    with (
        start_stack(directory, {"/": f"file://{store}"}, {}, "--workers", "1", "--cache-size", "1GB") as stack,
        mounted_again(stack, directory) as second,
        connect(stack.master) as client,
    ):
        mounts = [stack.mountpoint, second]
        delays: list[float] = []
        for change in range(changes):
            name, size = str(change % FILES), 2 + change
            for mount in mounts:
                (mount / name).stat()
            replace(store / name, size)
            watches = [Watch(mount / name, size) for mount in mounts]
            asked_s = time.monotonic()
            client.sync_path("/")
            # From before the master can have learned of it: its listing of the store is in it, too.
            delays += [watch.wait() - asked_s for watch in watches]
    delays.sort()
    detail = {"delays_s": delays, "median_s": statistics.median(delays), "changes": changes}
    slowest = delays[int(len(delays) * 0.99)]
    name = f"a changed file is another one on two mounts, 99th percentile of {len(delays)}, from the call of `fs sync` on"
    return [Result(name, slowest * 1000, LIMIT_S * 1000, "ms", 1.0, at_most=True, detail=detail)]


def replace(path: Path, size: int) -> None:
    """Another content under the same name."""
    new = path.with_suffix(".new")
    new.write_bytes(b"x" * size)
    new.replace(path)


class Watch:
    """Looks at a name again and again until its size is another one; the kernel answers as long as it believes what it knew."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._seen_s = 0.0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        end_s = time.monotonic() + _GIVE_UP_S
        while self._path.stat().st_size != self._size:
            if time.monotonic() > end_s:
                return
            time.sleep(_LOOK_S)
        self._seen_s = time.monotonic()

    def wait(self) -> float:
        """When it was seen."""
        self._thread.join()
        if not self._seen_s:
            raise RuntimeError(f"{self._path} is still shown as it was after {_GIVE_UP_S} s")
        return self._seen_s
