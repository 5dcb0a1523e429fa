"""What Google Cloud Storage and Azure have in common as stores that are written.

Owns what a key may be, the markers of directories, and the record of uploads that have begun: neither service keeps one that
fits, so each upload has an object of its own below `PARTS`, which is there from `begin_upload` until the upload has ended, and
names the key. It goes first when an upload is aborted. How bytes get to the store and become visible is asked of the subclass.
The same rule of concurrency as in cloud.py; nothing is retried.
"""

import email
import re
import secrets
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email.message import Message
from typing import ClassVar
from urllib.parse import quote, unquote

from alluxio_like import errors
from alluxio_like.types import Kind, to_bytes
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.cloud import PARTS, CloudUfs
from alluxio_like.ufs.rest import Answer, Request
from alluxio_like.ufs.writing import Expected, Source, Upload, WriteOptions, is_utf8

TOKEN = "alluxio-like-token"
"""The name, in an object's metadata, of the token of the write that made it."""
_KEY = "alluxio-like-key"
_MAX_KEY_BYTES = 1024
_ABSENT = Expected(None)
_NUMBER = re.compile(r"([0-9]+)>?$")
_ANSWER = re.compile(rb"HTTP/[0-9.]+ ([0-9]{3})[^\r\n]*\r?\n(.*?)(?:\r?\n\r?\n(.*))?\Z", re.DOTALL)
_CODE = re.compile(rb"(?im)^x-ms-error-code: *([A-Za-z0-9]+)")


