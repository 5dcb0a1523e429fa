"""Older versions of S3's objects, found by what is known of a content: its ETag and size.

Owns the search for a version, and what is remembered: which version a content is, and for a while that a bucket keeps none. A
content is looked for only after the key turned out to hold another one. Used like s3.py.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote_to_bytes

from alluxio_like import errors
from alluxio_like.types import Fingerprint, to_bytes
from alluxio_like.ufs.s3_archive import S3Archive
from alluxio_like.ufs.s3_listing import strip_quotes
from alluxio_like.ufs.s3_settings import S3Settings

_KNOWN = 100_000
"""Contents of which the version is remembered: some 50 MB at most."""
_TOLD_S = 300.0
"""For how long a bucket is not asked again whether it keeps versions. A guess."""
_FIRST_PAGE, _PAGE = 20, 1000
"""Versions asked for: most objects have few, and what follows them in the listing are those of other keys."""
_ENABLED = "Enabled"

Content = tuple[str, Fingerprint]


class S3Versions(S3Archive):
    """`VersionedUfs` on S3."""

    def __init__(self, settings: S3Settings, prefix: str, *, on_request: Callable[[str], None]) -> None:
        super().__init__(settings, prefix, on_request=on_request)
        self._known: OrderedDict[Content, str] = OrderedDict()
        self._searches: dict[Content, asyncio.Task[str]] = {}
        self._may_keep = False
        self._told_until_s = 0.0

    async def keeps_versions(self) -> bool:
        try:
            return await self._get_versioning() == _ENABLED
        except errors.Unsupported:
            return False

    async def read_kept(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncGenerator[memoryview, None]:
        content = (key, fingerprint)
        version = self._known.get(content)
        for is_last in (False, True):
            try:
                async with aclosing(self._read_version(key, fingerprint, offset, length, version)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except errors.Stale:
                # Nothing has come yet: the content is compared before its first byte.
                if is_last:
                    raise
            except (errors.StoreDenied, errors.StoreArchived) as error:
                raise error if version is None else _explain_refusal(error, key, version) from None
            found = self._known.get(content)
            if found == version:
                self._known.pop(content, None)
                found = await self._find(content)
            version = found

    async def close(self) -> None:
        for task in self._searches.values():
            task.cancel()
        await asyncio.gather(*self._searches.values(), return_exceptions=True)
        await super().close()

    async def _find(self, content: Content) -> str:
        """The version that has the content; those who look for it at the same time share one search. Raises Stale."""
        search = self._searches.get(content)
        if search is None:
            search = self._searches[content] = asyncio.create_task(self._search(*content), name=f"versions of {content[0]}")
            search.add_done_callback(lambda done: self._end_search(content, done))
        return await asyncio.shield(search)

    def _end_search(self, content: Content, search: "asyncio.Task[str]") -> None:
        del self._searches[content]
        # An error was given to those who wait, if anybody still did.
        if search.cancelled() or search.exception() is not None:
            return
        self._known[content] = search.result()
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)

    async def _search(self, key: str, fingerprint: Fingerprint) -> str:
        if not await self._ask_may_keep():
            raise errors.Stale(
                "the store holds another content by now, and keeps no older versions: that takes versioning of the bucket, from "
                "before a content is replaced",
                subject=key,
            )
        version = await self._look_through(key, fingerprint)
        if version is None:
            raise errors.Stale(
                "the store holds another content by now, and no older version is this one: it was removed there", subject=key
            )
        return version

    async def _ask_may_keep(self) -> bool:
        """Whether there can be older versions: also where versioning was on once, and where nobody says."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._told_until_s:
            try:
                self._may_keep = await self._get_versioning() != ""
            except errors.Unsupported:
                self._may_keep = False
            except errors.StoreDenied:
                self._may_keep = True
            self._told_until_s = loop.time() + _TOLD_S
        return self._may_keep

    async def _get_versioning(self) -> str:
        """Enabled, Suspended, or "" of a bucket that never kept versions."""
        place: Any = {"Bucket": self._settings.bucket}
        answer = await self._ask("HEAD", self.bucket, lambda client: client.get_bucket_versioning(**place))
        return str(answer.get("Status") or "")

    async def _look_through(self, key: str, fingerprint: Fingerprint) -> str | None:
        """The version of a key that has a content; None: none has."""
        full_key = self._prefix + key
        arguments: Any = {"Bucket": self._settings.bucket, "Prefix": full_key, "EncodingType": "url", "MaxKeys": _FIRST_PAGE}
        arguments |= self._get_payer()
        while True:
            try:
                answer: Any = await self._ask("LIST", key, lambda client: client.list_object_versions(**arguments))  # noqa: B023
            except errors.StoreDenied:
                raise errors.StoreDenied(
                    "the store has another content by now, and its older versions may not be looked for: that needs "
                    "s3:ListBucketVersions and s3:GetObjectVersion",
                    subject=key,
                ) from None
            version, is_over = find_version(answer, full_key, fingerprint)
            if version is not None or is_over:
                return version
            marker = str(answer.get("NextVersionIdMarker") or "")
            if not marker or marker == arguments.get("VersionIdMarker"):
                raise errors.StoreProtocol("the store's listing of versions does not go on", subject=key)
            arguments |= {"MaxKeys": _PAGE, "KeyMarker": full_key, "VersionIdMarker": marker}


def _explain_refusal(error: errors.StoreError, key: str, version: str) -> errors.StoreError:
    if isinstance(error, errors.StoreArchived):
        return errors.StoreArchived(
            f"its version {version} is in the store's archive, and is to be asked back there", subject=key
        )
    return errors.StoreDenied("an older version may not be read: that needs s3:GetObjectVersion", subject=key)


def find_version(answer: Any, full_key: str, fingerprint: Fingerprint) -> tuple[str | None, bool]:
    """The version of a key with a content in a page of a listing of versions, and whether there are no more of that key: what
    begins with the key is listed behind it. Raises StoreProtocol."""
    is_encoded = answer.get("EncodingType") == "url"
    raw_key = to_bytes(full_key)
    following = str(answer.get("NextKeyMarker") or "")
    is_over = not answer.get("IsTruncated") or raw_key not in {to_bytes(following), _get_raw(following, is_encoded)}
    try:
        for one in answer.get("Versions", ()):
            if _get_raw(one["Key"], is_encoded) != raw_key:
                is_over = True
            elif (strip_quotes(one["ETag"]), one["Size"]) == (fingerprint.token, fingerprint.size):
                return str(one["VersionId"]), is_over
        is_over = is_over or any(_get_raw(one["Key"], is_encoded) != raw_key for one in answer.get("DeleteMarkers", ()))
    except (LookupError, TypeError, ValueError):
        raise errors.StoreProtocol("the store's listing of versions was not understood", subject=full_key) from None
    return None, is_over


def _get_raw(text: str, is_encoded: bool) -> bytes:
    return unquote_to_bytes(text.replace("+", " ")) if is_encoded else to_bytes(text)
