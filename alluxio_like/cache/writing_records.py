"""What is recorded of files that programs write, in the table `writing` of a cache directory's index.

    D inode          a draft: what it began from, what was sealed of it, the seal under way
    S inode          a checksum for each page of what was, or is being, sealed of that draft
    U inode version  a version that the store does not have: what is to become of it, and how far its upload is

Owns the keys and the JSON of these records; nothing is done here. Pure functions, safe from any thread.
"""

import hashlib
import json
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alluxio_like.cache.new_files import NewFile, from_fields, to_fields
from alluxio_like.types import FileId, FileRef, Fingerprint, InodeId, MountId, VersionId, WorkerId

DRAFTS = b"D"
UPLOADS = b"U"
_SUMS = b"S"
_INODE = struct.Struct(">Q")
_FILE = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file's inode says of its content: another one after each change, where the clock's tick is waited out. `number` is
    the file's own on its disk."""

    size: int
    mtime_ns: int
    ctime_ns: int
    number: int


@dataclass(frozen=True, slots=True)
class Sealing:
    """A seal under way: the content of that stamp is being made a version, under this operation id. `copy`: it is in a copy of
    the draft, the file of that generation (0: in the draft itself)."""

    operation_id: str
    stamp: Stamp
    copy: int = 0


@dataclass(frozen=True, slots=True)
class DraftRecord:
    """A draft. `ref` is the version that it began from, or that was sealed last; as long as the file has `stamp`, it holds just
    that (None: nothing known, it is to be sealed). `unwanted`: that version has no name any more. `blank`: the master does not
    know of it, and `ref` is what it will be; `publishing`: so it was told of the file, or is just being told, under the file's
    operation ids (with `sealing`: of that content)."""

    ref: FileRef
    generation: int
    stamp: Stamp | None = None
    sealing: Sealing | None = None
    unwanted: bool = False
    blank: bool = False
    publishing: NewFile | None = None

    @property
    def inode(self) -> InodeId:
        return self.ref.inode


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an upload goes, as the master said when it began: what must be there (None: nothing), what goes with it."""

    mount_id: MountId
    key: str
    expected: Fingerprint | None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """A version that the store does not have. `mode` and `replicas` are its policy. `token` marks what is written to the store as
    ours. `upload_id` and `part_bytes` are of an upload in parts to `destination`, which the store was asked to begin at
    `asked_ns` (`upload_id` empty: its answer was not written down). `appended`: it is the version before and something behind
    it. `early`: its file was still open, and what that holds when it is closed is uploaded in its place."""

    ref: FileRef
    mode: str
    replicas: int
    token: str
    destination: Destination | None = None
    upload_id: str = ""
    part_bytes: int = 0
    asked_ns: int = 0
    appended: bool = False
    early: bool = False

    @property
    def file_id(self) -> FileId:
        return self.ref.file_id


def make_token(cluster_id: str, file_id: FileId) -> str:
    """What marks a version at the store as ours: the same from whichever worker uploads it, and no other version's."""
    return hashlib.sha256(f"{cluster_id}/{file_id.inode}/{file_id.version}".encode()).hexdigest()[:32]


def make_draft_key(inode: InodeId) -> bytes:
    return DRAFTS + _INODE.pack(inode)


def make_sums_key(inode: InodeId) -> bytes:
    return _SUMS + _INODE.pack(inode)


def make_upload_key(file_id: FileId) -> bytes:
    return UPLOADS + _FILE.pack(file_id.inode, file_id.version)


def pack_sums(sums: "array[int]") -> bytes:
    return sums.tobytes()


def unpack_sums(raw: bytes) -> "array[int]":
    sums = array("Q")
    sums.frombytes(raw)
    return sums


def pack_draft(record: DraftRecord) -> bytes:
    sealing = record.sealing
    fields = {
        "ref": _from_ref(record.ref),
        "generation": record.generation,
        "stamp": _from_stamp(record.stamp),
        "sealing": None if sealing is None else [sealing.operation_id, _from_stamp(sealing.stamp), sealing.copy],
        "unwanted": record.unwanted,
    }
    if record.blank:
        fields["blank"] = True
    if record.publishing is not None:
        fields["publishing"] = to_fields(record.publishing)
    return _dump(fields)


def unpack_draft(raw: bytes) -> DraftRecord:
    fields = json.loads(raw)
    sealing = fields["sealing"]
    return DraftRecord(
        _to_ref(fields["ref"]),
        fields["generation"],
        None if fields["stamp"] is None else Stamp(*fields["stamp"]),
        None if sealing is None else Sealing(sealing[0], Stamp(*sealing[1]), sealing[2]),
        fields["unwanted"],
        fields.get("blank", False),
        from_fields(fields["publishing"]) if "publishing" in fields else None,
    )


def pack_upload(record: UploadRecord) -> bytes:
    to = record.destination
    expected = None if to is None else _from_fingerprint(to.expected)
    return _dump(
        {
            "ref": _from_ref(record.ref),
            "mode": record.mode,
            "replicas": record.replicas,
            "token": record.token,
            "to": None if to is None else [to.mount_id, to.key, expected, dict(to.metadata)],
            "upload_id": record.upload_id,
            "part_bytes": record.part_bytes,
            "asked_ns": record.asked_ns,
            "appended": record.appended,
            "early": record.early,
        }
    )


def unpack_upload(raw: bytes) -> UploadRecord:
    fields = json.loads(raw)
    to = fields["to"]
    destination = None if to is None else Destination(MountId(to[0]), to[1], _to_fingerprint(to[2]), to[3])
    return UploadRecord(
        _to_ref(fields["ref"]),
        fields["mode"],
        fields["replicas"],
        fields["token"],
        destination,
        fields["upload_id"],
        fields["part_bytes"],
        fields["asked_ns"],
        fields.get("appended", False),
        fields.get("early", False),
    )


def _dump(fields: Any) -> bytes:
    # Names that are no UTF-8 are lone surrogates here, which JSON's own escapes carry.
    return json.dumps(fields, separators=(",", ":")).encode()


def _from_stamp(stamp: Stamp | None) -> list[int] | None:
    return None if stamp is None else [stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.number]


def _from_fingerprint(fingerprint: Fingerprint | None) -> list[Any] | None:
    return None if fingerprint is None else [fingerprint.token, fingerprint.size]


def _to_fingerprint(fields: list[Any] | None) -> Fingerprint | None:
    return None if fields is None else Fingerprint(*fields)


def _from_ref(ref: FileRef) -> list[Any]:
    fingerprint, source = _from_fingerprint(ref.fingerprint), _from_fingerprint(ref.source)
    return [ref.inode, ref.version, ref.mount_id, ref.key, fingerprint, ref.pinned, source, list(ref.holders)]


def _to_ref(fields: list[Any]) -> FileRef:
    inode, version, mount_id, key, fingerprint, pinned, source, holders = fields
    return FileRef(
        InodeId(inode),
        VersionId(version),
        MountId(mount_id),
        key,
        Fingerprint(*fingerprint),
        pinned,
        _to_fingerprint(source),
        tuple(WorkerId(one) for one in holders),
    )
