"""Writing through the mount beside the local disk, beside other S3 file systems, and beside bare loops.

    python -m bench --only writing            about a quarter of an hour on two cores, 40 GB of free disk
    python -m bench --only writing --quick

Owns the order of the parts and the large files; small ones are writing_files.py's, what is read back cold and snapshots
writing_cold.py's. A row is a median of rounds in which ours and the reference take turns on one disk, as many as fit into its
time. Every file is new, every write is followed by fsync unless the row says otherwise. Beside each row the JSON has the CPU
seconds of all our processes, for each GB or file.

Rows that are compared with the local disk are written with the policy `cache`: the uploads of one round would take disk and cores
from the next. What a close waits for is the same with `back`, whose uploads have a row of their own.
"""

import json
import shutil
import sys
import time
from pathlib import Path

from bench.fio import RUN_S, run_fio_write
from bench.measure import MB, Result, back_memory
from bench.places import Cpu, Place, Turns, mount_ours, run_rounds, write, write_and_remove
from bench.stack import run_baseline
from bench.writing_cold import measure_mapped, measure_restored, measure_snapshot
from bench.writing_files import compare_removal, compare_small, compare_untar
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack

ROUNDS = 3
ROW_S = 45.0
"""No further round of a row of large files after so long."""
CHECKPOINT_FILE_BYTES = 100_000_000


def measure_writing(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """All rows."""
    native = Place("local disk", directory / "native")
    native.root.mkdir()
    results: list[Result] = []
    with mount_ours(server, directory, "cache") as (_, ours):
        results += _compare_large(ours, native, quick=quick)
        results.append(_compare_random(ours, native, quick=quick))
        results.append(compare_untar(ours, native, directory, quick=quick))
    with mount_ours(server, directory, "back") as (stack, ours):
        results.append(_measure_upload(stack, ours, server, directory, quick=quick))
    results += compare_small(server, native, directory, quick=quick)
    results.append(compare_removal(native, directory, quick=quick))
    results.append(measure_snapshot(directory, quick=quick))
    results.append(measure_restored(directory, quick=quick))
    results.append(measure_mapped(server, directory, quick=quick))
    return results


def _compare_large(ours: Place, native: Place, *, quick: bool) -> list[Result]:
    size, files = ((512 << 20), 5) if quick else ((4 << 30), 40)
    rows = [
        ("sequential write of one large file, fsync", 0.9, 1, size, "fsync", 1),
        ("4 writers, fsync", 0.9, 1, size // 4, "fsync", 4),
        ("checkpoint of files of 100 MB, renamed into place", 0.85, files, CHECKPOINT_FILE_BYTES, "rename", 1),
    ]
    results = []
    for name, aim, count, file_bytes, mode, writers in rows:
        turns = Turns()
        total = count * file_bytes * writers
        for number in run_rounds(ROUNDS, ROW_S):
            back_memory()
            taken_s = write_and_remove(native, f"large-{number}", count, file_bytes, mode, writers)
            turns.reference.append(total / MB / taken_s)
            cpu = Cpu(ours.pids)
            turns.ours.append(total / MB / write_and_remove(ours, f"large-{number}", count, file_bytes, mode, writers))
            turns.cpu.append(cpu.per(total / 1e9))
        results.append(turns.make_result(f"write, {name}: of native", "MB/s", aim))
    return results


def _compare_random(ours: Place, native: Place, *, quick: bool) -> Result:
    """Random 4 KiB writes into a file that is there, fsync each 64."""
    size = (64 << 20) if quick else (1 << 30)
    turns = Turns()
    for place in (native, ours):
        write(place, "random", 1, size)
    for _ in range(ROUNDS):
        turns.reference.append(run_fio_write(native.root / "random-0" / "000000", 4096, fsync=64).iops)
        cpu = Cpu(ours.pids)
        done = run_fio_write(ours.root / "random-0" / "000000", 4096, fsync=64)
        turns.ours.append(done.iops)
        turns.cpu.append(cpu.per(done.bytes_s * RUN_S / 1e9))
    for place in (native, ours):
        shutil.rmtree(place.root / "random-0")
    return turns.make_result("write, random 4 KiB, fsync each 64: of native", "IOPS", 0.8)


def _measure_upload(stack: Stack, ours: Place, server: S3Server, directory: Path, *, quick: bool) -> Result:
    """How fast the store gets in the background what was written, beside a loop that does nothing else."""
    size = (256 << 20) if quick else (1 << 30)
    turns = Turns()
    for number in run_rounds(ROUNDS, ROW_S):
        cpu = Cpu(ours.pids)
        write(ours, f"upload-{number}", 1, size, "plain")
        # From the close on: what the writer took is no part of the upload.
        seconds = _wait_stored(stack)
        local = directory / "bare.bin"
        turns.ours.append(size / MB / seconds)
        turns.cpu.append(cpu.per(size / 1e9))
        shutil.copyfile(ours.root / f"upload-{number}-0" / "000000", local)
        bucket = server.make_bucket()
        done = run_baseline("upload", str(local), bucket, environment=server.environment)
        turns.reference.append(size / MB / done["seconds"])
        local.unlink()
        server.delete(bucket, "bare.bin")
        shutil.rmtree(ours.root / f"upload-{number}-0")
    return turns.make_result("write, close to stored (back), beside a bare multipart loop", "MB/s", 0.8)


def _wait_stored(stack: Stack) -> float:
    """Seconds until all that was written is at the store."""
    start = time.perf_counter()
    stack.run_command("alluxio-like", "fs", "wait", "/data")
    return time.perf_counter() - start


def main() -> None:
    """For a look at a single writer: python -m bench.writing ROOT COUNT BYTES MODE."""
    root, count, size, mode = sys.argv[1:5]
    print(json.dumps({"seconds": write(Place(root, Path(root)), "one", int(count), int(size), mode)}))


if __name__ == "__main__":
    main()
