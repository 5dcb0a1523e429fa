"""As much of a master as a worker talks to, over real gRPC: workers join, report and beat; mounts are given."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alluxio_like.errors import NotFound
from alluxio_like.rpc.auth import Guard
from alluxio_like.rpc.master_servicer import add_master_services
from alluxio_like.rpc.messages import (
    BlockDelta,
    BlockReport,
    Heartbeat,
    HeartbeatResult,
    LookupResult,
    MountInfo,
    MountSecrets,
    RateShare,
    RegisterResult,
)
from alluxio_like.rpc.server import create_server
from alluxio_like.types import Attr, Cluster, Entry, FileId, FileRef, InodeId, Kind, MountId, Worker, WorkerId

TOKEN = "a-token-for-tests"


@dataclass
class FakeMaster:
    """What the workers said, and what they are told."""

    cluster_id: str = "cluster-1"
    whole_file_limit_bytes: int = 1 << 30
    address: str = ""
    epoch: int = 1
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    sessions: dict[WorkerId, str] = field(default_factory=dict)
    joins: list[WorkerId] = field(default_factory=list)
    left: list[WorkerId] = field(default_factory=list)
    blocks: dict[tuple[WorkerId, FileId, int], int] = field(default_factory=dict)
    beats: list[Heartbeat] = field(default_factory=list)
    mounts: dict[MountId, MountSecrets] = field(default_factory=dict)
    rates: tuple[RateShare, ...] = ()
    demand_elsewhere: int = 0
    refs: dict[InodeId, FileRef] = field(default_factory=dict)

    def add_mount(self, mount_id: int, uri: str) -> None:
        info = MountInfo(MountId(mount_id), "/data", uri, {}, True, 0.0, 0, 0, 0)
        self.mounts[MountId(mount_id)] = MountSecrets(info, {})

    def get_bits(self, worker_id: str, file_id: FileId, block: int = 0) -> int:
        return self.blocks.get((WorkerId(worker_id), file_id, block), 0)

    def forget(self) -> None:
        """As after a restart: nobody is known."""
        self.workers.clear()
        self.sessions.clear()
        self.blocks.clear()

    async def get_cluster(self) -> Cluster:
        return Cluster(self.cluster_id, self.epoch, tuple(self.workers.values()), self.whole_file_limit_bytes)

    async def register(self, worker: Worker, cluster_id: str, session_id: str) -> RegisterResult:
        self.workers[worker.worker_id] = replace(worker, live=True)
        self.sessions[worker.worker_id] = session_id
        self.joins.append(worker.worker_id)
        self.epoch += 1
        return RegisterResult(self.cluster_id, await self.get_cluster())

    async def report_blocks(self, worker_id: WorkerId, session_id: str, chunks: AsyncIterator[BlockReport]) -> None:
        for key in [key for key in self.blocks if key[0] == worker_id]:
            del self.blocks[key]
        async for chunk in chunks:
            self._apply(worker_id, list(chunk.iter_deltas()))

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatResult:
        if self.sessions.get(heartbeat.worker_id) != heartbeat.session_id:
            return HeartbeatResult(register_again=True)
        self.beats.append(heartbeat)
        self._apply(heartbeat.worker_id, heartbeat.changes)
        return HeartbeatResult(
            cluster=await self.get_cluster() if heartbeat.cluster_epoch != self.epoch else None,
            rates=self.rates,
            demand_elsewhere=self.demand_elsewhere,
        )

    async def leave(self, worker_id: WorkerId, session_id: str) -> None:
        self.left.append(worker_id)
        if worker_id in self.workers:
            self.workers[worker_id] = replace(self.workers[worker_id], live=False)
            self.epoch += 1

    async def get_mount_secrets(self, mount_id: MountId) -> MountSecrets:
        if mount_id not in self.mounts:
            raise NotFound("no such mount", subject=str(mount_id))
        return self.mounts[mount_id]

    async def get_entry(self, inode: InodeId) -> LookupResult:
        if inode not in self.refs:
            raise NotFound("no such inode", subject=str(inode))
        ref = self.refs[inode]
        attr = Attr(inode, Kind.FILE, 0o644, 0, 0, ref.size, 1, 1, 1, ref.version)
        return LookupResult(Entry(ref.key, attr, ref), 1.0)

    def _apply(self, worker_id: WorkerId, deltas: Sequence[BlockDelta]) -> None:
        for delta in deltas:
            self.blocks[worker_id, delta.file_id, delta.block] = delta.present_bits


@asynccontextmanager
async def serving_master(master: FakeMaster, bind: str = "127.0.0.1:0") -> AsyncIterator[FakeMaster]:
    """The master answers inside the context."""
    server = create_server(bind, guard=Guard(TOKEN))
    handler: Any = master
    add_master_services(server.grpc_server, namespace=handler, mounts=handler, workers=handler, cache=handler)
    await server.start()
    master.address = server.address
    try:
        yield master
    finally:
        await server.stop(0.2)


def write_token(directory: Path) -> Path:
    """A token file that the services accept."""
    file = directory / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    return file
