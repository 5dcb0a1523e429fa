"""Between protobuf messages and our own types.

Owns every conversion: `to_x` reads a message into our type, a function named like a message builds it. Pure functions, safe from
any thread. An unknown enum number from a newer peer becomes the most harmless known one.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence

from alluxio_like import errors
from alluxio_like.rpc.messages import (
    BlockDelta,
    BlockLocation,
    BlockReport,
    CacheStatus,
    DirPage,
    FreeResult,
    FsTotals,
    Heartbeat,
    HeartbeatResult,
    HolderStatus,
    Job,
    JobProblem,
    JobState,
    LoadSpec,
    LookupResult,
    MountInfo,
    MountSpec,
    RateShare,
    ReplicaCount,
    Throttle,
    TreePage,
)
from alluxio_like.rpc.v1 import common_pb2, master_pb2, worker_pb2
from alluxio_like.types import (
    BLOCK_BYTES,
    PAGE_BYTES,
    Attr,
    Cluster,
    Entry,
    FileId,
    FileRef,
    Fingerprint,
    InodeId,
    JobId,
    Kind,
    MountId,
    Space,
    TreeColumns,
    VersionId,
    Worker,
    WorkerId,
    to_bytes,
    to_str,
)

# --- common ---


_KINDS = {int(kind): kind for kind in Kind}


def fingerprint(value: Fingerprint) -> common_pb2.Fingerprint:
    return common_pb2.Fingerprint(token=value.token, size=value.size)


def to_fingerprint(message: common_pb2.Fingerprint) -> Fingerprint:
    return Fingerprint(message.token, message.size)


def attr(value: Attr) -> common_pb2.Attr:
    return common_pb2.Attr(
        inode=value.inode,
        kind=int(value.kind),  # type: ignore[arg-type]
        mode=value.mode,
        uid=value.uid,
        gid=value.gid,
        size=value.size,
        mtime_ns=value.mtime_ns,
        ctime_ns=value.ctime_ns,
        nlink=value.nlink,
        version=value.version,
        atime_ns=value.atime_ns,
        device=value.device,
        no_xattrs=not value.has_xattrs,
    )


def to_attr(message: common_pb2.Attr) -> Attr:
    return Attr(
        InodeId(message.inode),
        _KINDS.get(message.kind, Kind.FILE),
        message.mode,
        message.uid,
        message.gid,
        message.size,
        message.mtime_ns,
        message.ctime_ns,
        message.nlink,
        VersionId(message.version),
        message.atime_ns if message.HasField("atime_ns") else None,
        message.device,
        not message.no_xattrs,
    )


def entry(value: Entry, *, dir_key: str | None = None, mount_id: MountId = MountId(0)) -> common_pb2.Entry:
    """In a listing (`dir_key` given) a key that follows from the name, and the listing's mount id, are left out."""
    message = common_pb2.Entry(name=to_bytes(value.name), attr=attr(value.attr))
    ref = value.ref
    if ref is not None:
        if dir_key is None or ref.mount_id != mount_id:
            message.mount_id = ref.mount_id
        if dir_key is None or ref.key != dir_key + value.name:
            message.key = to_bytes(ref.key)
        message.fingerprint.token = ref.fingerprint.token
        message.fingerprint.size = ref.fingerprint.size
        message.pinned = ref.pinned
        if ref.inode != value.attr.inode:
            message.content_inode = ref.inode
        if ref.source is not None:
            message.source.CopyFrom(fingerprint(ref.source))
        message.holders.extend(ref.holders)
        message.continues = ref.continues
    return message


def to_entry(message: common_pb2.Entry, *, dir_key: str = "", mount_id: int = 0) -> Entry:
    name, attributes = to_str(message.name), to_attr(message.attr)
    if not message.HasField("fingerprint"):
        return Entry(name, attributes)
    ref = FileRef(
        InodeId(message.content_inode) if message.content_inode else attributes.inode,
        attributes.version,
        MountId(message.mount_id or mount_id),
        to_str(message.key) if message.key else dir_key + name,
        to_fingerprint(message.fingerprint),
        message.pinned,
        to_fingerprint(message.source) if message.HasField("source") else None,
        tuple(WorkerId(one) for one in message.holders),
        frozen=message.content_inode != 0,
        continues=message.continues,
    )
    return Entry(name, attributes, ref)


def file_ref(value: FileRef) -> common_pb2.FileRef:
    return common_pb2.FileRef(
        inode=value.inode,
        version=value.version,
        mount_id=value.mount_id,
        key=to_bytes(value.key),
        fingerprint=fingerprint(value.fingerprint),
        pinned=value.pinned,
        source=None if value.source is None else fingerprint(value.source),
        holders=value.holders,
        frozen=value.frozen,
    )


