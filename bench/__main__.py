"""Run the benchmarks: python -m bench [--only PART] [--quick] [--out DIR]."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from bench.coherence import measure_coherence
from bench.holding import measure_holding
from bench.listing import measure_listing
from bench.loading import measure_loading
from bench.measure import Result, render_table, write_results
from bench.metadata import measure_metadata, measure_worker_restart
from bench.mounted import measure_mounted
from bench.names import measure_names
from bench.peers import measure_peers
from bench.reading import measure_epochs, measure_warm_reads
from bench.restarts import measure_restarts
from bench.sdk import measure_sdk
from bench.size import measure_size
from bench.writing import measure_writing
from tests.servers.fixtures import start_s3_server

PARTS = (
    "loading",
    "reading",
    "mounted",
    "holding",
    "peers",
    "epochs",
    "metadata",
    "names",
    "listing",
    "sdk",
    "restarts",
    "coherence",
)


LONG_PARTS = ("size", "writing")
"""Run only when they are asked for."""


def run_part(part: str, directory: Path, out: Path, *, quick: bool) -> list[Result]:
    """One part, on a server of its own, so that no part inherits another's data."""
    if part == "size":
        return measure_size(directory, out, quick=quick)
    if part == "restarts":
        return measure_restarts(directory, quick=quick)
    if part == "coherence":
        return measure_coherence(directory, quick=quick)
    if part == "sdk":
        return measure_sdk(directory, quick=quick)
    if part == "metadata":
        return [*measure_metadata(directory, quick=quick), *measure_worker_restart(directory, quick=quick)]
    if part == "names":
        return measure_names(directory, quick=quick)
    if part == "peers":
        return measure_peers(directory, quick=quick)
    parts = {
        "loading": measure_loading,
        "reading": measure_warm_reads,
        "mounted": measure_mounted,
        "holding": measure_holding,
        "epochs": measure_epochs,
        "listing": measure_listing,
        "writing": measure_writing,
    }
    with start_s3_server(size_bytes=8 << 30) as server:
        return parts[part](server, directory, quick=quick)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        choices=PARTS + LONG_PARTS,
        action="append",
        help="a part (may be repeated); by default all short ones",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: to try the benchmark itself")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    parser.add_argument("--dir", type=Path, help="where caches and files lie; a new directory beside --out by default")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root (mounts, drop_caches); run it with sudo", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for part in arguments.only or PARTS:
        directory = Path(tempfile.mkdtemp(prefix="bench-", dir=arguments.dir or arguments.out)).resolve()
        try:
            found = run_part(part, directory, arguments.out, quick=arguments.quick)
        finally:
            for log in directory.glob("*.log"):
                shutil.copy(log, arguments.out / f"{part}-{log.name}")
            shutil.rmtree(directory, ignore_errors=True)
        print(render_table(found), flush=True)
        results += found
        write_results(arguments.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
