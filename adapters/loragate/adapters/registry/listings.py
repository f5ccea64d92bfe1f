"""One adapter as it stands: its versions with their states, and what its aliases mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple, Self

from loragate.adapters.errors import (
    AliasNotFound,
    AliasNotServing,
    LoragateError,
    VersionFailed,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.names import AdapterVersion, looks_like_version
from loragate.adapters.registry.merged_states import MergedStatus, Mode
from loragate.adapters.registry.snapshot_index import Placed
from loragate.adapters.registry.states import AdapterState


@dataclass(frozen=True, slots=True)
class AliasVersions:
    """What an alias means: ``desired`` is where it is to point; ``serving`` is where requests by it
    go, None as long as no version could be made to serve by it. The modes are by which engine.
    """

    desired: AdapterVersion
    serving: AdapterVersion | None
    desired_mode: Mode = "unmerged"
    serving_mode: Mode = "unmerged"


@dataclass(frozen=True, slots=True)
class AdapterListing:
    """One adapter with its aliases and its versions, oldest first.

    ``retired`` are those that are retired or about to be; ``versions`` are all others.
    """

    tenant: str
    name: str
    aliases: Mapping[str, AliasVersions]
    versions: tuple[AdapterVersion, ...]
    retired: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


class DesiredAlias(NamedTuple):
    """What an alias is to mean, and what it means now."""

    adapter: AdapterListing
    alias: str
    desired: AdapterVersion
    serving: AdapterVersion | None


class Unreadable(NamedTuple):
    """A record that is left out since it cannot be read: whose, and why."""

    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A version with all that may change about it, and its manifest."""

    version: AdapterVersion
    state: AdapterState
    reason: str
    is_retiring: bool
    manifest: AdapterManifest
    pinned_at: datetime | None = None
    merged: MergedStatus | None = None

    @property
    def is_usable(self) -> bool:
        return self.state is not AdapterState.RETIRED and not self.is_retiring


@dataclass(frozen=True, slots=True)
class AdapterSnapshot:
    """An adapter's listing with what is looked up in it. Made with `AdapterSnapshot.of`.

    ``unserved_aliases`` are those of aliases that do not serve yet what they are to; ``pins`` and
    ``served_merged`` are versions, placed by when that was asked for; ``unreadable`` is what of the
    adapter could not be read.
    """

    listing: AdapterListing
    entries: Mapping[int, VersionEntry]
    _selections: Mapping[str, AdapterVersion]
    unserved_aliases: tuple[Placed[DesiredAlias], ...]
    pins: tuple[Placed[AdapterVersion], ...]
    served_merged: tuple[Placed[AdapterVersion], ...]
    unreadable: tuple[Placed[Unreadable], ...] = ()

    @classmethod
    def of(
        cls,
        tenant: str,
        name: str,
        entries: Mapping[int, VersionEntry],
        aliases: Mapping[str, AliasVersions],
        unreadable: Iterable[Unreadable] = (),
    ) -> Self:
        """From versions by ``lora_id``, oldest first, and aliases in order."""
        usable = [entry for entry in entries.values() if entry.is_usable]
        retired = {entry.version.version for entry in entries.values() if not entry.is_usable}
        listing = AdapterListing(
            tenant,
            name,
            MappingProxyType(dict(aliases)),
            tuple(entry.version for entry in usable),
            frozenset(retired),
        )
        return cls(
            listing,
            MappingProxyType(dict(entries)),
            MappingProxyType(dict(_selections(entries, aliases))),
            tuple(
                ((tenant, name, place), DesiredAlias(listing, alias, means.desired, means.serving))
                for place, (alias, means) in enumerate(aliases.items())
                if means.desired != means.serving
            ),
            tuple(
                ((entry.pinned_at, entry.version.lora_id), entry.version)
                for entry in usable
                if entry.pinned_at is not None
            ),
            tuple(
                ((entry.merged.since, entry.version.lora_id), entry.version)
                for entry in usable
                if entry.merged is not None and entry.merged.since is not None
            ),
            tuple((each, each) for each in unreadable),
        )

    def resolve(self, selector: str) -> AdapterVersion:
        """The version that an alias or ``v3`` selects.

        Raises AliasNotFound, AliasNotServing, VersionNotFound, VersionRetired and VersionFailed.
        """
        version = self._selections.get(selector)
        if version is None:
            raise self._why_not(selector)
        return version

    def mode(self, selector: str) -> Mode:
        """By which engine requests are to be answered that select so; a version's own: unmerged."""
        alias = self.listing.aliases.get(selector)
        return "unmerged" if alias is None else alias.serving_mode

    def is_meant(self, version: AdapterVersion) -> bool:
        """Whether an alias means one of the adapter's versions, or is to."""
        return any(
            version in (means.desired, means.serving) for means in self.listing.aliases.values()
        )

    def _why_not(self, selector: str) -> LoragateError:
        tenant, name = self.listing.tenant, self.listing.name
        alias = self.listing.aliases.get(selector)
        if alias is not None:
            entry = self.entries[alias.desired.lora_id]
            if entry.state is AdapterState.FAILED:
                return VersionFailed(tenant, name, entry.version.version, entry.reason)
            return AliasNotServing(tenant, name, selector, entry.version.version, entry.state)
        if selector in self.listing.retired:
            return VersionRetired(tenant, name, selector)
        for entry in self.entries.values():
            if entry.version.version == selector:
                return VersionFailed(tenant, name, selector, entry.reason)
        if looks_like_version(selector):
            return VersionNotFound(tenant, name, selector)
        return AliasNotFound(tenant, name, selector)


def _selections(
    entries: Mapping[int, VersionEntry], aliases: Mapping[str, AliasVersions]
) -> Iterable[tuple[str, AdapterVersion]]:
    for entry in entries.values():
        if entry.is_usable and entry.state is not AdapterState.FAILED:
            yield entry.version.version, entry.version
    for name, alias in aliases.items():
        serving = alias.serving
        if serving is not None and entries[serving.lora_id].state is not AdapterState.FAILED:
            yield name, serving
