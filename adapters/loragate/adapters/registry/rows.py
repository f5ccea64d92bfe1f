"""Finding the registry's rows by name, or raising the error that says which is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from loragate.adapters.errors import (
    AdapterNotFound,
    AliasNotFound,
    TenantNotFound,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.format.files import AdapterFiles
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.clock import wall_clock
from loragate.adapters.registry.listings import AliasVersions
from loragate.adapters.registry.merged_states import MergedState, MergedStatus, as_mode
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.registry.tables import Adapters, Aliases, Tenants, Versions


def live_tenant(session: Session, tenant: str) -> Tenants:
    """Raises TenantNotFound, for a deleted tenant too."""
    row = session.get(Tenants, tenant)
    if row is None or row.deleted_at is not None:
        raise TenantNotFound(tenant)
    return row


def version_of(tenant: str, name: str, row: Versions) -> AdapterVersion:
    return AdapterVersion(tenant, name, row.number, row.digest, row.id)


def merged_status(row: Versions) -> MergedStatus | None:
    """None where its merged model is neither wanted nor in an engine."""
    if not row.merged_state:
        return None
    return MergedStatus(row.merged_since, MergedState(row.merged_state), row.merged_reason)


def alias_versions(row: Aliases, versions: Mapping[int, AdapterVersion]) -> AliasVersions:
    """``versions`` are the adapter's, by their row ids."""
    return AliasVersions(
        versions[row.desired_id],
        None if row.serving_id is None else versions[row.serving_id],
        as_mode(row.desired_mode),
        as_mode(row.serving_mode),
    )


def adapter_row(session: Session, adapter: AdapterName) -> Adapters | None:
    return session.scalars(
        select(Adapters).where(Adapters.tenant_id == adapter.tenant, Adapters.name == adapter.name)
    ).one_or_none()


def existing_adapter_row(session: Session, adapter: AdapterName) -> Adapters:
    live_tenant(session, adapter.tenant)
    row = adapter_row(session, adapter)
    if row is None:
        raise AdapterNotFound(adapter.tenant, adapter.name)
    return row


def new_adapter_row(session: Session, adapter: AdapterName) -> Adapters:
    row = Adapters(tenant_id=adapter.tenant, name=adapter.name, next_number=1)
    session.add(row)
    session.flush()
    return row


def version_row(session: Session, adapter: Adapters, number: int) -> Versions | None:
    return session.scalars(
        select(Versions).where(Versions.adapter_id == adapter.id, Versions.number == number)
    ).one_or_none()


def existing_version_row(
    session: Session, row: Adapters, adapter: AdapterName, number: int
) -> Versions:
    version = version_row(session, row, number)
    if version is None:
        raise VersionNotFound(adapter.tenant, adapter.name, f"v{number}")
    return version


def usable_version_row(
    session: Session, row: Adapters, adapter: AdapterName, number: int
) -> Versions:
    """Raises VersionRetired for one that is retired or about to be."""
    version = existing_version_row(session, row, adapter, number)
    if not is_usable(version):
        raise VersionRetired(adapter.tenant, adapter.name, f"v{number}")
    return version


def is_usable(version: Versions) -> bool:
    return version.state != AdapterState.RETIRED and not version.retiring


def newest_usable(session: Session, adapter: Adapters) -> Versions | None:
    return session.scalars(
        select(Versions)
        .where(
            Versions.adapter_id == adapter.id,
            Versions.state != AdapterState.RETIRED,
            Versions.retiring.is_(False),
        )
        .order_by(Versions.number.desc())
        .limit(1)
    ).one_or_none()


def new_version_row(
    session: Session, adapter: Adapters, digest: str, stored: AdapterFiles
) -> Versions:
    version = Versions(
        adapter_id=adapter.id,
        number=adapter.next_number,
        digest=digest,
        state=AdapterState.PUBLISHED,
        # Every server keeps all manifests in memory; the reference is read with the weights.
        manifest=replace(stored.manifest, reference=None).to_json(),
        size_bytes=stored.size_bytes,
        created_at=wall_clock(),
    )
    adapter.next_number += 1
    session.add(version)
    session.flush()
    return version


def existing_alias_row(
    session: Session, row: Adapters, adapter: AdapterName, alias: str
) -> Aliases:
    found = session.get(Aliases, (row.id, alias))
    if found is None:
        raise AliasNotFound(adapter.tenant, adapter.name, alias)
    return found
