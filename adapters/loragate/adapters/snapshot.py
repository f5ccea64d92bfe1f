"""What the registry says at one moment, held in memory: the request path reads this and never the
database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType, TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

from loragate.adapters.errors import (
    AdapterNotFound,
    InvalidLimits,
    StoreError,
    TenantNotFound,
    VersionRetired,
)
from loragate.adapters.listings import AdapterListing, Shelf, VersionEntry
from loragate.adapters.manifest import AdapterManifest
from loragate.adapters.merged_states import MergedStanding, Mode
from loragate.adapters.names import AdapterVersion
from loragate.adapters.states import AdapterState

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


class Wish(NamedTuple):
    """What an alias is to mean, and what it means now."""

    adapter: AdapterListing
    alias: str
    desired: AdapterVersion
    serving: AdapterVersion | None


def _nothing() -> Mapping[Any, Any]:
    # Out of the repr: it would put every key's hash into a log.
    return field(default_factory=lambda: MappingProxyType({}), repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Immutable; every look-up is one or two dictionary accesses. Made from an older one by
    `renewed`.

    Deleted tenants, their adapters and revoked keys are not in it. The empty one, ``Snapshot()``,
    knows nobody and so refuses everybody.
    """

    revision: int = -1
    _limits: Mapping[str, Limits] = _nothing()
    _tenants_by_key: Mapping[str, str] = _nothing()
    _shelves: Mapping[tuple[str, str], Shelf] = _nothing()
    _listings: Mapping[str, tuple[AdapterListing, ...]] = _nothing()

    def renewed(
        self, revision: int, tenants: Mapping[str, TenantEntry | None], shelves: Iterable[Shelf]
    ) -> Snapshot:
        """The snapshot with these tenants, None for a deleted one, and these adapters anew.

        What is not among them is shared with this one, not looked at: the work is in what changed.
        """
        limits = dict(self._limits)
        for tenant, entry in tenants.items():
            if entry is None:
                limits.pop(tenant, None)
            else:
                limits[tenant] = entry.limits
        by_name = dict(self._shelves)
        touched = {tenant: set[str]() for tenant, entry in tenants.items() if entry is None}
        for shelf in shelves:
            listing = shelf.listing
            by_name[listing.tenant, listing.name] = shelf
            touched.setdefault(listing.tenant, set()).add(listing.name)
        listings = dict(self._listings)
        for tenant, names in touched.items():
            names.update(listing.name for listing in listings.pop(tenant, ()))
            if tenant in limits:
                listings[tenant] = tuple(by_name[tenant, name].listing for name in sorted(names))
            else:
                for name in names:
                    by_name.pop((tenant, name), None)
        return Snapshot(
            revision,
            MappingProxyType(limits),
            self._renewed_keys(tenants),
            MappingProxyType(by_name),
            MappingProxyType(listings),
        )

    def tenant_of_key(self, sha256_hex: str) -> str | None:
        """Whose key it is, given by `api_keys.hash_key`; None for an unknown or revoked one."""
        return self._tenants_by_key.get(sha256_hex)

    def has_tenant(self, tenant: str) -> bool:
        return tenant in self._limits

    def limits(self, tenant: str) -> Limits:
        """Raises TenantNotFound."""
        try:
            return self._limits[tenant]
        except KeyError:
            raise TenantNotFound(tenant) from None

    def resolve(self, tenant: str, name: str, selector: str) -> AdapterVersion:
        """The version that an alias or ``v3`` selects; an alias selects the one that it serves.

        Raises AdapterNotFound, AliasNotFound, AliasNotServing (its first version is on its way),
        VersionNotFound, VersionRetired, and VersionFailed (with the reason). Another tenant's
        adapter is not found, like one that does not exist.
        """
        shelf = self._shelves.get((tenant, name))
        if shelf is None:
            raise AdapterNotFound(tenant, name)
        return shelf.resolve(selector)

    def mode(self, tenant: str, name: str, selector: str) -> Mode:
        """By which engine requests are to be answered that select so, of an adapter that exists."""
        return self._shelves[tenant, name].mode(selector)

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
        return self._listings.get(tenant, ())

    def adapter(self, tenant: str, name: str) -> AdapterListing | None:
        """None for one that is unknown."""
        shelf = self._shelves.get((tenant, name))
        return None if shelf is None else shelf.listing

    def listings(self) -> Iterator[AdapterListing]:
        """All adapters, by tenant and name."""
        for tenant in sorted(self._listings):
            yield from self._listings[tenant]

    def versions(self) -> Iterator[AdapterVersion]:
        """All versions of all tenants that are not retired nor about to be."""
        for listing in self.listings():
            yield from listing.versions

    def wishes(self) -> Iterator[Wish]:
        """Every alias of every tenant, with what it is to mean and what it means."""
        for listing in self.listings():
            for alias, versions in listing.aliases.items():
                yield Wish(listing, alias, versions.desired, versions.serving)

    def pinned(self) -> tuple[AdapterVersion, ...]:
        """The versions that are to stay in the engine, first pinned first."""
        pins = [
            (entry.pinned_at, entry.version.lora_id, entry.version)
            for shelf in self._shelves.values()
            for entry in shelf.entries.values()
            if entry.pinned_at is not None and entry.is_usable
        ]
        return tuple(version for _, _, version in sorted(pins, key=lambda pin: pin[:2]))

    def served_merged(self) -> tuple[AdapterVersion, ...]:
        """The versions whose merged models are to be served, first asked for first."""
        wanted = [
            (entry.merged.since, entry.version.lora_id, entry.version)
            for shelf in self._shelves.values()
            for entry in shelf.entries.values()
            if entry.is_usable and entry.merged is not None and entry.merged.since is not None
        ]
        return tuple(version for _, _, version in sorted(wanted, key=lambda wish: wish[:2]))

    def merged(self, version: AdapterVersion) -> MergedStanding | None:
        """How its merged model stands; None where that is neither wanted nor served."""
        entry = self._entry(version)
        return None if entry is None else entry.merged

    def entries(self, tenant: str, name: str) -> Mapping[int, VersionEntry]:
        """An adapter's versions by ``lora_id``, retired ones too; none for an unknown adapter."""
        shelf = self._shelves.get((tenant, name))
        return MappingProxyType({}) if shelf is None else shelf.entries

    def _entry(self, version: AdapterVersion) -> VersionEntry | None:
        return self.entries(version.tenant, version.name).get(version.lora_id)

    def _renewed_keys(self, tenants: Mapping[str, TenantEntry | None]) -> Mapping[str, str]:
        if not tenants:
            return self._tenants_by_key
        kept = {key: owner for key, owner in self._tenants_by_key.items() if owner not in tenants}
        for tenant, entry in tenants.items():
            if entry is not None:
                kept |= dict.fromkeys(entry.keys, tenant)
        return MappingProxyType(kept)