def to_file_ref(message: common_pb2.FileRef) -> FileRef:
    return FileRef(
        InodeId(message.inode),
        VersionId(message.version),
        MountId(message.mount_id),
        to_str(message.key),
        to_fingerprint(message.fingerprint),
        message.pinned,
        to_fingerprint(message.source) if message.HasField("source") else None,
        tuple(WorkerId(one) for one in message.holders),
        message.frozen,
    )


def file_id(value: FileId) -> common_pb2.FileId:
    return common_pb2.FileId(inode=value.inode, version=value.version)


def to_file_id(message: common_pb2.FileId) -> FileId:
    return FileId(InodeId(message.inode), VersionId(message.version))


def worker_info(value: Worker) -> common_pb2.WorkerInfo:
    return common_pb2.WorkerInfo(
        worker_id=value.worker_id,
        address=value.address,
        host_id=value.host_id,
        door_path=value.door_path,
        capacity_bytes=value.capacity_bytes,
        used_bytes=value.used_bytes,
        live=value.live,
        last_seen_s=value.last_seen_s,
        home_bytes=value.home_bytes,
        guest_bytes=value.guest_bytes,
        pinned_bytes=value.pinned_bytes,
        file_count=value.file_count,
        data_address=value.data_address,
        data_nonce=value.data_nonce,
        usable_bytes=value.usable_bytes,
        unpersisted_bytes=value.unpersisted_bytes,
        unpersisted_limit_bytes=value.unpersisted_limit_bytes,
        kept_bytes=value.kept_bytes,
    )


def to_worker(message: common_pb2.WorkerInfo) -> Worker:
    return Worker(
        worker_id=WorkerId(message.worker_id),
        address=message.address,
        host_id=message.host_id,
        door_path=message.door_path,
        capacity_bytes=message.capacity_bytes,
        used_bytes=message.used_bytes,
        live=message.live,
        last_seen_s=message.last_seen_s,
        home_bytes=message.home_bytes,
        guest_bytes=message.guest_bytes,
        pinned_bytes=message.pinned_bytes,
        file_count=message.file_count,
        data_address=message.data_address,
        data_nonce=message.data_nonce,
        usable_bytes=message.usable_bytes if message.HasField("usable_bytes") else None,
        unpersisted_bytes=message.unpersisted_bytes,
        unpersisted_limit_bytes=message.unpersisted_limit_bytes if message.HasField("unpersisted_limit_bytes") else None,
        kept_bytes=message.kept_bytes,
    )


def cluster_view(value: Cluster) -> common_pb2.ClusterView:
    return common_pb2.ClusterView(
        cluster_id=value.cluster_id,
        epoch=value.epoch,
        workers=[worker_info(worker) for worker in value.workers],
        whole_file_limit_bytes=value.whole_file_limit_bytes,
        page_bytes=PAGE_BYTES,
        block_bytes=BLOCK_BYTES,
    )


def to_cluster(message: common_pb2.ClusterView) -> Cluster:
    workers = tuple(to_worker(worker) for worker in message.workers)
    return Cluster(message.cluster_id, message.epoch, workers, message.whole_file_limit_bytes)


# --- namespace ---


def lookup_reply(value: LookupResult) -> master_pb2.LookupReply:
    reply = master_pb2.LookupReply(entry=None if value.entry is None else entry(value.entry), valid_s=value.valid_s)
    if value.leased:
        reply.leased = True
        reply.directory = value.directory
        reply.chain.extend(value.chain)
    return reply


def to_lookup_result(message: master_pb2.LookupReply) -> LookupResult:
    known = to_entry(message.entry) if message.HasField("entry") else None
    if not message.leased:
        return LookupResult(known, message.valid_s)
    chain = tuple([InodeId(one) for one in message.chain])
    return LookupResult(known, message.valid_s, True, InodeId(message.directory), chain)


def list_dir_reply(value: DirPage) -> master_pb2.ListDirReply:
    return master_pb2.ListDirReply(
        entries=[entry(one, dir_key=value.dir_key, mount_id=value.mount_id) for one in value.entries],
        next_cursor=value.next_cursor,
        valid_s=value.valid_s,
        mount_id=value.mount_id,
        dir_key=to_bytes(value.dir_key),
        leased=value.leased,
        unleased=value.unleased,
    )


