"""What each call of the master has to do with delegated directories is decided, of every one that there is."""

import pytest

from alluxio_like.rpc.concerns import Concern, get_concern, is_listed
from alluxio_like.rpc.v1 import coherence_pb2, locks_pb2, master_pb2, quotas_pb2, snapshots_pb2, trash_pb2, writing_pb2

_OF_WORKERS = {"Drafts"}
_FILES = (coherence_pb2, locks_pb2, master_pb2, quotas_pb2, snapshots_pb2, trash_pb2, writing_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}": method.input_type._concrete_class
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    if service.name not in _OF_WORKERS
    for method in service.methods
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_somebody_has_decided_what_a_method_has_to_do_with_them(method: str) -> None:
    assert is_listed(method), "add it to rpc/concerns.py: until then each call of it takes all delegated directories back"
    concern, list_inodes = get_concern(method)
    request = METHODS[method]()
    if concern is Concern.INODES:
        # The fields that it looks at are there.
        assert list_inodes(request) in ((), (0,), (0, 0))


def test_a_method_that_nobody_has_looked_at_has_to_do_with_all() -> None:
    assert not is_listed("/alluxio_like.rpc.v1.Changes/Invented")
    assert get_concern("/alluxio_like.rpc.v1.Changes/Invented")[0] is Concern.ALL


def test_one_directory_is_listed_again_without_taking_all_back() -> None:
    _, list_inodes = get_concern("/alluxio_like.rpc.v1.Namespace/Sync")
    assert list_inodes(master_pb2.SyncRequest(inode=7)) == ()
    assert list_inodes(master_pb2.SyncRequest(inode=7, recursive=True)) is None
