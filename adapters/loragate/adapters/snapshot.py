"""What the registry says at one moment, held in memory: the request path reads this and never the
database.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType, TracebackType
from typing import Any, Final, Protocol, Self

from loragate.adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    InvalidLimits,
    StoreError,
    TenantNotFound,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.manifest import AdapterManifest
from loragate.adapters.names import AdapterVersion, looks_like_version

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
class AdapterListing:
    """One adapter with its aliases and its published versions, oldest first."""

    tenant: str
    name: str
    aliases: Mapping[str, AdapterVersion]
    versions: tuple[AdapterVersion, ...]
    retired: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


def _nothing() -> Mapping[Any, Any]:
    # Out of the repr: it would put every key's hash into a log.
    return field(default_factory=lambda: MappingProxyType({}), repr=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Immutable; every look-up is one dictionary access. Made with `Snapshot.of`.

    Deleted tenants, their adapters and revoked keys are not in it. The empty one, ``Snapshot()``,
    knows nobody and so refuses everybody.
    """

    revision: int = -1
    _limits: Mapping[str, Limits] = _nothing()
    _tenants_by_key: Mapping[str, str] = _nothing()
    _listings: Mapping[tuple[str, str], AdapterListing] = _nothing()
    _listings_by_tenant: Mapping[str, tuple[AdapterListing, ...]] = _nothing()
    _selections: Mapping[tuple[str, str, str], AdapterVersion] = _nothing()
    _manifests: Mapping[int, AdapterManifest] = _nothing()

    @classmethod
    def of(
        cls,
        revision: int,
        limits: Mapping[str, Limits],
        tenants_by_key: Mapping[str, str],
        listings: Iterable[AdapterListing],
        manifests: Mapping[int, AdapterManifest],
    ) -> Snapshot:
        """From tenants with their limits, key hashes, adapters, and manifests by ``lora_id``."""
        by_name = {(listing.tenant, listing.name): listing for listing in listings}
        by_tenant: dict[str, list[AdapterListing]] = {tenant: [] for tenant in limits}
        for _, listing in sorted(by_name.items()):
            by_tenant[listing.tenant].append(listing)
        return cls(
            revision,
            MappingProxyType(dict(limits)),
            MappingProxyType(dict(tenants_by_key)),
            MappingProxyType(by_name),
            MappingProxyType({tenant: tuple(found) for tenant, found in by_tenant.items()}),
            MappingProxyType(dict(_selections(by_name.values()))),
            MappingProxyType(dict(manifests)),
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
        """The version that an alias or ``v3`` selects.

        Raises AdapterNotFound, AliasNotFound, VersionNotFound or VersionRetired. Another tenant's
        adapter is not found, like one that does not exist.
        """
        version = self._selections.get((tenant, name, selector))
        if version is None:
            raise self._why_not(tenant, name, selector)
        return version

    def manifest(self, version: AdapterVersion) -> AdapterManifest:
        """Raises VersionRetired for a version that is no longer published."""
        try:
            return self._manifests[version.lora_id]
        except KeyError:
            raise VersionRetired(version.tenant, version.name, version.version) from None

    def adapters(self, tenant: str) -> tuple[AdapterListing, ...]:
        """The tenant's adapters by name; none for an unknown tenant."""
        return self._listings_by_tenant.get(tenant, ())

    def versions(self) -> Iterator[AdapterVersion]:
        """All published versions of all tenants."""
        for listing in self._listings.values():
            yield from listing.versions

    def _why_not(self, tenant: str, name: str, selector: str) -> Exception:
        listing = self._listings.get((tenant, name))
        if listing is None:
            return AdapterNotFound(tenant, name)
        if selector in listing.retired:
            return VersionRetired(tenant, name, selector)
        if looks_like_version(selector):
            return VersionNotFound(tenant, name, selector)
        return AliasNotFound(tenant, name, selector)


def _selections(
    listings: Iterable[AdapterListing],
) -> Iterator[tuple[tuple[str, str, str], AdapterVersion]]:
    for listing in listings:
        for version in listing.versions:
            yield (listing.tenant, listing.name, version.version), version
        for alias, version in listing.aliases.items():
            yield (listing.tenant, listing.name, alias), version


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
        self.current = await asyncio.to_thread(self._registry.snapshot)
        for callback in self._on_change:
            callback(self.current)

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
