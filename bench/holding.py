"""What a job feels that opened its files before they were whole here, and keeps them open. (Killed daemons: restarts.py.)"""

import json
import statistics
from pathlib import Path

from bench.measure import MB, Result
from bench.mounted import start_baseline
from bench.stack import fill_bucket
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack, start_stack

READ_LIMIT_BYTES_S = 3e9


def measure_holding(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """The speed of handles that were opened too early."""
    size = (256 << 20) if quick else (1 << 30)
    bucket = server.make_bucket()
    large = fill_bucket(server, bucket, "large/", 3, size)
    environment = {"ALLUXIO_LIKE_SESSION": "kernel", **server.environment}
    with start_stack(directory, {"/": f"s3://{bucket}"}, environment, "--workers", "1") as stack:
        return [_measure_early_handles(stack, large)]


def _measure_early_handles(stack: Stack, keys: list[str]) -> Result:
    """Sequential reads through handles that were opened before anything of their files was local."""
    rates = []
    for key in keys:
        with start_baseline("held", str(stack.mountpoint / key)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            stack.load(f"/{key}")
            done = json.loads(process.communicate("go\n")[0])
        rates.append(done["bytes"] / done["seconds"])
    name = "a handle opened before the file was complete, of 3 GB/s"
    return Result(name, statistics.median(rates) / MB, READ_LIMIT_BYTES_S / MB, "MB/s", 1.0, detail={"bytes_s": rates})
