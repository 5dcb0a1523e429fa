"""Between the report's protobuf messages and our own types: what spans the master's and the workers'. Pure functions."""

from alluxio_like.rpc import convert, convert_worker
from alluxio_like.rpc.messages import Report
from alluxio_like.rpc.v1 import master_pb2


def report_reply(value: Report) -> master_pb2.ReportReply:
    return master_pb2.ReportReply(
        cluster=convert.cluster_view(value.cluster),
        mounts=[convert.mount_info(one) for one in value.mounts],
        jobs=[convert.job(one) for one in value.jobs],
        totals=convert.fs_totals_reply(value.totals),
        uptime_s=value.uptime_s,
        software_version=value.software_version,
        limited_buckets=convert.rate_shares(value.limited_buckets),
        warnings=list(value.warnings),
        details=[convert_worker.worker_status_reply(one) for one in value.details],
        unpersisted_files=value.unpersisted_files,
        unpersisted_bytes=value.unpersisted_bytes,
        journal_steps=value.journal_steps,
    )


def to_report(message: master_pb2.ReportReply) -> Report:
    return Report(
        cluster=convert.to_cluster(message.cluster),
        mounts=tuple(convert.to_mount_info(one) for one in message.mounts),
        jobs=tuple(convert.to_job(one) for one in message.jobs),
        totals=convert.to_fs_totals(message.totals),
        uptime_s=message.uptime_s,
        software_version=message.software_version,
        limited_buckets=convert.to_rate_shares(message.limited_buckets),
        warnings=tuple(message.warnings),
        details=tuple(convert_worker.to_worker_status(one) for one in message.details),
        unpersisted_files=message.unpersisted_files,
        unpersisted_bytes=message.unpersisted_bytes,
        journal_steps=message.journal_steps,
    )