class SnapshotSource(Protocol):
    """What the watcher asks of a registry. Both calls block; both may raise StoreError."""

    def revision(self) -> int: ...
    def snapshot(self) -> Snapshot: ...


class SnapshotWatcher:
    """Keeps ``current`` up to date while it is entered: ``async with watcher:``.

    Entering waits for the first snapshot and raises StoreError if there is none to be had. Later
    database errors are logged and tried again, and ``current`` stays as it was. Callbacks run in
    the event loop after each swap and must not raise.
    """

    def __init__(
        self,
        registry: SnapshotSource,
        interval_seconds: float = 0.2,
        on_change: Sequence[Callable[[Snapshot], None]] = (),
    ) -> None:
        self.current = Snapshot()
        self._registry = registry
        self._interval_seconds = interval_seconds
        self._on_change = tuple(on_change)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.refresh()
        self._task = asyncio.create_task(self.watch(), name="snapshot-watcher")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()  # a callback that raised has ended the watch: say so

    async def refresh(self) -> None:
        """Look once, now; swap ``current`` if the registry has moved on. Raises StoreError."""
        if await asyncio.to_thread(self._registry.revision) == self.current.revision:
            return
        newer = await asyncio.to_thread(self._registry.snapshot)
        if newer.revision <= self.current.revision:
            return  # somebody else looked meanwhile, and later
        self.current = newer
        for callback in self._on_change:
            callback(newer)

    async def watch(self) -> None:
        """Look again and again until cancelled."""
        is_reachable = True
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.refresh()
            except StoreError as error:
                if is_reachable:
                    _log.warning(
                        "the registry cannot be read; going on with revision %d: %s",
                        self.current.revision,
                        error,
                    )
                is_reachable = False
            else:
                if not is_reachable:
                    _log.info("the registry can be read again")
                is_reachable = True
