"""Mounts that a file declares: `mount --from FILE` brings the mount table to what it says.

Owns the file's form, a JSON list of objects: `path` and `uri`; if wanted `options` (an object), `sync_interval` and `no_check`.
What is not mounted is mounted, what is gets these options; other mounts are left alone. So it may be run again at any time, and
what secrets there are should be named (file:/PATH, env:NAME) rather than given. One command a process.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from alluxio_like.cli.mounts import parse_sync_interval
from alluxio_like.errors import InvalidArgument

if TYPE_CHECKING:
    from alluxio_like.client import Client
    from alluxio_like.rpc.messages import MountInfo, MountSpec


class Declared(BaseModel):
    """One mount of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    uri: str
    options: dict[str, str] = {}
    sync_interval: str = ""
    no_check: bool = False

    def make_spec(self, *, update: bool) -> "MountSpec":
        """As the master is asked for it. Raises InvalidArgument."""
        from alluxio_like.rpc.messages import MountSpec

        try:
            uid, gid = int(self.options.get("uid", "0")), int(self.options.get("gid", "0"))
        except ValueError:
            raise InvalidArgument("options uid and gid are numbers", subject=self.path) from None
        return MountSpec(
            path=self.path,
            uri=self.uri,
            options=self.options,
            sync_interval_s=parse_sync_interval(self.sync_interval),
            uid=uid,
            gid=gid,
            skip_check=self.no_check,
            update=update,
        )


def read_mounts(file: Path) -> list[Declared]:
    """What a file declares, those above before those below. Raises InvalidArgument, one line that says where it is wrong."""
    try:
        raw: Any = json.loads(file.read_bytes())
        declared = TypeAdapter(list[Declared]).validate_python(raw)
    except OSError as error:
        raise InvalidArgument(f"cannot read {file} ({error.strerror})", subject=str(file)) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument(f"{file}: {where or 'the file'}: {first['msg']}", subject=str(file)) from None
    except ValueError as error:
        raise InvalidArgument(f"{file} is not JSON: {error}", subject=str(file)) from None
    return sorted(declared, key=lambda one: one.path)


async def mount_declared(client: "Client", declared: list[Declared]) -> list[tuple[str, "MountInfo"]]:
    """Mount or update each; what was done with each. Raises the package's errors at the first that fails; run it again then."""
    there = {mount.path for mount in await client.list_mounts()}
    done = []
    for one in declared:
        update = one.path in there
        done.append(("updated" if update else "mounted", await client.mount(one.make_spec(update=update))))
    return done
