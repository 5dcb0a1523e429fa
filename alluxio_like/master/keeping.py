"""What a master on a store that others can take over does for it: who it is, whether it still has its place, what came late.

Owns the two chores that a shared store needs, and the choice of where the cluster's id, token and secrets come from. Event loop
alone; the store is asked in the writer's thread.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from alluxio_like import errors
from alluxio_like.config import MasterConfig
from alluxio_like.kv.open import is_shared, open_store
from alluxio_like.master import cluster_state
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.home import Home
from alluxio_like.master.loading import JobManager
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.secrets_file import Secrets, SecretsFile
from alluxio_like.types import EVERYWHERE, Recall

log = logging.getLogger(__name__)

KEEP_INTERVAL_S = 5.0
"""How often a master looks whether another has taken its place: it stops within about so long (a guess)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the cluster is, and where its mounts' secrets lie."""

    cluster_id: str
    token: str
    token_file: Path
    secrets: Secrets


async def open_meta(config: MasterConfig, late: asyncio.Event) -> MetaStore:
    """The configured store. `late` is set when it took up a change whose caller had been told that nobody knew."""
    loop = asyncio.get_running_loop()

    def note_late() -> None:
        loop.call_soon_threadsafe(late.set)

    url = config.metadata_url or f"lmdb://{config.home.absolute() / 'meta'}"
    # In a thread: it may copy all of a database first.
    store = await asyncio.to_thread(
        open_store, url, mirror=config.home / "mirror", timeout_s=config.io_timeout_s, on_late=note_late
    )
    return MetaStore(store)


def identify(config: MasterConfig, home: Home, meta: MetaStore) -> Identity:
    """From the home; where the store outlives it, from the store, with the token from the home or its configured file.

    Raises ConfigError when the token is missing or another one.
    """
    if not is_shared(config.metadata_url):
        return Identity(home.get_cluster_id(), *home.get_token(config.token_file), SecretsFile(config.home / "secrets.json"))
    with meta.read() as txn:
        known = cluster_state.lookup_cluster_id(txn)
    if known is not None and config.token_file is None and not home.has_token():
        raise errors.ConfigError(
            f"the metadata is that of cluster {known}, whose token is not in {config.home}: give --token-file with the token's "
            "file of the master that ran before (HOME/token there)",
            subject="token_file",
        )
    token, token_file = home.get_token(config.token_file)
    cluster_id = known or home.get_cluster_id()
    cluster_state.join(meta, cluster_id, token)
    return Identity(cluster_id, token, token_file, cluster_state.StoredSecrets(meta, cluster_id, token))


async def keep_place(meta: MetaStore, lost: asyncio.Event, interval_s: float = KEEP_INTERVAL_S) -> None:
    """Set `lost` and return once another master has taken this one's place. While the store is away nobody can tell."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await meta.keep()
        except errors.Conflict as error:
            log.critical("this master stops", extra={"error": str(error)})
            lost.set()
            return
        except errors.Unavailable as error:
            log.warning("the metadata cannot be written now; what is known is served", extra={"error": str(error)})
        except Exception:
            log.exception("a chore failed")


async def take_up_late(late: asyncio.Event, mounts: MountTable, jobs: JobManager, coherence: Coherence) -> None:
    """After a late change, of which nobody here knows what it was: read the tables again, and take back what clients hold."""
    while True:
        await late.wait()
        late.clear()
        try:
            mounts.take_up()
            jobs.take_up()
            coherence.tell([Recall(EVERYWHERE, all_names=True)])
        except Exception:
            log.exception("a chore failed")