class CloudWriter(CloudUfs):
    """`WritableUfs` but for how bytes become visible."""

    @abstractmethod
    async def _send_content(
        self, op: str, key: str, source: Source | None, metadata: Mapping[str, str], expected: Expected | None
    ) -> StoreEntry:
        """One request that makes these bytes (None: no bytes) the content at `key`. Raises Conflict."""

    @abstractmethod
    async def _lookup(self, key: str) -> tuple[StoreEntry, Mapping[str, str]] | None:
        """What is at exactly this key, markers of directories included, with its metadata."""

    @abstractmethod
    async def delete(self, key: str, *, expected: Expected | None = None) -> None: ...

    @abstractmethod
    def _refuse_name(self, full_key: str) -> str:
        """Why the store cannot have this key; "": it can."""

    # -- whole contents -------------------------------------------------------------------------------------------------------

    def refuse_name(self, name: str, *, at_root: bool) -> str:
        if at_root and name == PARTS:
            return "uploads under way are kept there"
        return self._refuse_name(name) if is_utf8(name) else "names of objects are UTF-8"

    async def put(self, key: str, source: Source, options: WriteOptions, *, expected: Expected | None = None) -> StoreEntry:
        self.check_key(key)
        return await self._send_content("PUT", key, source, make_metadata(options), expected)

    async def lookup_written(self, key: str, token: str) -> StoreEntry | None:
        found = await self._lookup(key)
        return found[0] if found is not None and found[1].get(TOKEN) == token else None

    async def read_metadata(self, key: str) -> Mapping[str, str]:
        found = await self._lookup(key)
        if found is None:
            raise errors.NotFound("there is no such object", subject=key)
        return found[1]

    def check_key(self, key: str) -> None:
        """Raises InvalidArgument, NameTooLong, Unsupported unless this can be an object's key."""
        check_named(key)
        full_key = self._prefix + key
        if len(to_bytes(full_key)) > _MAX_KEY_BYTES:
            raise errors.NameTooLong(f"a key has at most {_MAX_KEY_BYTES} bytes here", subject=full_key)
        if not is_utf8(full_key):
            raise errors.Unsupported("the store has no keys that are not UTF-8", subject=repr(key))
        if problem := self._refuse_name(full_key):
            raise errors.Unsupported(problem, subject=repr(key))

    # -- uploads --------------------------------------------------------------------------------------------------------------

    async def begin_upload(self, key: str, options: WriteOptions) -> Upload:
        self.check_key(key)
        upload = Upload(key, secrets.token_hex(16))
        entry = await self._send_content("CREATE", make_record(upload), None, {_KEY: quote(key, safe="")}, _ABSENT)
        return Upload(key, upload.upload_id, entry.mtime_ns)

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        uploads = []
        token: str | None = None
        while True:
            page = await self.list_page(f"{PARTS}/", token)
            for entry in page.entries:
                if entry.kind is Kind.DIRECTORY:
                    upload = await self._read_record(entry.name)
                    if upload.key.startswith(prefix):
                        uploads.append(upload)
            token = page.token
            if token is None:
                return uploads

    async def _read_record(self, upload_id: str) -> Upload:
        """The upload of this name; its key is "" where the record is gone and parts are left, of an abort that was cut short."""
        found = await self._lookup(make_record(Upload("", upload_id)))
        if found is None:
            return Upload("", upload_id)
        return Upload(unquote(found[1].get(_KEY, "")), upload_id, found[0].mtime_ns)

    async def _check_record(self, upload: Upload) -> None:
        """Raises NotFound when the upload has ended."""
        if await self._lookup(make_record(upload)) is None:
            raise errors.NotFound("the upload is no longer known to the store", subject=upload.key)

    # -- directories ----------------------------------------------------------------------------------------------------------

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        raise errors.Unsupported("the store renames nothing: copy and delete", subject=source)

    async def make_directory(self, key: str) -> None:
        self.check_key(f"{key}/")
        if await self._lookup(key) is not None or await self._has_below(key):
            raise errors.AlreadyExists("there is something already", subject=key)
        try:
            await self._send_content("PUT", f"{key}/", None, {}, _ABSENT)
        except errors.Conflict:
            raise errors.AlreadyExists("there is a directory already", subject=key) from None

    async def remove_directory(self, key: str) -> None:
        if await self._has_below(key):
            raise errors.DirectoryNotEmpty("the directory is not empty", subject=key)
        await self.delete(f"{key}/")

    async def _has_below(self, key: str) -> bool:
        """Whether anything but its marker is below a directory."""
        token: str | None = None
        while True:
            page = await self.list_page(f"{key}/", token, max_entries=2)
            if page.entries:
                return True
            token = page.token
            if token is None:
                return False

    # -- many removals at once ------------------------------------------------------------------------------------------------

    _batch_size: ClassVar[int]
    _batch_id: ClassVar[str]
    """How a request's number is written in a batch."""

    @abstractmethod
    def _make_batch(self, keys: Sequence[str]) -> tuple[Request, Sequence[str]]:
        """The request that carries a batch, without its body, and the requests in it, each that removes one of `keys`. In a
        thread."""

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        failed: dict[str, Exception] = {}
        for key in keys:
            check_named(key)
        for start in range(0, len(keys), self._batch_size):
            chunk = keys[start : start + self._batch_size]
            try:
                failed.update(await self._delete_batch(chunk))
            except errors.AlluxioLikeError as error:
                failed.update(dict.fromkeys(chunk, error))
        return failed

    async def _delete_batch(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        """One request that removes at most `_batch_size` files; those that failed."""
        await self._connect()
        request, parts = await self._run(lambda: self._make_batch(keys))
        boundary = f"batch_{secrets.token_hex(16)}"
        lines = []
        for number, part in enumerate(parts):
            lines += [f"--{boundary}", "Content-Type: application/http", "Content-Transfer-Encoding: binary"]
            lines += [f"Content-ID: {self._batch_id.format(number)}", "", part]
        body = "\r\n".join([*lines, f"--{boundary}--", ""]).encode()
        headers = {"Content-Type": f"multipart/mixed; boundary={boundary}"}
        answer = await self._ask("DELETE", replace(request, headers=headers, body=body), self.bucket)
        answers = parse_batch(answer, self.bucket)
        failed: dict[str, Exception] = {}
        for number, key in enumerate(keys):
            one = answers.get(number)
            if one is None:
                failed[key] = errors.StoreProtocol("the store's answer to a batch leaves it out", subject=key)
            elif one.status != 404 and not 200 <= one.status < 300:
                failed[key] = self._make_error(one, key)
        return failed


def check_named(key: str) -> None:
    """Raises InvalidArgument for what names no object at all."""
    if not key or key == "/" or "\0" in key:
        raise errors.InvalidArgument("this cannot be the key of an object", subject=repr(key))


def make_record(upload: Upload) -> str:
    """The key of the object that records an upload."""
    return f"{PARTS}/{upload.upload_id}/begun"


def make_metadata(options: WriteOptions) -> dict[str, str]:
    """What is kept with a content: what the caller gave, and the token."""
    return {**options.metadata, TOKEN: options.token}


def parse_batch(answer: Answer, subject: str) -> dict[int, Answer]:
    """The answers in that to a batch, by the numbers of its requests. Raises StoreProtocol."""
    kind = answer.headers.get("content-type", "")
    parsed = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + answer.body)
    if not parsed.is_multipart():
        raise errors.StoreProtocol("the store's answer to a batch was not understood", subject=subject)
    found: dict[int, Answer] = {}
    for part in parsed.get_payload():
        number = _NUMBER.search(str(part["Content-ID"])) if isinstance(part, Message) else None
        content = part.get_payload(decode=True) if isinstance(part, Message) else None
        head = _ANSWER.match(content.lstrip()) if isinstance(content, bytes) else None
        if number is not None and head is not None:
            code = _CODE.search(head[2])
            headers = {"x-ms-error-code": code[1].decode()} if code else {}
            found[int(number[1])] = Answer(int(head[1]), headers, head[3])
    return found
