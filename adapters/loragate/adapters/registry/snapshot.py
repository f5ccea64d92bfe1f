"""What the registry says at one moment, held in memory: the request path reads this and never the
database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Protocol

from loragate.adapters.errors import (
    AdapterNotFound,
    InvalidLimits,
    TenantNotFound,
    VersionRetired,
)
from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.listings import (
    AdapterListing,
    AdapterSnapshot,
    DesiredAlias,
    Unreadable,
    VersionEntry,
)
from loragate.adapters.registry.merged_states import MergedStatus, Mode
from loragate.adapters.registry.snapshot_index import AdapterKey, SnapshotIndex
from loragate.adapters.registry.states import AdapterState

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's limits; None is no limit. Raises InvalidLimits unless each is at least 1."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidLimits(limit.name, value)


@dataclass(frozen=True, slots=True)
class TenantEntry:
    """A tenant's limits and the hashes of the keys that work."""

    limits: Limits
    keys: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Holdings:
    """A tenant's limits and adapters, by name; ``listings`` are in order."""

    limits: Limits
    adapters: Mapping[str, AdapterSnapshot]
    listings: tuple[AdapterListing, ...] = ()

    def renewed(self, limits: Limits, changed: Mapping[str, AdapterSnapshot]) -> _Holdings:
        if not changed:
            return _Holdings(limits, self.adapters, self.listings)
        adapters = {**self.adapters, **changed}
        listings = tuple(adapters[name].listing for name in sorted(adapters))
        return _Holdings(limits, MappingProxyType(adapters), listings)


