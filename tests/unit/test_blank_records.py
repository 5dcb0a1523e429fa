"""What is recorded of blank drafts and noted with them: it is read as it was written, and what earlier releases wrote is read."""

import json
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from alluxio_like.cache import writing_records as records
from alluxio_like.cache.new_files import NewFile, Note, pack_note, read_note, unpack_note, write_note
from alluxio_like.cache.writing_records import DraftRecord, Sealing, Stamp
from alluxio_like.types import InodeId
from tests.unit.draft_parts import make_new_file, make_own_ref

NUMBERS = st.integers(0, 2**63 - 1)
NAMES = st.binary(min_size=1, max_size=255).map(os.fsdecode)
FILES = st.builds(
    NewFile, st.text(), NUMBERS.map(InodeId), NUMBERS.map(InodeId), NAMES, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS,
    st.none() | NUMBERS, st.booleans(), NUMBERS,
)  # fmt: skip


@given(st.text(), FILES)
def test_a_note_is_read_as_it_was_written(owner: str, file: NewFile) -> None:
    assert unpack_note(pack_note(Note(owner, file))) == Note(owner, file)


@given(FILES, st.booleans(), st.booleans())
def test_a_record_is_read_as_it_was_written(file: NewFile, sealed: bool, told: bool) -> None:
    sealing = Sealing(file.operation_id, Stamp(1, 2, 3, 4)) if sealed else None
    record = DraftRecord(make_own_ref(7, 1, "", 0), 5, sealing=sealing, blank=True, publishing=file if told else None)
    assert records.unpack_draft(records.pack_draft(record)) == record


def test_records_of_earlier_releases_are_of_drafts_that_the_master_knows() -> None:
    record = DraftRecord(make_own_ref(7, 3, "key", 9), 5, Stamp(1, 2, 3, 4))
    raw = records.pack_draft(record)
    # Nothing is in it that an earlier release would not have written.
    assert json.loads(raw).keys() == {"ref", "generation", "stamp", "sealing", "unwanted"}
    assert records.unpack_draft(raw) == record
    assert not records.unpack_draft(raw).blank


def test_a_note_is_kept_with_its_file(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with (tmp_path / "draft").open("wb") as file:
        assert read_note(folder, "draft") is None
        assert read_note(folder, "absent") is None
        for mode in (0o600, 0o644):
            note = Note("client", make_new_file(7, name="a\udcff", mode=mode))
            write_note(file.fileno(), note)
            assert read_note(folder, "draft") == note
    os.close(folder)
