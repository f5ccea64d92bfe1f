"""Administration of tenants, keys and adapters, for the transports: the registry, awaited.

It knows no HTTP and no gRPC. Who may call it is decided by `check_admin_key`, which a transport
asks before anything else.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from loragate.adapters.errors import StoreError
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.merged_states import Mode
from loragate.adapters.registry.pages import FIRST_PAGE, Page
from loragate.adapters.registry.records import (
    AdapterRecord,
    AuditRow,
    KeyRecord,
    NewKey,
    TenantRecord,
    UsageRow,
    UsageTotal,
)
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import AdapterListing, Limits, Snapshot, SnapshotWatcher
from loragate.adapters.registry.trial_records import Trial, TrialKind
from loragate.adapters.settings import DEFAULT_ORPHANS_AFTER_SECONDS
from loragate.server.admin.received_files import ReceivedFiles
from loragate.server.concurrency.pools import in_pool
from loragate.server.errors import PermissionDenied, Unauthenticated
from loragate.server.experiments.report import TrialReport
from loragate.server.experiments.service import TrialService
from loragate.server.experiments.specs import Action, ExperimentSpec, RolloutSpec
from loragate.server.merged.engine_status import EngineStatus

P = ParamSpec("P")
T = TypeVar("T")
NO_LIMITS = Limits()


class Administration:
    """The registry's changes and look-ups without blocking the event loop.

    `actor` is who the audit log says did it, such as "http": make one for each transport. Each
    method raises what the method of the same name of the registry raises, or of `TrialService`. A
    caller that is cancelled goes on only after the registry has finished, so a change was made
    wholly or not at all.
    """

    def __init__(
        self,
        registry: Registry,
        actor: str,
        snapshots: SnapshotWatcher | None = None,
        engines: Callable[[], Sequence[EngineStatus]] = tuple,
        pool: Executor | None = None,
        files_pool: Executor | None = None,
        orphans_after_seconds: float = DEFAULT_ORPHANS_AFTER_SECONDS,
    ) -> None:
        """`snapshots` is the server's, which is looked after elsewhere. It is brought up to date
        before each answer, so that what the answer says holds for requests, too. `engines` says how
        the server's engines stand. The registry is called in the threads of `pool`, and for
        adapters that are published in those of `files_pool`. `orphans_after_seconds` is for what a
        collection takes, see `Collection`.
        """
        self._pool = pool
        self._files_pool = files_pool
        self._orphans_after_seconds = orphans_after_seconds
        self._engines = engines
        self._registry = registry
        self._trial_service = TrialService(registry)
        self._actor = actor
        self._snapshots = snapshots or SnapshotWatcher(registry)

    async def create_tenant(self, tenant: str, limits: Limits = NO_LIMITS) -> NewKey:
        return await self._ask(self._registry.tenants.create, tenant, limits, self._actor)

    async def tenant(self, tenant: str) -> TenantRecord:
        return await self._ask(self._registry.tenants.get, tenant)

    async def list_tenants(self, page: Page = FIRST_PAGE) -> Sequence[TenantRecord]:
        return await self._ask(self._registry.tenants.list, page)

    async def set_limits(self, tenant: str, limits: Limits) -> None:
        await self._ask(self._registry.tenants.set_limits, tenant, limits, self._actor)

    async def delete_tenant(self, tenant: str) -> None:
        await self._ask(self._registry.tenants.delete, tenant, self._actor)

    async def create_key(self, tenant: str, name: str = "") -> NewKey:
        return await self._ask(self._registry.tenants.create_key, tenant, name, self._actor)

    async def list_keys(self, tenant: str, page: Page = FIRST_PAGE) -> Sequence[KeyRecord]:
        return await self._ask(self._registry.tenants.list_keys, tenant, page)

    async def revoke_key(self, key_id: str) -> None:
        await self._ask(self._registry.tenants.revoke_key, key_id, self._actor)

    async def publish_files(
        self, adapter: AdapterName, files: AsyncIterator[tuple[str, bytes]], limit_bytes: int
    ) -> AdapterVersion:
        """Publishes files that arrive as (name, piece), each file's pieces one after the other.

        Besides what `Registry.publish` raises: InvalidAdapter for a file that is no part of an
        adapter, comes twice, or makes all together larger than `limit_bytes`. What was received is
        removed again, whatever happens.
        """
        received = ReceivedFiles(limit_bytes)
        try:
            async for name, piece in files:
                await _in_thread(self._files_pool, received.add, name, piece)
            folder = await _in_thread(self._files_pool, received.close)
            publish = self._registry.versions.publish
            version = await _in_thread(self._files_pool, publish, adapter, folder, self._actor)
            await self._follow()
            return version
        finally:
            await _in_thread(self._files_pool, received.remove)

    async def publish_folder(
        self, adapter: AdapterName, find: Callable[[], Path]
    ) -> AdapterVersion:
        """Publishes a folder of this machine, which `find` names in the thread that reads it."""

        def publish() -> AdapterVersion:
            return self._registry.versions.publish(adapter, find(), self._actor)

        version = await _in_thread(self._files_pool, publish)
        await self._follow()
        return version

    async def adapters(
        self, tenant: str | None = None, page: Page = FIRST_PAGE
    ) -> Sequence[AdapterListing]:
        return await self._ask(self._registry.adapters, tenant, page)

    async def show(self, adapter: AdapterName) -> AdapterRecord:
        return await self._ask(self._registry.versions.show, adapter)

    async def set_alias(
        self,
        adapter: AdapterName,
        alias: str,
        number: int,
        reason: str = "",
        mode: Mode = "unmerged",
    ) -> AdapterVersion:
        return await self._ask(
            self._registry.aliases.set, adapter, alias, number, self._actor, reason, mode
        )

    async def delete_alias(self, adapter: AdapterName, alias: str) -> None:
        await self._ask(self._registry.aliases.delete, adapter, alias, self._actor)

    async def serve_merged(self, adapter: AdapterName, number: int) -> AdapterVersion:
        return await self._ask(self._registry.merged.serve, adapter, number, self._actor)

    async def stop_merged(self, adapter: AdapterName, number: int) -> AdapterVersion:
        return await self._ask(self._registry.merged.stop, adapter, number, self._actor)

    async def engines(self) -> Sequence[EngineStatus]:
        """How the server's engines stand."""
        return await _in_thread(self._pool, self._engines)

    async def rollback(self, adapter: AdapterName) -> AdapterVersion:
        return await self._ask(self._registry.aliases.rollback, adapter, self._actor)

    async def retire(self, adapter: AdapterName, number: int) -> AdapterVersion:
        return await self._ask(self._registry.states.retire, adapter, number, self._actor)

    async def pin(self, adapter: AdapterName, selector: str) -> AdapterVersion:
        return await self._ask(self._registry.pins.add, adapter, selector, self._actor)

    async def unpin(self, adapter: AdapterName, selector: str) -> AdapterVersion:
        return await self._ask(self._registry.pins.remove, adapter, selector, self._actor)

    async def collect(
        self, *, is_dry_run: bool = False, unreferenced: bool = False
    ) -> Sequence[str]:
        """What was removed, or in a dry run what would be."""
        find = self._registry.artifacts.collectable
        function = find if is_dry_run else partial(self._registry.artifacts.collect, self._actor)
        # In the threads for files: removing them takes as long as they are large.
        digests = await _in_thread(
            self._files_pool,
            function,
            orphans_after_seconds=self._orphans_after_seconds,
            unreferenced=unreferenced,
        )
        await self._follow()
        return digests

    async def start_rollout(self, adapter: AdapterName, spec: RolloutSpec) -> Trial:
        return await self._ask(self._trial_service.start_rollout, adapter, spec, self._actor)

    async def start_experiment(self, adapter: AdapterName, spec: ExperimentSpec) -> Trial:
        return await self._ask(self._trial_service.start_experiment, adapter, spec, self._actor)

    async def trials(
        self,
        tenant: str | None = None,
        kind: TrialKind | None = None,
        page: Page = FIRST_PAGE,
    ) -> Sequence[Trial]:
        return await self._ask(self._trial_service.trials, tenant, kind, page)

    async def trial(
        self, adapter: AdapterName, kind: TrialKind | None = None
    ) -> tuple[Trial, TrialReport]:
        """The adapter's newest, and what its figures say."""
        trial = await self._ask(self._trial_service.trial, adapter, kind)
        return trial, await self._ask(self._trial_service.report, trial.id)

    async def change_trial(
        self,
        adapter: AdapterName,
        action: Action,
        arm: str = "",
        reason: str = "",
        kind: TrialKind | None = None,
    ) -> Trial:
        change = self._trial_service.change
        return await self._ask(change, adapter, action, arm, reason, self._actor, kind)

    async def audit(
        self, subject: str | None = None, limit: int = 50, after: int | None = None
    ) -> Sequence[AuditRow]:
        return await self._ask(self._registry.audit.list, subject, limit, after)

    async def audit_after(self, seen: int, subject: str | None = None) -> Sequence[AuditRow]:
        return await self._ask(self._registry.audit.after, seen, subject)

    @property
    def snapshot(self) -> Snapshot:
        """The registry as the server sees it: as new as the latest answer, or newer."""
        return self._snapshots.current

    async def change(self, seen: Snapshot) -> Snapshot:
        """Waits until the server sees another one, without asking the registry itself."""
        return await self._snapshots.change(seen)

    async def revision(self, unlike: int = -1, within_seconds: float = 0.0) -> int:
        """The registry's revision, once it is unlike this one or the time is up."""
        await self._follow()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self.snapshot.revision == unlike:
                    await self.change(self.snapshot)
        return self.snapshot.revision

    async def usage(
        self, tenant: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> Sequence[UsageRow]:
        return await self._ask(self._registry.usage.list, tenant, since, limit)

    async def usage_totals(
        self,
        tenant: str | None = None,
        since: datetime | None = None,
        page: Page = FIRST_PAGE,
    ) -> Sequence[UsageTotal]:
        return await self._ask(self._registry.usage.totals, tenant, since, page)

    async def draw(self, view: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `view` makes, such as a report's page, which takes seconds of processor time."""
        return await _in_thread(self._pool, view, *args, **kwargs)

    async def _ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        answer = await _in_thread(self._pool, function, *args, **kwargs)
        await self._follow()
        return answer

    async def _follow(self) -> None:
        with suppress(StoreError):  # the change is made; the watcher will see it
            await self._snapshots.refresh()


def check_admin_key(
    key: str | None, admin_key: str, is_tenant_key: Callable[[str], bool] | None = None
) -> None:
    """Passes the admin key, compared in constant time.

    Raises PermissionDenied for a tenant's key where `is_tenant_key` can tell, else Unauthenticated.
    """
    if not key:
        raise Unauthenticated("No admin key was sent; send it as 'Authorization: Bearer <key>'.")
    if hmac.compare_digest(key.encode(), admin_key.encode()):
        return
    if is_tenant_key is not None and is_tenant_key(key):
        raise PermissionDenied("A tenant's key opens no administration; use the admin key.")
    raise Unauthenticated("This is not the admin key.")


async def _in_thread(
    pool: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    work = asyncio.create_task(in_pool(pool, function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    finally:
        # A thread cannot be stopped: whoever is cancelled waits until it has let go of its files.
        await asyncio.wait([work])
