"""The probe for conditions on writes, against servers of every kind, as far as they matter to it."""

import itertools
from typing import Any

import pytest
from botocore.exceptions import ClientError

from alluxio_like.types import Fingerprint
from alluxio_like.ufs import s3_conditions
from alluxio_like.ufs.s3_conditions import Conditions, Step


class Server:
    """What the probe asks of a server with one object; `put` and `finish` are what it minds."""

    def __init__(self, put: Step, finish: Step, *, absent_status: int = 412, refuses_headers: bool = False) -> None:
        self._minds = {"put": put, "finish": finish}
        self._absent_status = absent_status
        self._refuses_headers = refuses_headers
        self._numbers = itertools.count()
        self.etag: str | None = None
        self.uploads: set[str] = set()

    def _write(self, step: str, condition: dict[str, Any]) -> dict[str, str]:
        minds = self._minds[step]
        if self._refuses_headers and {"IfMatch", "IfNoneMatch"} & condition.keys():
            raise make_error(501, "NotImplemented")
        if "IfNoneMatch" in condition and minds.if_absent and self.etag is not None:
            raise make_error(412, "PreconditionFailed")
        if "IfMatch" in condition and minds.if_match:
            if self.etag is None:
                raise make_error(self._absent_status, "NoSuchKey")
            if condition["IfMatch"] != (f'"{self.etag}"' if minds.is_quoted else self.etag):
                raise make_error(412, "PreconditionFailed")
        self.etag = f"{next(self._numbers):032x}"
        return {"ETag": f'"{self.etag}"' if step == "put" else ""}

    def put_object(self, **arguments: Any) -> dict[str, str]:
        return self._write("put", arguments)

    def create_multipart_upload(self, **_arguments: Any) -> dict[str, str]:
        self.uploads.add("u")
        return {"UploadId": "u"}

    def upload_part(self, **_arguments: Any) -> dict[str, str]:
        return {"ETag": '"part"'}

    def complete_multipart_upload(self, **arguments: Any) -> dict[str, str]:
        assert arguments["UploadId"] in self.uploads
        answer = self._write("finish", arguments)
        self.uploads.discard(arguments["UploadId"])
        return answer

    def abort_multipart_upload(self, **arguments: Any) -> None:
        self.uploads.remove(arguments["UploadId"])

    def delete_object(self, **_arguments: Any) -> None:
        self.etag = None


def make_error(status: int, code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "op")  # type: ignore[typeddict-item]


ALL = Step(True, True)
SERVERS = {
    "AWS": (ALL, ALL),
    "radosgw 16": (Step(True, True, is_quoted=False), Step()),
    "ignores everything": (Step(), Step()),
    "only If-None-Match": (Step(if_absent=True), Step(if_absent=True)),
    "only If-Match": (Step(if_match=True), Step()),
    "bare everywhere": (Step(True, True, is_quoted=False), Step(True, True, is_quoted=False)),
}


@pytest.mark.parametrize(("put", "finish"), SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize("absent_status", [404, 412])
def test_the_probe_finds_out(put: Step, finish: Step, absent_status: int) -> None:
    server = Server(put, finish, absent_status=absent_status)
    asked: list[str] = []
    found = s3_conditions.probe(server, {"Bucket": "b", "Key": "k"}, asked.append)  # type: ignore[arg-type]
    for step, known in [(found.put, put), (found.finish, finish)]:
        assert (step.if_absent, step.if_match) == (known.if_absent, known.if_match)
        if step.if_match:
            assert step.is_quoted == known.is_quoted
    assert (server.etag, server.uploads) == (None, set())
    assert asked[-1] == "DELETE" and len(asked) <= 15


def test_a_server_that_refuses_the_headers() -> None:
    server = Server(Step(), Step(), refuses_headers=True)
    found = s3_conditions.probe(server, {"Bucket": "b", "Key": "k"}, lambda op: None)  # type: ignore[arg-type]
    assert found == Conditions(Step(), Step())
    assert (server.etag, server.uploads) == (None, set())


def test_what_is_no_answer_is_raised() -> None:
    class Denied(Server):
        def put_object(self, **_arguments: Any) -> dict[str, str]:
            raise make_error(403, "AccessDenied")

    with pytest.raises(ClientError):
        s3_conditions.probe(Denied(ALL, ALL), {"Bucket": "b", "Key": "k"}, lambda op: None)  # type: ignore[arg-type]


def test_arguments() -> None:
    content = Fingerprint("abc", 3)
    assert ALL.make_arguments(None) == {"IfNoneMatch": "*"}
    assert ALL.make_arguments(content) == {"IfMatch": '"abc"'}
    assert Step(True, True, is_quoted=False).make_arguments(content) == {"IfMatch": "abc"}
    assert Step().make_arguments(None) is None
    assert Step(if_absent=True).make_arguments(content) is None
