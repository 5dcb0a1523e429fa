"""Which conditions on writes an S3 server honours.

Owns the question. AWS honours all of them and is believed. Others are asked, because a server that ignores a condition answers as
if it had met it: radosgw before 19 compares If-Match only without its quotes and ignores every condition when an upload is
completed (tried with 16.2). The probe writes an object of its own and removes it; who is killed meanwhile leaves it, so nobody is
shown such names, and a later probe removes them. `probe` blocks, in a thread; the rest are pure.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from alluxio_like.types import Fingerprint
from alluxio_like.ufs.s3_errors import get_refusal
from alluxio_like.ufs.s3_listing import add_quotes

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAME = ".alluxio-like-probe-"
"""What the names of the objects begin with that the probe writes."""
LEFT_AFTER_S = 600
"""An object of a probe that is older than this was left by somebody who was killed: a probe is a dozen small requests."""
_NAME = re.compile(re.escape(NAME) + "[0-9a-f]{16}")
_WRONG = Fingerprint("0" * 32, 1)
_REFUSED = {404, 409, 412}
_NOT_UNDERSTOOD = {400, 405, 501}


@dataclass(frozen=True, slots=True)
class Step:
    """A request that makes a content visible: whether it minds `If-None-Match: *`, and `If-Match`, and how that is spelled."""

    if_absent: bool = False
    if_match: bool = False
    is_quoted: bool = True

    @property
    def is_conditional(self) -> bool:
        return self.if_absent and self.if_match

    def make_arguments(self, fingerprint: Fingerprint | None) -> dict[str, str] | None:
        """boto3's arguments that demand this content (None: no content); None: this server would not mind them."""
        if fingerprint is None:
            return {"IfNoneMatch": "*"} if self.if_absent else None
        return {"IfMatch": _spell(fingerprint, self.is_quoted)} if self.if_match else None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What holds for PutObject, and for CompleteMultipartUpload."""

    put: Step
    finish: Step


ALL = Conditions(Step(True, True), Step(True, True))
NONE = Conditions(Step(), Step())


def probe(client: "S3Client", place: Mapping[str, str], count: Callable[[str], object]) -> Conditions:
    """Find out by trying, with an object at `place` (bucket and key; nothing is there). `count` is called with each request.

    Raises boto3's errors for what is no answer to the question: no access, no connection.
    """
    asked = _Asked(client, place, count)
    try:
        return Conditions(put := asked.try_put(), asked.try_finish(put.is_quoted))
    finally:
        asked.request("DELETE", client.delete_object)


def make_probe_key() -> str:
    """A key that nobody has, at the mount's root."""
    return f"{NAME}{secrets.token_hex(8)}"


def is_probe(key: str) -> bool:
    """Whether an object at this key is a probe's, of this mount or, further down, of another one."""
    return NAME in key and _NAME.fullmatch(key.rpartition("/")[2]) is not None


def _spell(fingerprint: Fingerprint, is_quoted: bool) -> str:
    return add_quotes(fingerprint.token) if is_quoted else fingerprint.token


class _Asked:
    """The probe's requests."""

    def __init__(self, client: "S3Client", place: Mapping[str, str], count: Callable[[str], object]) -> None:
        self._client = client
        self._place = place
        self._count = count
        self._etag = ""

    def request(self, op: str, call: Callable[..., Any], **arguments: object) -> Any:
        self._count(op)
        return call(**self._place, **arguments)

    def is_done(self, op: str, call: Callable[..., Any], **arguments: object) -> bool | None:
        """Whether the server did it, or refused as a condition is refused; None: it understood nothing."""
        try:
            answer = self.request(op, call, **arguments)
        except ClientError as error:
            refusal = get_refusal(error)
            if refusal is not None and refusal.status in _REFUSED:
                return False
            if refusal is not None and refusal.status in _NOT_UNDERSTOOD:
                return None
            raise
        self._etag = answer.get("ETag") or self._etag
        return True

    def try_put(self) -> Step:
        def put(**condition: str) -> bool | None:
            return self.is_done("PUT", self._client.put_object, Body=b"?", **condition)

        if_absent = put(IfNoneMatch="*") is True and put(IfNoneMatch="*") is False
        if not if_absent and put() is not True:
            return Step()
        for is_quoted in (True, False):
            right = Fingerprint(self._etag.strip('"'), 1)
            if put(IfMatch=_spell(right, is_quoted)) is True:
                return Step(if_absent, put(IfMatch=_spell(_WRONG, is_quoted)) is False, is_quoted)
        return Step(if_absent)

    def try_finish(self, is_quoted: bool) -> Step:
        """What is there already must keep an upload from being completed; the same content must let it."""
        upload_id = self.request("CREATE", self._client.create_multipart_upload)["UploadId"]
        finished = False
        try:
            part = self.request("PART", self._client.upload_part, UploadId=upload_id, PartNumber=1, Body=b"!")
            parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}

            def finish(**condition: str) -> bool | None:
                return self.is_done(
                    "COMPLETE",
                    self._client.complete_multipart_upload,
                    UploadId=upload_id,
                    MultipartUpload=parts,
                    **condition,
                )

            right = Fingerprint(self._etag.strip('"'), 1)
            first = finish(IfNoneMatch="*")
            finished = first is True
            if first is not False:
                return Step()
            second = finish(IfMatch=_spell(_WRONG, is_quoted))
            finished = second is True
            if second is not False:
                return Step(if_absent=True)
            finished = finish(IfMatch=_spell(right, is_quoted)) is True
            return Step(True, finished, is_quoted)
        finally:
            if not finished:
                self.request("ABORT", self._client.abort_multipart_upload, UploadId=upload_id)
