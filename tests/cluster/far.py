"""A second worker on this machine that the mount takes for one of another machine, and what it holds."""

import asyncio
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from alluxio_like.client.client import Client
from alluxio_like.config import ClientConfig
from alluxio_like.placement import get_placement_unit, rank_workers
from tests.servers.stack import Stack


def take_away(home: Path, number: int = 2) -> None:
    """Take a worker's door away, before anybody has entered it: its cache files cannot be read directly any more."""
    (home / f"worker-{number}" / "door.sock").unlink()


def list_far(stack: Stack, paths: Iterable[str], number: int = 2) -> list[str]:
    """Those of the paths (relative to the root) that placement puts on a worker."""

    async def look() -> list[str]:
        async with Client.open(ClientConfig(master=stack.master, use_local_cache=False)) as client:
            cluster = await client.get_cluster()
            far = []
            for path in paths:
                ref = (await client.get_path(f"/{path}")).ref
                assert ref is not None
                unit = get_placement_unit(ref.size, 0, cluster.whole_file_limit_bytes)
                if f"worker-{number}" in rank_workers(cluster.workers, ref.file_id, unit)[0].door_path:
                    far.append(path)
            return far

    return asyncio.run(look())


def get_metric(http_address: str, name: str) -> float:
    """The sum of a metric's samples as a service shows them; 0 when there are none."""
    with urllib.request.urlopen(f"http://{http_address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)
