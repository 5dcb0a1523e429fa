"""What a worker has to upload, in memory."""

from alluxio_like.cache.upload_table import UploadTable
from alluxio_like.cache.writing_records import UploadRecord
from alluxio_like.types import FileId, FileRef, Fingerprint, InodeId, MountId, VersionId


def make_record(inode: int, version: int, size: int, mode: str = "back") -> UploadRecord:
    ref = FileRef(InodeId(inode), VersionId(version), MountId(1), f"key-{inode}", Fingerprint(f"own:{version}", size))
    return UploadRecord(ref, mode, 1, "token")


def test_sums_and_lists_are_those_of_what_is_there() -> None:
    table = UploadTable()
    first, second, other = make_record(1, 1, 10), make_record(1, 2, 30), make_record(2, 1, 7, "cache")
    # The newer version first: a start reads them in no order of their coming.
    for record in (second, first, other):
        table.put(record, 0)
    assert table.list_of(InodeId(1)) == [first, second]
    assert table.list_of(InodeId(3)) == []
    assert table.count() == (3, 47)
    assert table.count({"back", "through"}) == (2, 40)
    assert set(table.list_inodes({"back"})) == {InodeId(1)}

    changed = make_record(2, 1, 7, "back")
    table.put(changed, 1)
    assert table.count({"cache"}) == (0, 0)
    assert table.get(changed.file_id) == (changed, 1)
    assert set(table.list_inodes({"back"})) == {InodeId(1), InodeId(2)}

    assert table.pop(first.file_id) == (first, 0)
    assert table.pop(first.file_id) is None
    assert first.file_id not in table
    assert table.list_of(InodeId(1)) == [second]
    assert table.pop(second.file_id) == (second, 0)
    assert table.pop(FileId(InodeId(2), VersionId(1))) == (changed, 1)
    assert table.count() == (0, 0)
    assert table.list_all() == []
    assert table.list_inodes({"back", "cache"}) == []
