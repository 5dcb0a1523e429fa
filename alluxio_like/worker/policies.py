"""What a write policy asks for before a close returns: an upload, copies, or neither.

Owns that decision; uploads are uploading.py's, copies replicating.py's, the bound on what may wait dirty.py's. Rule of
concurrency: one event loop.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from alluxio_like import errors
from alluxio_like.cache.drafts import Drafts
from alluxio_like.cache.writing_records import UploadRecord
from alluxio_like.rpc.messages_writing import Published, PublishedFile, WriteMode
from alluxio_like.types import FileRef
from alluxio_like.worker.dirty import DrainCap
from alluxio_like.worker.replicating import Replicator
from alluxio_like.worker.uploading import Uploader


class Policies:
    """One per worker. `patience_s`: how long what does not go forward is waited for."""

    def __init__(self, drafts: Drafts, uploader: Uploader, replicator: Replicator, cap: DrainCap, patience_s: float) -> None:
        self._drafts = drafts
        self._uploader = uploader
        self._replicator = replicator
        self._cap = cap
        self._patience_s = patience_s

    async def meet(self, ref: FileRef) -> None:
        """Of a version that was sealed. Raises what is in the way."""
        wait = self._begin(ref)
        if wait is not None:
            await wait

    async def meet_all(self, published: Published) -> Published:
        """Of files that were published; what is in the way is said of each."""
        waits = {one: wait for one, file in enumerate(published.files) if file.ref and (wait := self._begin(file.ref))}
        if not waits:
            return published
        failed = dict(zip(waits, await asyncio.gather(*waits.values(), return_exceptions=True), strict=True))
        return replace(published, files=tuple(_add_error(file, failed.get(one)) for one, file in enumerate(published.files)))

    def _begin(self, ref: FileRef) -> Coroutine[Any, Any, None] | None:
        """Do what is at hand; what is to be waited for."""
        upload = self._drafts.lookup_upload(ref.file_id)
        if upload is None:
            return None
        if upload.mode == WriteMode.THROUGH:
            if self._uploader.may_wait(upload) and not self._cap.is_passed_with(ref.size):
                self._uploader.look_at(ref.inode)
                return None
            return self._uploader.upload(ref.file_id, patience_s=self._patience_s)
        if upload.replicas > 1:
            return self._replicate(upload)
        return self._send_on(upload)

    async def _replicate(self, upload: UploadRecord) -> None:
        # Copies first: until they are there, this worker's loss is the file's.
        await self._replicator.replicate(upload, patience_s=self._patience_s)
        wait = self._send_on(upload)
        if wait is not None:
            await wait

    def _send_on(self, upload: UploadRecord) -> Coroutine[Any, Any, None] | None:
        self._uploader.look_at(upload.file_id.inode)
        if upload.mode == WriteMode.BACK and self._cap.is_passed_with(upload.ref.size):
            return self._uploader.upload(upload.file_id, patience_s=self._patience_s)
        return None


def _add_error(file: PublishedFile, error: BaseException | None) -> PublishedFile:
    """A file of which the master knows, and whose policy is not met."""
    if error is None:
        return file
    if not isinstance(error, errors.AlluxioLikeError):
        raise error
    return replace(file, error=error)