def to_dir_page(message: master_pb2.ListDirReply) -> DirPage:
    dir_key, mount_id = to_str(message.dir_key), message.mount_id
    entries = tuple([to_entry(one, dir_key=dir_key, mount_id=mount_id) for one in message.entries])
    unleased = tuple([InodeId(one) for one in message.unleased])
    return DirPage(entries, message.next_cursor, message.valid_s, MountId(mount_id), dir_key, message.leased, unleased)


def fs_totals_reply(value: FsTotals) -> master_pb2.StatFsReply:
    return master_pb2.StatFsReply(
        files=value.files,
        known_bytes=value.known_bytes,
        capacity_bytes=value.capacity_bytes,
        used_bytes=value.used_bytes,
        space=None if value.space is None else _space(value.space),
        policy=value.policy,
        quota_free_bytes=value.quota_free_bytes,
        has_quotas=value.has_quotas,
    )


def to_fs_totals(message: master_pb2.StatFsReply) -> FsTotals:
    return FsTotals(
        message.files,
        message.known_bytes,
        message.capacity_bytes,
        message.used_bytes,
        _to_space(message.space) if message.HasField("space") else None,
        message.policy,
        message.quota_free_bytes if message.HasField("quota_free_bytes") else None,
        message.has_quotas,
    )


def _space(value: Space) -> master_pb2.Space:
    return master_pb2.Space(
        total_bytes=value.total_bytes,
        free_bytes=value.free_bytes,
        total_files=value.total_files,
        free_files=value.free_files,
    )


def _to_space(message: master_pb2.Space) -> Space:
    return Space(message.total_bytes, message.free_bytes, message.total_files, message.free_files)


# --- mounts ---


def mount_request(operation_id: str, spec: MountSpec) -> master_pb2.MountRequest:
    return master_pb2.MountRequest(
        operation_id=operation_id,
        path=to_bytes(spec.path),
        uri=spec.uri,
        options=dict(spec.options),
        read_only=spec.read_only,
        sync_interval_s=spec.sync_interval_s,
        uid=spec.uid,
        gid=spec.gid,
        skip_check=spec.skip_check,
        update=spec.update,
        keep_others=spec.keep_others,
    )


def to_mount_spec(message: master_pb2.MountRequest) -> MountSpec:
    return MountSpec(
        path=to_str(message.path),
        uri=message.uri,
        options=dict(message.options),
        read_only=message.read_only,
        sync_interval_s=message.sync_interval_s,
        uid=message.uid,
        gid=message.gid,
        skip_check=message.skip_check,
        update=message.update,
        keep_others=message.keep_others,
    )


def mount_info(value: MountInfo) -> master_pb2.MountInfo:
    return master_pb2.MountInfo(
        mount_id=value.mount_id,
        path=to_bytes(value.path),
        uri=value.uri,
        options=dict(value.options),
        read_only=value.read_only,
        sync_interval_s=value.sync_interval_s,
        uid=value.uid,
        gid=value.gid,
        created_ns=value.created_ns,
        trouble=value.trouble,
        sync_paths=[master_pb2.PathInterval(path=to_bytes(path), interval_s=s) for path, s in sorted(value.sync_paths.items())],
        write=value.write,
        write_paths=[master_pb2.PathPolicy(path=to_bytes(path), policy=p) for path, p in sorted(value.write_paths.items())],
    )


def to_mount_info(message: master_pb2.MountInfo) -> MountInfo:
    return MountInfo(
        mount_id=MountId(message.mount_id),
        path=to_str(message.path),
        uri=message.uri,
        options=dict(message.options),
        read_only=message.read_only,
        sync_interval_s=message.sync_interval_s,
        uid=message.uid,
        gid=message.gid,
        created_ns=message.created_ns,
        trouble=message.trouble,
        sync_paths={to_str(one.path): one.interval_s for one in message.sync_paths},
        write=message.write,
        write_paths={to_str(one.path): one.policy for one in message.write_paths},
    )


# --- workers at the master ---


def block_delta(value: BlockDelta) -> master_pb2.BlockDelta:
    return master_pb2.BlockDelta(
        inode=value.file_id.inode,
        version=value.file_id.version,
        block=value.block,
        present_bits=value.present_bits,
        bytes=value.present_bytes,
    )


def tree_page(value: TreePage) -> master_pb2.TreePage:
    columns = value.columns
    return master_pb2.TreePage(
        directories=columns.directories,
        counts=columns.counts,
        inodes=columns.inodes,
        kinds=columns.kinds,
        sizes=columns.sizes,
        mtimes_ns=columns.mtimes_ns,
        names=columns.names,
        name_ends=columns.name_ends,
        tokens=columns.tokens,
        token_ends=columns.token_ends,
        mark=value.mark,
        unchanged=value.unchanged,
    )


