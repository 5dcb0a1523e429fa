"""Objects in S3's archive: Glacier, Deep Archive, and the archive tiers of Intelligent-Tiering.

Owns what HEAD says of them and the request for their return. Used like s3_writing.py, which it extends.
"""

import re
from email.utils import parsedate_to_datetime
from typing import Any

from alluxio_like import errors
from alluxio_like.ufs.archive import ArchiveState, ArchiveStatus
from alluxio_like.ufs.s3_errors import get_refusal
from alluxio_like.ufs.s3_listing import ARCHIVED, get_time_ns
from alluxio_like.ufs.s3_writing import S3Writer

TIERS = ("Standard", "Bulk", "Expedited")
_EXPIRY = re.compile(r'expiry-date="([^"]*)"')
_TIERING = "INTELLIGENT_TIERING"


class S3Archive(S3Writer):
    """`ArchivingUfs` on S3."""

    async def get_archive_status(self, key: str) -> ArchiveStatus:
        return make_status(await self._head(key))

    async def restore(self, key: str, days: int, tier: str) -> ArchiveStatus:
        if days < 1:
            raise errors.InvalidArgument("a content is asked back for at least one day", subject=str(days))
        if tier and tier.title() not in TIERS:
            raise errors.InvalidArgument(f"S3 has the tiers {', '.join(TIERS)}", subject=tier)
        status = await self.get_archive_status(key)
        if status.state is not ArchiveState.ARCHIVED:
            return status
        wanted: dict[str, Any] = {"GlacierJobParameters": {"Tier": tier.title()}} if tier else {}
        if status.storage_class != _TIERING:
            wanted["Days"] = days
        arguments: Any = {**self._place(key), "RestoreRequest": wanted}
        try:
            await self._ask("RESTORE", key, lambda client: client.restore_object(**arguments))
        except errors.StoreError as error:
            refusal = get_refusal(error.__cause__) if error.__cause__ else None
            if refusal is None or refusal.code not in {"RestoreAlreadyInProgress", "ObjectAlreadyInActiveTierError"}:
                raise
        return await self.get_archive_status(key)


def make_status(found: Any) -> ArchiveStatus:
    """What HEAD's answer says."""
    storage_class = found.get("StorageClass") or "STANDARD"
    if storage_class not in ARCHIVED and not found.get("ArchiveStatus"):
        return ArchiveStatus(ArchiveState.ONLINE, storage_class)
    asked = found.get("Restore") or ""
    if 'ongoing-request="true"' in asked:
        return ArchiveStatus(ArchiveState.RESTORING, storage_class)
    if 'ongoing-request="false"' in asked:
        expiry = _EXPIRY.search(asked)
        try:
            until_ns = get_time_ns(parsedate_to_datetime(expiry[1])) if expiry else 0
        except ValueError:
            until_ns = 0
        return ArchiveStatus(ArchiveState.RESTORED, storage_class, until_ns)
    return ArchiveStatus(ArchiveState.ARCHIVED, storage_class)
