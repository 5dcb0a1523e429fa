"""kill -9 of daemon, worker and master while a file stays open and others are shown what is appended to it: what they see is
always a beginning of what was written, and in the end all of it."""

import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.writing import mounted_again, wait_until
from tests.crash.test_writing_crash import Running, running  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(300),
]

INTERVAL_S = 1.0
"""The setting's default is 5 s."""
KILLS = int(os.environ.get("KILLS", "6"))
SEED = int(os.environ.get("KILLS_SEED", "1"))


@pytest.fixture
def environment() -> dict[str, str]:
    return {"ALLUXIO_LIKE_FOLLOW_INTERVAL_S": f"{INTERVAL_S:g}"}


def test_what_is_shown_of_an_open_file_is_right_through_kills(running: Running, workplace: Path) -> None:  # noqa: F811
    chance, stop = random.Random(SEED), threading.Event()
    written = bytearray()

    def write() -> None:
        with (running.place / "log").open("wb", buffering=0) as log:
            while not stop.is_set():
                line = os.urandom(chance.choice((20, 5000, 400_000)))
                written.extend(line)  # before it is there: a reader may be faster than this
                log.write(line)
                time.sleep(0.2)

    with mounted_again(running.stack, workplace, hidden_worker=1) as second:
        other = second / "data/log"
        writing = threading.Thread(target=write)
        writing.start()
        try:
            sizes = [0]

            def look() -> bool:
                found = other.read_bytes()
                assert found == written[: len(found)]
                sizes.append(len(found))
                return len(found) > most

            for _ in range(KILLS):
                most = max(sizes)
                wait_until(look, "more is seen", 90)
                time.sleep(chance.random() * 1.5 * INTERVAL_S)
                running.kill(chance.choice(("daemon", "daemon", "workers", "master")))
            most = max(sizes)
            wait_until(look, "more is seen in the end", 90)
        finally:
            stop.set()
            writing.join()
        wait_until(lambda: other.read_bytes() == written, "all is seen")
        wait_until(lambda: running.read_store("log") == written, "the store has it")