def to_tree_page(message: master_pb2.TreePage) -> TreePage:
    columns = TreeColumns(
        message.inodes,
        message.kinds,
        message.sizes,
        message.mtimes_ns,
        message.names,
        message.name_ends,
        message.tokens,
        message.token_ends,
        message.directories,
        message.counts,
    )
    return TreePage(columns, message.mark, message.unchanged)


def block_report(worker_id: WorkerId, session_id: str, blocks: Sequence[BlockDelta]) -> master_pb2.BlockReport:
    """A part of a report: what can be is sent as columns."""
    others = []
    inodes, versions, sizes = array("Q"), array("I"), array("I")
    for delta in blocks:
        size = delta.present_bytes
        is_whole = delta.block == 0 and size > 0 and delta.present_bits == (1 << -(-size // PAGE_BYTES)) - 1
        if is_whole and delta.file_id.version <= _MAX_U32:
            inodes.append(delta.file_id.inode)
            versions.append(delta.file_id.version)
            sizes.append(size)
        else:
            others.append(block_delta(delta))
    return master_pb2.BlockReport(
        worker_id=worker_id,
        session_id=session_id,
        blocks=others,
        whole_inodes=_to_little_endian(inodes),
        whole_versions=_to_little_endian(versions),
        whole_sizes=_to_little_endian(sizes),
    )


def to_block_report(message: master_pb2.BlockReport) -> BlockReport:
    """The reverse. Raises InvalidArgument for columns that are cut."""
    return BlockReport(
        [to_block_delta(block) for block in message.blocks],
        _from_little_endian("Q", message.whole_inodes),
        _from_little_endian("I", message.whole_versions),
        _from_little_endian("I", message.whole_sizes),
    )


_MAX_U32 = (1 << 32) - 1


def _to_little_endian(column: "array[int]") -> bytes:
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _from_little_endian(code: str, data: bytes) -> "array[int]":
    column = array(code)
    try:
        column.frombytes(data)
    except ValueError:
        raise errors.InvalidArgument("a column is cut") from None
    if sys.byteorder == "big":
        column.byteswap()
    return column


def to_block_delta(message: master_pb2.BlockDelta) -> BlockDelta:
    which = FileId(InodeId(message.inode), VersionId(message.version))
    return BlockDelta(which, message.block, message.present_bits, message.bytes)


def heartbeat_request(value: Heartbeat) -> master_pb2.HeartbeatRequest:
    return master_pb2.HeartbeatRequest(
        worker_id=value.worker_id,
        session_id=value.session_id,
        sequence=value.sequence,
        changes=[block_delta(change) for change in value.changes],
        status=worker_info(value.status),
        throttles=[master_pb2.Throttle(bucket=one.bucket, count=one.count, used_rate=one.used_rate) for one in value.throttles],
        cluster_epoch=value.cluster_epoch,
        demand=value.demand,
    )


def to_heartbeat(message: master_pb2.HeartbeatRequest) -> Heartbeat:
    return Heartbeat(
        worker_id=WorkerId(message.worker_id),
        session_id=message.session_id,
        sequence=message.sequence,
        changes=tuple([to_block_delta(change) for change in message.changes]),
        status=to_worker(message.status),
        throttles=tuple(Throttle(one.bucket, one.count, one.used_rate) for one in message.throttles),
        cluster_epoch=message.cluster_epoch,
        demand=message.demand,
    )


def rate_shares(values: Iterable[RateShare]) -> list[master_pb2.RateShare]:
    return [master_pb2.RateShare(bucket=one.bucket, requests_per_s=one.requests_per_s) for one in values]


def to_rate_shares(messages: Iterable[master_pb2.RateShare]) -> tuple[RateShare, ...]:
    return tuple(RateShare(one.bucket, one.requests_per_s) for one in messages)


def heartbeat_reply(value: HeartbeatResult) -> master_pb2.HeartbeatReply:
    return master_pb2.HeartbeatReply(
        register_again=value.register_again,
        cluster=None if value.cluster is None else cluster_view(value.cluster),
        rates=rate_shares(value.rates),
        demand_elsewhere=value.demand_elsewhere,
    )


def to_heartbeat_result(message: master_pb2.HeartbeatReply) -> HeartbeatResult:
    cluster = to_cluster(message.cluster) if message.HasField("cluster") else None
    return HeartbeatResult(message.register_again, cluster, to_rate_shares(message.rates), message.demand_elsewhere)


def file_locations(values: Iterable[BlockLocation]) -> master_pb2.FileLocations:
    return master_pb2.FileLocations(
        blocks=[
            master_pb2.BlockLocation(
                block=one.block, worker_id=one.worker_id, present_bits=one.present_bits, bytes=one.present_bytes
            )
            for one in values
        ]
    )


def to_locations(message: master_pb2.FileLocations) -> tuple[BlockLocation, ...]:
    return tuple(BlockLocation(one.block, WorkerId(one.worker_id), one.present_bits, one.bytes) for one in message.blocks)


# --- jobs and cached data ---


def load_spec(value: LoadSpec) -> master_pb2.LoadSpec:
    return master_pb2.LoadSpec(
        replicas=value.replicas,
        glob=value.glob,
        bandwidth_bytes_s=value.bandwidth_bytes_s,
        hosts=list(value.hosts),
        dry_run=value.dry_run,
        fit=value.fit,
        verify=value.verify,
    )


def to_load_spec(message: master_pb2.LoadSpec) -> LoadSpec:
    return LoadSpec(
        replicas=message.replicas or 1,
        glob=message.glob,
        bandwidth_bytes_s=message.bandwidth_bytes_s,
        hosts=tuple(message.hosts),
        dry_run=message.dry_run,
        fit=message.fit,
        verify=message.verify,
    )


def job_problem(value: JobProblem) -> master_pb2.JobProblem:
    return master_pb2.JobProblem(path=to_bytes(value.path), code=value.code, message=value.message)


def to_job_problem(message: master_pb2.JobProblem) -> JobProblem:
    return JobProblem(to_str(message.path), message.code, message.message)


_JOB_NUMBERS = (
    "path_count",
    "listing_done",
    "total_files",
    "total_bytes",
    "done_files",
    "done_bytes",
    "skipped_files",
    "skipped_bytes",
    "failed_files",
    "unfit_files",
    "unfit_bytes",
    "checked_files",
    "requests",
    "rate_bytes_s",
    "eta_s",
    "free_bytes",
    "created_ns",
    "ended_ns",
    "reason",
)
"""Fields of a job that are the same on both sides."""


def job(value: Job) -> master_pb2.Job:
    return master_pb2.Job(
        job_id=value.job_id,
        state=int(value.state),  # type: ignore[arg-type]
        spec=load_spec(value.spec),
        paths=[to_bytes(path) for path in value.paths],
        problems=[job_problem(problem) for problem in value.problems],
        **{name: getattr(value, name) for name in _JOB_NUMBERS},
    )


def to_job(message: master_pb2.Job) -> Job:
    known = JobState.PLANNING <= message.state <= JobState.CANCELLED
    return Job(
        job_id=JobId(message.job_id),
        state=JobState(message.state) if known else JobState.RUNNING,
        spec=to_load_spec(message.spec),
        paths=tuple(to_str(path) for path in message.paths),
        problems=tuple(to_job_problem(problem) for problem in message.problems),
        **{name: getattr(message, name) for name in _JOB_NUMBERS},
    )


def cache_status_reply(value: CacheStatus) -> master_pb2.CacheStatusReply:
    return master_pb2.CacheStatusReply(
        files=value.files,
        bytes=value.known_bytes,
        cached_files=value.cached_files,
        cached_bytes=value.cached_bytes,
        stored_bytes=value.stored_bytes,
        pinned_files=value.pinned_files,
        holders=[
            master_pb2.HolderStatus(worker_id=one.worker_id, address=one.address, files=one.files, bytes=one.cached_bytes)
            for one in value.holders
        ],
        replicas=[master_pb2.ReplicaCount(replicas=one.replicas, files=one.files) for one in value.replicas],
        version=value.version,
        complete=value.complete,
        summed=value.summed,
    )


def to_cache_status(message: master_pb2.CacheStatusReply) -> CacheStatus:
    return CacheStatus(
        files=message.files,
        known_bytes=message.bytes,
        cached_files=message.cached_files,
        cached_bytes=message.cached_bytes,
        stored_bytes=message.stored_bytes,
        pinned_files=message.pinned_files,
        holders=tuple(HolderStatus(WorkerId(one.worker_id), one.address, one.files, one.bytes) for one in message.holders),
        replicas=tuple(ReplicaCount(one.replicas, one.files) for one in message.replicas),
        version=VersionId(message.version),
        complete=message.complete,
        summed=message.summed,
    )


def to_free_result(message: master_pb2.FreeReply | worker_pb2.FreeFilesReply) -> FreeResult:
    return FreeResult(message.files, message.bytes, message.kept_pinned_files)
