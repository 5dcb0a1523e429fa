"""What a change's answer tells its caller, over the wire: what is no longer so, and how some of that is now.

Pure functions, for the services whose answers carry it (changes.py, drafts.py).
"""

from collections.abc import Iterable, Sequence

from alluxio_like.rpc import convert
from alluxio_like.rpc.coherence import make_recall, to_recall
from alluxio_like.rpc.messages_writing import Told
from alluxio_like.rpc.v1 import coherence_pb2, writing_pb2
from alluxio_like.types import InodeId, Recall, to_bytes, to_str


def make_recalls(recalls: Iterable[Recall]) -> list[coherence_pb2.Recall]:
    return [make_recall(one) for one in recalls]


def to_recalls(messages: Iterable[coherence_pb2.Recall]) -> tuple[Recall, ...]:
    return tuple([to_recall(one) for one in messages])


def make_told(told: Sequence[Told]) -> list[writing_pb2.Told]:
    return [
        writing_pb2.Told(parent=one.parent, name=to_bytes(one.name), result=convert.lookup_reply(one.result), empty=one.is_empty)
        for one in told
    ]


def to_told(messages: Iterable[writing_pb2.Told]) -> tuple[Told, ...]:
    return tuple(
        [Told(InodeId(one.parent), to_str(one.name), convert.to_lookup_result(one.result), one.empty) for one in messages]
    )