def _nothing() -> Mapping[Any, Any]:
    # Out of the repr: it would put every key's hash into a log.
    return field(default_factory=lambda: MappingProxyType({}), repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Immutable; every look-up is two or three dictionary accesses. Made from an older one by
    `renewed`, of which it shares all that has not changed.

    Deleted tenants, their adapters and revoked keys are not in it. The empty one, ``Snapshot()``,
    knows nobody and so refuses everybody.
    """

    revision: int = -1
    _tenants: Mapping[str, _Holdings] = _nothing()
    _tenants_by_key: Mapping[str, str] = _nothing()
    _unserved_aliases: SnapshotIndex[DesiredAlias] = field(
        default_factory=SnapshotIndex, repr=False
    )
    _pins: SnapshotIndex[AdapterVersion] = field(default_factory=SnapshotIndex, repr=False)
    _served_merged: SnapshotIndex[AdapterVersion] = field(default_factory=SnapshotIndex, repr=False)
    _unreadable: SnapshotIndex[Unreadable] = field(default_factory=SnapshotIndex, repr=False)

    def renewed(
        self,
        revision: int,
        tenants: Mapping[str, TenantEntry | Unreadable | None],
        adapters: Iterable[AdapterSnapshot],
    ) -> Snapshot:
        """The snapshot with these tenants, None for a deleted one, and these adapters anew.

        The work is in what changed and in the number of tenants. One that cannot be read is left
        out like a deleted one, so that nobody is served by what it was before.
        """
        changed: dict[str, dict[str, AdapterSnapshot]] = {tenant: {} for tenant in tenants}
        for adapter in adapters:
            changed.setdefault(adapter.listing.tenant, {})[adapter.listing.name] = adapter
        known = dict(self._tenants)
        touched: dict[AdapterKey, AdapterSnapshot | None] = {}
        for tenant, its_shelves in changed.items():
            before = known.pop(tenant, None)
            entry = tenants.get(tenant, before)
            if entry is None or isinstance(entry, Unreadable):
                gone = its_shelves if before is None else before.adapters
                touched |= {(tenant, name): None for name in gone}
                continue
            holdings = before or _Holdings(entry.limits, MappingProxyType({}))
            known[tenant] = holdings.renewed(entry.limits, its_shelves)
            touched |= {(tenant, name): adapter for name, adapter in its_shelves.items()}
        return Snapshot(
            revision,
            MappingProxyType(known),
            self._renewed_keys(tenants),
            self._unserved_aliases.renewed(
                {
                    key: adapter.unserved_aliases if adapter else ()
                    for key, adapter in touched.items()
                }
            ),
            self._pins.renewed(
                {key: adapter.pins if adapter else () for key, adapter in touched.items()}
            ),
            self._served_merged.renewed(
                {key: adapter.served_merged if adapter else () for key, adapter in touched.items()}
            ),
            self._unreadable.renewed(
                {key: adapter.unreadable if adapter else () for key, adapter in touched.items()}
                # No adapter has an empty name: this is the tenant's own record.
                | {
                    (tenant, ""): ((entry, entry),) if isinstance(entry, Unreadable) else ()
                    for tenant, entry in tenants.items()
                }
            ),
        )

    def tenant_of_key(self, sha256_hex: str) -> str | None:
        """Whose key it is, given by `api_keys.hash_key`; None for an unknown or revoked one."""
        return self._tenants_by_key.get(sha256_hex)

    def has_tenant(self, tenant: str) -> bool:
        return tenant in self._tenants

    @property
    def tenant_count(self) -> int:
        return len(self._tenants)

    def limits(self, tenant: str) -> Limits:
        """Raises TenantNotFound."""
        try:
            return self._tenants[tenant].limits
        except KeyError:
            raise TenantNotFound(tenant) from None

    def resolve(self, tenant: str, name: str, selector: str) -> AdapterVersion:
        """The version that an alias or ``v3`` selects; an alias selects the one that it serves.

        Raises AdapterNotFound, AliasNotFound, AliasNotServing (its first version is on its way),
        VersionNotFound, VersionRetired, and VersionFailed (with the reason). Another tenant's
        adapter is not found, like one that does not exist.
        """
        adapter = self._adapter(tenant, name)
        if adapter is None:
            raise AdapterNotFound(tenant, name)
        return adapter.resolve(selector)

    def mode(self, tenant: str, name: str, selector: str) -> Mode:
        """By which engine requests are to be answered that select so, of an adapter that exists."""
        return self._tenants[tenant].adapters[name].mode(selector)

    def manifest(self, version: AdapterVersion) -> AdapterManifest:
        """Raises VersionRetired for a version that is retired, or whose tenant is deleted."""
        entry = self._entry(version)
        if entry is None or entry.state is AdapterState.RETIRED:
            raise VersionRetired(version.tenant, version.name, version.version)
        return entry.manifest

    def state(self, version: AdapterVersion) -> AdapterState:
        """Where it stands; RETIRED for a deleted tenant's."""
        entry = self._entry(version)
        return AdapterState.RETIRED if entry is None else entry.state

    def can_answer(self, version: AdapterVersion) -> bool:
        """Whether requests may be sent to it: no for one that has failed or is retired."""
        return self.state(version) not in (AdapterState.FAILED, AdapterState.RETIRED)

    def reason(self, version: AdapterVersion) -> str:
        """Why it came to its state; empty where nobody said."""
        entry = self._entry(version)
        return "" if entry is None else entry.reason

    def is_retiring(self, version: AdapterVersion) -> bool:
        """Whether the engine is to let go of it, which retires it. No new request resolves to it;
        a deleted tenant's version is retiring too.
        """
        entry = self._entry(version)
        return entry is None or (entry.is_retiring and entry.state is not AdapterState.RETIRED)

    def adapters(self, tenant: str) -> tuple[AdapterListing, ...]:
        """The tenant's adapters by name; none for an unknown tenant."""
        holdings = self._tenants.get(tenant)
        return () if holdings is None else holdings.listings

    def adapter(self, tenant: str, name: str) -> AdapterListing | None:
        """None for one that is unknown."""
        adapter = self._adapter(tenant, name)
        return None if adapter is None else adapter.listing

    def listings(self) -> Iterator[AdapterListing]:
        """All adapters, by tenant and name. To be used in a thread: there may be very many."""
        for tenant in sorted(self._tenants):
            yield from self._tenants[tenant].listings

    def versions(self) -> Iterator[AdapterVersion]:
        """All versions of all tenants that are not retired nor about to be."""
        for listing in self.listings():
            yield from listing.versions

    def desired_aliases(self) -> Iterator[DesiredAlias]:
        """Every alias of every tenant, with what it is to mean and what it means. To be used in a
        thread, like `listings`.
        """
        for listing in self.listings():
            for alias, versions in listing.aliases.items():
                yield DesiredAlias(listing, alias, versions.desired, versions.serving)

    def unserved_aliases(self) -> tuple[DesiredAlias, ...]:
        """Those of aliases that do not serve yet what they are to, by tenant, adapter and alias."""
        return self._unserved_aliases.items

    def is_meant(self, version: AdapterVersion) -> bool:
        """Whether some alias means the version, or is to."""
        adapter = self._adapter(version.tenant, version.name)
        return adapter is not None and adapter.is_meant(version)

    def pinned(self) -> tuple[AdapterVersion, ...]:
        """The versions that are to stay in the engine, first pinned first."""
        return self._pins.items

    def served_merged(self) -> tuple[AdapterVersion, ...]:
        """The versions whose merged models are to be served, first asked for first."""
        return self._served_merged.items

    def unreadable(self) -> tuple[Unreadable, ...]:
        """What of the registry is left out, since its records cannot be read."""
        return self._unreadable.items

    def merged(self, version: AdapterVersion) -> MergedStatus | None:
        """How its merged model stands; None where that is neither wanted nor served."""
        entry = self._entry(version)
        return None if entry is None else entry.merged

    def entries(self, tenant: str, name: str) -> Mapping[int, VersionEntry]:
        """An adapter's versions by ``lora_id``, retired ones too; none for an unknown adapter."""
        adapter = self._adapter(tenant, name)
        return MappingProxyType({}) if adapter is None else adapter.entries

    def _adapter(self, tenant: str, name: str) -> AdapterSnapshot | None:
        holdings = self._tenants.get(tenant)
        return None if holdings is None else holdings.adapters.get(name)

    def _entry(self, version: AdapterVersion) -> VersionEntry | None:
        return self.entries(version.tenant, version.name).get(version.lora_id)

    def _renewed_keys(
        self, tenants: Mapping[str, TenantEntry | Unreadable | None]
    ) -> Mapping[str, str]:
        if not tenants:
            return self._tenants_by_key
        kept = {key: owner for key, owner in self._tenants_by_key.items() if owner not in tenants}
        for tenant, entry in tenants.items():
            if isinstance(entry, TenantEntry):
                kept |= dict.fromkeys(entry.keys, tenant)
        return MappingProxyType(kept)


class SnapshotSource(Protocol):
    """What the watcher asks of a registry. Both calls block; both may raise StoreError."""

    def revision(self) -> int: ...
    def snapshot(self) -> Snapshot: ...


class SnapshotWatcher:
    """Holds the newest snapshot as ``current``. Whoever serves calls `refresh`, again and again.

    When that raises, ``current`` stays as it was. Callbacks run in the event loop after each swap
    and must not raise.
    """

    def __init__(
        self,
        registry: SnapshotSource,
        on_change: Sequence[Callable[[Snapshot], None]] = (),
        executor: Executor | None = None,
    ) -> None:
        """``executor`` runs the registry's calls, which block; None is the event loop's own."""
        self.current = Snapshot()
        self._registry = registry
        self._on_change = tuple(on_change)
        self._executor = executor
        self._one_look = asyncio.Lock()
        self._asked = 0  # for a look, so many times
        self._answered = 0  # so many of these, by a look that began after they were asked
        self._looked_at = time.monotonic()
        self._swapped = asyncio.Event()

    @property
    def age_seconds(self) -> float:
        """Since ``current`` was known to be what the registry says."""
        return time.monotonic() - self._looked_at

    async def refresh(self) -> None:
        """Look once, now; swap ``current`` if the registry has moved on. Raises StoreError.

        Those who ask while somebody looks share the next look.
        """
        self._asked += 1
        asked = self._asked
        async with self._one_look:
            if self._answered >= asked:
                return
            answers = self._asked
            await self._look()
            self._answered = answers

    async def change(self, seen: Snapshot) -> Snapshot:
        """Wait until ``current`` is another one than this, and return that."""
        while self.current is seen:
            await self._swapped.wait()
        return self.current

    async def _look(self) -> None:
        loop, began = asyncio.get_running_loop(), time.monotonic()
        revision = await loop.run_in_executor(self._executor, self._registry.revision)
        # Not only a larger one: the database may have been put back to an older state.
        if revision != self.current.revision:
            self._swap(await loop.run_in_executor(self._executor, self._registry.snapshot))
        self._looked_at = began

    def _swap(self, newer: Snapshot) -> None:
        known = set(self.current.unreadable())
        for left_out in newer.unreadable():
            if left_out not in known:
                _log.error("%s is left out: %s", left_out.subject, left_out.reason)
        self.current = newer
        self._swapped.set()
        self._swapped = asyncio.Event()
        for callback in self._on_change:
            callback(newer)
