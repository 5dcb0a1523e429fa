"""Which names every store can have, so that a mount can make files of them without asking (0071)."""

import re
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like.ufs.az_writing import WritableAzUfs
from alluxio_like.ufs.cephfs import CephUfs
from alluxio_like.ufs.gs_writing import WritableGsUfs
from alluxio_like.ufs.hdfs_writing import WritableHdfsUfs
from alluxio_like.ufs.memory_writing import WritableMemoryUfs
from alluxio_like.ufs.posix_ufs import PosixUfs
from alluxio_like.ufs.s3_writing import S3Writer

KINDS = [WritableAzUfs, CephUfs, WritableGsUfs, WritableHdfsUfs, WritableMemoryUfs, PosixUfs, S3Writer]
names = st.from_regex(r"[A-Za-z0-9._+=@,-]{1,255}", fullmatch=True).filter(lambda name: name[0] != ".")


def refuses(kind: type, name: str) -> bool:
    # (It asks nobody, not even the store that it is of.)
    return bool(kind.refuse_name(object.__new__(kind), name, at_root=False))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
@given(name=names)
def test_no_store_refuses_a_plain_name(kind: type, name: str) -> None:
    assert not refuses(kind, name)


def test_what_some_refuse_begins_with_a_dot() -> None:
    token = secrets.token_hex(16)
    taken = [".snap", f".alluxio_like-{token}", f".x.alluxio-like.{token}", f".alluxio-like-probe-{token[:16]}"]
    refused = {name for name in taken for kind in KINDS if refuses(kind, name)}
    assert refused == set(taken)
    # What a mount looks at: none of these, and nothing that looks like them.
    assert all(name == ".snap" or re.match(r"\.(.*\.)?alluxio[-_]like[-.]", name) for name in taken)
