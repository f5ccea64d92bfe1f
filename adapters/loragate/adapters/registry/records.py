"""What the registry answers with: plain values, read once, that no longer know the database."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.listings import AliasVersions
from loragate.adapters.registry.merged_states import MergedStatus
from loragate.adapters.registry.snapshot import Limits
from loragate.adapters.registry.states import AdapterState


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made. ``key`` is shown to its owner now and cannot be had again."""

    tenant: str
    key: str = field(repr=False)
    key_id: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    key_id: str
    tenant: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class TenantRecord:
    tenant: str
    limits: Limits
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AuditRow:
    """``subject`` is ``acme``, ``acme/support``, ``acme/support@champion``, ``acme/support@v3`` or
    ``acme:lg-…``. The states are those of a version that moved.
    """

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    from_version: int | None
    to_version: int | None
    digest: str | None
    reason: str
    from_state: str | None = None
    to_state: str | None = None


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """What was made of a version beside its adapter; ``kind`` is ``merged``."""

    kind: str
    digest: str
    size_bytes: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """``reason`` is why it came to its state, ``is_retiring`` whether it is retired once the engine
    has let go of it; ``aliases`` are to point here, and ``serves`` are those that do. ``pinned_at``
    is since when it is to stay in the engine, ``pin_refusal`` why a server cannot keep it there;
    ``merged`` is how its merged model stands, None where that is neither wanted nor served.
    """

    version: AdapterVersion
    state: AdapterState
    reason: str
    is_retiring: bool
    size_bytes: int
    created_at: datetime
    manifest: AdapterManifest
    aliases: tuple[str, ...]
    serves: tuple[str, ...]
    artifacts: tuple[ArtifactRecord, ...] = ()
    pinned_at: datetime | None = None
    pin_refusal: str = ""
    merged: MergedStatus | None = None

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def rank(self) -> int:
        return self.manifest.rank


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """All there is to know of one adapter: versions and audit rows newest first."""

    name: AdapterName
    aliases: Mapping[str, AliasVersions]
    versions: tuple[VersionRecord, ...]
    audit: tuple[AuditRow, ...]


def new_row_id() -> str:
    return secrets.token_hex(12)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One request, by ``acme/support@v3`` or ``base``. ``at`` is an aware datetime.

    ``row_id`` is the server's own, since a client may choose one request id twice; None for records
    of before there were any.
    """

    request_id: str
    at: datetime
    tenant: str
    adapter: str
    digest: str
    transport: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft_seconds: float | None
    duration_seconds: float
    outcome: str
    row_id: str | None = field(default_factory=new_row_id)


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """The sums over a tenant's requests to one adapter version."""

    tenant: str
    adapter: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
