"""Which leases of daemons before it a daemon has ended: none where the kernel cannot be told what that needs."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alluxio_like.config import FuseConfig
from alluxio_like.fuse import app_held
from alluxio_like.fuse.device import Handshake
from alluxio_like.fuse.held import Serving
from alluxio_like.metrics import Metrics
from alluxio_like.types import Recall


@pytest.mark.parametrize(("has_epochs", "is_root"), [(True, True), (False, True), (True, False)])
async def test_leases_of_before_end_only_where_the_kernel_can_be_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_epochs: bool, is_root: bool
) -> None:
    monkeypatch.setattr(app_held, "may_tell", lambda: is_root)
    done: list[Any] = []

    def watch(listener: Callable[[Sequence[Recall]], Awaitable[None]], succeeds: Sequence[str] = ()) -> str:
        done.append(tuple(succeeds))
        return "ours"

    parts: Any = SimpleNamespace(
        session=None,
        notifier=SimpleNamespace(can_tell_all=has_epochs),
        operations=SimpleNamespace(begin_recall=None),
        watch=watch,
    )
    held: Any = SimpleNamespace(tell_lease=done.append)
    device: Any = None
    serving = Serving(-1, -1, Handshake(7, 45, 0, 0), tmp_path, "0:99", 1, resend=True, leases=("dead",))
    daemon = app_held._Daemon(FuseConfig(mountpoint=tmp_path), parts, held, serving, device, Metrics())
    daemon._watch()
    assert done == [("dead",) if has_epochs and is_root else (), "ours"]
