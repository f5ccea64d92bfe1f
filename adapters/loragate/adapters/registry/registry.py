"""What exists: tenants, adapters, versions, aliases, trials, usage and audit, in one database.

All calls block; from a coroutine use ``asyncio.to_thread``. The registry knows what is to be served
and keeps what a server says of it: a server watches it (`snapshot.SnapshotWatcher`), loads what is
asked for, and writes down what became of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Self

from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.registry.aliases import Aliasing
from loragate.adapters.registry.audit import AuditLog
from loragate.adapters.registry.collection import Collection
from loragate.adapters.registry.database import Database
from loragate.adapters.registry.listings import AdapterListing, AliasVersions
from loragate.adapters.registry.merged_serving import MergedServing
from loragate.adapters.registry.merges import Merges
from loragate.adapters.registry.observations import ObservationLedger
from loragate.adapters.registry.pages import EVERYTHING, Page
from loragate.adapters.registry.pins import Pinning
from loragate.adapters.registry.records import (
    AdapterRecord,
    ArtifactRecord,
    AuditRow,
    KeyRecord,
    NewKey,
    TenantRecord,
    UsageRow,
    UsageTotal,
    VersionRecord,
)
from loragate.adapters.registry.retention import RetentionLedger
from loragate.adapters.registry.serving_lock import ServingLock
from loragate.adapters.registry.snapshot import Limits, Snapshot
from loragate.adapters.registry.snapshot_reader import read_revision, read_snapshot
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.registry.tenants import Tenancy
from loragate.adapters.registry.transitions import Transitions
from loragate.adapters.registry.trials import TrialLedger
from loragate.adapters.registry.usage import UsageLedger
from loragate.adapters.registry.versions import Catalog
from loragate.adapters.store import ArtifactStore

__all__ = [
    "AdapterListing",
    "AdapterRecord",
    "AdapterState",
    "AliasVersions",
    "ArtifactRecord",
    "AuditRow",
    "KeyRecord",
    "Limits",
    "NewKey",
    "Registry",
    "TenantRecord",
    "UsageRow",
    "UsageTotal",
    "VersionRecord",
]


class Registry:
    """Records what is to be served, and what is. Threads and processes may share it; `close` ends
    it.

    ``gate`` judges what is published; without one, whatever some base model could serve passes.
    Making one brings the database's schema up to date. Every call may raise StoreError. Each change
    is one transaction with its audit row and a new revision.
    """

    def __init__(
        self, url: str, store: ArtifactStore, publish_check: PublishCheck | None = None
    ) -> None:
        self._database = database = Database(url)
        self.tenants = Tenancy(database)
        self.versions = Catalog(database, store, publish_check or PublishCheck(None, None))
        self.states = Transitions(database)
        self.aliases = Aliasing(database)
        self.pins = Pinning(database)
        self.merges = Merges(database, store)
        self.merged = MergedServing(database)
        self.trials = TrialLedger(database)
        self.observations = ObservationLedger(database)
        self.usage = UsageLedger(database)
        self.audit = AuditLog(database)
        self.retention = RetentionLedger(database)
        self.artifacts = Collection(database, store)
        self._latest = Snapshot()

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def serving_alone(self) -> Iterator[ServingLock]:
        """For a server, while it serves: what it has loaded is recorded here, so there may be one.

        Raises ServedElsewhere if another one has begun. Whoever serves calls the lock's `keep`;
        while the lock is lost, whatever says how versions stand raises ServingLockLost.
        """
        lock = self._database.serving_lock
        lock.take()
        try:
            yield lock
        finally:
            lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def adapters(self, tenant: str | None = None, page: Page = EVERYTHING) -> list[AdapterListing]:
        """By tenant and name, of one tenant or of all; after ``acme/support``. Raises
        TenantNotFound.
        """
        after = page.after_pair()
        snapshot = self.snapshot()
        if tenant is not None:
            snapshot.limits(tenant)
        found = snapshot.listings() if tenant is None else snapshot.adapters(tenant)
        later = (each for each in found if after is None or (each.tenant, each.name) > after)
        return list(islice(later, page.limit))

    def revision(self) -> int:
        """Grows with every change; one row, read by its key."""
        with self._database.reading() as session:
            return read_revision(session)

    def snapshot(self) -> Snapshot:
        """All that a server needs, as of one moment.

        The first reads everything; each later one only what has changed since the one before.
        """
        with self._database.reading() as session:
            # Threads may do this at once: each gets what it read, and one of them is kept.
            self._latest = fresh = read_snapshot(session, self._latest)
        return fresh
