"""Trees of many directories, listed with all below them: seconds and requests, by flat listings and without."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from alluxio_like.config import MasterConfig
from alluxio_like.master import app
from alluxio_like.rpc.auth import read_token
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs
from bench.measure import Result
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server

SHAPES = {"small": (1500, 4), "medium": (60, 100), "large": (6, 1500)}
"""Directories and the files in each."""
LATENCY_S = 0.03
"""As a store has it that is not on this machine."""


class SingleOnly:
    """A store without its flat listings."""

    def __init__(self, ufs: Ufs) -> None:
        self._ufs = ufs

    def __getattr__(self, name: str) -> Any:
        if name == "list_flat":
            raise AttributeError(name)
        return getattr(self._ufs, name)


def fill(server: S3Server, bucket: str, prefix: str, directories: int, files: int) -> None:
    keys = [f"{prefix}{d // 30:04}/{d:05}/{f:05}.jpg" for d in range(directories) for f in range(files)]

    def put(part: list[str]) -> None:
        for key in part:
            server.client.put_object(Bucket=bucket, Key=key, Body=b"x")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, [keys[first::8] for first in range(8)]))


async def sync_all(home: Path, server: S3Server, endpoint: str, uri: str, *, flat: bool) -> tuple[float, float, Counter[str]]:
    """Seconds for an empty master to list all, CPU seconds of this process, and the requests."""
    requests: Counter[str] = Counter()

    def open_counted(uri: str, options: Mapping[str, str], **settings: Any) -> Any:
        settings["on_request"] = lambda op: requests.update([op])
        ufs = open_ufs(uri, options, **settings)
        return ufs if flat else SingleOnly(ufs)

    master = await app.start(MasterConfig(home=home, bind="127.0.0.1:0", http_bind=""), opener=open_counted)
    channel = open_channel(master.address, token=read_token(Path(master.token_file)))
    try:
        stub = MasterStub(channel, timeout_s=600)
        await stub.mount(MountSpec("/data", uri, {**server.options, "endpoint": endpoint}))
        requests.clear()
        start, cpu = time.perf_counter(), time.process_time()
        await stub.sync("/data", recursive=True)
        return time.perf_counter() - start, time.process_time() - cpu, requests
    finally:
        await channel.close()
        await master.close()


def measure_listing(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """Each shape, on the machine's own store and behind 30 ms."""
    results: list[Result] = []
    bucket = "listing"
    server.client.create_bucket(Bucket=bucket)
    with FaultProxy(server.endpoint) as proxy:
        proxy.set_limits(latency_s=LATENCY_S)
        for name, (most, files) in SHAPES.items():
            directories = most // 3 if quick else most
            fill(server, bucket, f"{name}/", directories, files)
            for where, endpoint in (("here", server.endpoint), ("30 ms away", proxy.endpoint)):
                found = {}
                for flat in (False, True):
                    shutil.rmtree(directory / "home", ignore_errors=True)
                    (directory / "home").mkdir()
                    uri = f"s3://{bucket}/{name}"
                    seconds, cpu, requests = asyncio.run(sync_all(directory / "home", server, endpoint, uri, flat=flat))
                    found[flat] = (seconds, cpu, requests["LIST"])
                text = f"listing {directories} directories of {files} files, store {where}"
                detail = {
                    "single": dict(zip(("seconds", "cpu_seconds", "lists"), found[False], strict=True)),
                    "chosen": dict(zip(("seconds", "cpu_seconds", "lists"), found[True], strict=True)),
                }
                results += [
                    Result(f"{text}: time, of single listings'", found[True][0], found[False][0], "s", detail=detail),
                    Result(f"{text}: LISTs, of single listings'", found[True][2], found[False][2], "requests"),
                ]
    return results
