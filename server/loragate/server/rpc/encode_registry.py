"""What the registry holds, as gRPC messages."""

from collections.abc import Mapping
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.merged_states import Mode
from loragate.adapters.registry.registry import (
    AdapterListing,
    AdapterRecord,
    AdapterState,
    AliasVersions,
    AuditRow,
    KeyRecord,
    Limits,
    NewKey,
    TenantRecord,
    VersionRecord,
)
from loragate.server.merged.engine_status import EngineStatus
from loragate.v1 import registry_pb2 as pb

_STATES = {
    AdapterState.PUBLISHED: pb.VersionDetails.STATE_PUBLISHED,
    AdapterState.LOADING: pb.VersionDetails.STATE_LOADING,
    AdapterState.READY: pb.VersionDetails.STATE_READY,
    AdapterState.DRAINING: pb.VersionDetails.STATE_DRAINING,
    AdapterState.RETIRED: pb.VersionDetails.STATE_RETIRED,
    AdapterState.FAILED: pb.VersionDetails.STATE_FAILED,
}


def version(published: AdapterVersion) -> pb.AdapterVersion:
    return pb.AdapterVersion(
        adapter=f"{published.tenant}/{published.name}",
        version=published.version,
        digest=published.digest,
    )


def adapter(listing: AdapterListing) -> pb.Adapter:
    return pb.Adapter(
        name=str(listing),
        versions=map(version, listing.versions),
        aliases=_aliases(listing.aliases),
    )


def adapter_page(record: AdapterRecord) -> pb.GetAdapterResponse:
    return pb.GetAdapterResponse(
        name=str(record.name),
        versions=map(_version_details, record.versions),
        aliases=_aliases(record.aliases),
        recent_changes=map(change, record.audit),
    )


def change(row: AuditRow) -> pb.Change:
    return pb.Change(
        id=row.id,
        at=_timestamp(row.at),
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        from_version=_written(row.from_version),
        to_version=_written(row.to_version),
        digest=row.digest,
        reason=row.reason,
        from_state=row.from_state,
        to_state=row.to_state,
    )


def engine(status: EngineStatus) -> pb.Engine:
    return pb.Engine(
        name=status.name,
        state=status.state,
        starts=status.starts,
        memory_bytes=status.memory_bytes,
        budget_bytes=status.budget_bytes,
        weights_bytes=status.weights_bytes,
    )


def mode(message: pb.Mode.ValueType) -> Mode:
    return "merged" if message == pb.MODE_MERGED else "unmerged"


def limits(message: pb.Limits) -> Limits:
    """Raises InvalidLimits for a limit that is out of range."""
    return Limits(
        message.requests_per_minute if message.HasField("requests_per_minute") else None,
        message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        message.max_concurrent if message.HasField("max_concurrent") else None,
    )


def tenant(record: TenantRecord) -> pb.Tenant:
    return pb.Tenant(
        name=record.tenant,
        limits=pb.Limits(
            requests_per_minute=record.limits.requests_per_minute,
            tokens_per_minute=record.limits.tokens_per_minute,
            max_concurrent=record.limits.max_concurrent,
        ),
        created_at=_timestamp(record.created_at),
    )


def key(record: KeyRecord) -> pb.ApiKey:
    return pb.ApiKey(
        id=record.key_id,
        tenant=record.tenant,
        name=record.name,
        created_at=_timestamp(record.created_at),
        revoked_at=_timestamp(record.revoked_at) if record.revoked_at else None,
    )


def new_key(made: NewKey) -> pb.NewKey:
    return pb.NewKey(tenant=made.tenant, id=made.key_id, key=made.key)


def _version_details(record: VersionRecord) -> pb.VersionDetails:
    return pb.VersionDetails(
        version=version(record.version),
        state=_STATES[record.state],
        size_bytes=record.size_bytes,
        rank=record.rank,
        created_at=_timestamp(record.created_at),
        reason=record.reason,
        retiring=record.is_retiring,
        serves=record.serves,
        pinned=record.pinned_at is not None,
        pin_refusal=record.pin_refusal,
        merged=_merged(record),
    )


def _merged(record: VersionRecord) -> pb.MergedModel | None:
    made = next((each for each in record.artifacts if each.kind == "merged"), None)
    status = record.merged
    if made is None and status is None:
        return None
    return pb.MergedModel(
        size_bytes=None if made is None else made.size_bytes,
        wanted=status is not None and status.is_wanted,
        state=None if status is None else status.state,
        reason=None if status is None else status.reason,
    )


def _mode(of: Mode) -> pb.Mode:
    return pb.MODE_MERGED if of == "merged" else pb.MODE_UNMERGED


def _aliases(aliases: Mapping[str, AliasVersions]) -> list[pb.Alias]:
    return [
        pb.Alias(
            name=name,
            version=versions.desired.version,
            serving=None if versions.serving is None else versions.serving.version,
            mode=_mode(versions.desired_mode),
            serving_mode=_mode(versions.serving_mode),
        )
        for name, versions in aliases.items()
    ]


def _written(number: int | None) -> str | None:
    return None if number is None else f"v{number}"


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
