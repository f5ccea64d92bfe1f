"""What administration looks like from outside: the JSON of `/admin/v1`, and of every `--json`.

One shape for three uses: the HTTP answer, what the remote client reads back, what the command line
prints. An adapter is written `acme/support`, a version `v3`, a time in UTC as ISO 8601.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from loragate.adapters.format.certificate import Certificate
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.listings import AdapterListing, AliasVersions
from loragate.adapters.registry.merged_states import Mode
from loragate.adapters.registry.records import (
    AdapterRecord,
    AuditRow,
    KeyRecord,
    NewKey,
    TenantRecord,
    UsageTotal,
    VersionRecord,
)
from loragate.adapters.registry.snapshot import Limits

if TYPE_CHECKING:  # the command line has no engines, and would wait for them
    from loragate.server.merged.engine_status import EngineStatus


class View(BaseModel):
    """An answer. Fields that a newer server adds are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Request(BaseModel):
    """A body sent by a client: a field that nobody reads is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Limit = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]


class LimitsView(View):
    """Null: no limit of its own, so the server's configured default holds."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    @classmethod
    def of(cls, limits: Limits) -> Self:
        return cls(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            max_concurrent=limits.max_concurrent,
        )

    def to_limits(self) -> Limits:
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.max_concurrent)


class LimitsChange(Request):
    """Only the fields that are there change; null goes back to the server's configured default."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrent: Limit | None = None

    def apply(self, limits: Limits) -> Limits:
        """`limits` with the changes made."""
        return replace(limits, **self.model_dump(exclude_unset=True))


class LimitsRequest(Request):
    """What to change about a tenant."""

    limits: LimitsChange


class TenantRequest(Request):
    """A tenant to create; its first key is made with it."""

    tenant: str = Field(examples=["acme"])
    limits: LimitsChange = LimitsChange()


class KeyRequest(Request):
    """A further key of a tenant, with a name to know it by."""

    name: str = Field(default="", max_length=100, examples=["billing service"])


class AliasRequest(Request):
    """Where an alias points from now on. With the mode `merged` the version's merged model answers,
    which has to be served.
    """

    version: str = Field(examples=["v3"])
    reason: str = Field(default="", max_length=1000, examples=["passed the evaluation"])
    mode: Mode = "unmerged"


class TenantView(View):
    """A tenant and what it may use."""

    tenant: str
    limits: LimitsView
    created_at: datetime

    @classmethod
    def of(cls, record: TenantRecord) -> Self:
        limits = LimitsView.of(record.limits)
        return cls(tenant=record.tenant, limits=limits, created_at=record.created_at)


class NewKeyView(View):
    """A key, shown this once: only its hash is kept."""

    tenant: str
    key: str
    id: str

    @classmethod
    def of(cls, made: NewKey) -> Self:
        return cls(tenant=made.tenant, key=made.key, id=made.key_id)


class KeyView(View):
    """A key as it can be shown later: by its public id."""

    id: str
    tenant: str
    name: str
    created_at: datetime
    revoked_at: datetime | None = None

    @classmethod
    def of(cls, record: KeyRecord) -> Self:
        return cls(
            id=record.key_id,
            tenant=record.tenant,
            name=record.name,
            created_at=record.created_at,
            revoked_at=record.revoked_at,
        )


class PublishedView(View):
    """One immutable version of an adapter."""

    adapter: str = Field(examples=["acme/support"])
    version: str = Field(examples=["v3"])
    digest: str

    @classmethod
    def of(cls, version: AdapterVersion) -> Self:
        adapter = f"{version.tenant}/{version.name}"
        return cls(adapter=adapter, version=version.version, digest=version.digest)


class MergedView(View):
    """A version's merged model: whether there is one, and how the serving of it stands, if it is
    `wanted` or was a moment ago.
    """

    size_bytes: int | None = None
    wanted: bool = False
    state: str = Field(default="", examples=["", "STARTING", "SERVING", "REFUSED", "FAILED"])
    reason: str = Field(default="", examples=["it needs 1.68 GiB, and 0.40 GiB are free"])

    @classmethod
    def of(cls, record: VersionRecord) -> Self | None:
        made = next((each for each in record.artifacts if each.kind == "merged"), None)
        status = record.merged
        if made is None and status is None:
            return None
        return cls(
            size_bytes=None if made is None else made.size_bytes,
            wanted=status is not None and status.is_wanted,
            state="" if status is None else status.state,
            reason="" if status is None else status.reason,
        )


class EngineView(View):
    """An engine: the base model's, or a merged model's, as `acme/support@v3+merged`.

    `memory_bytes` is what it holds now, 0 where that cannot be told, and `budget_bytes` what it may
    take.
    """

    name: str
    state: str = Field(examples=["alive", "restarting", "dead"])
    starts: int
    memory_bytes: int
    budget_bytes: int
    weights_bytes: int

    @classmethod
    def of(cls, status: "EngineStatus") -> Self:
        return cls(
            name=status.name,
            state=status.state,
            starts=status.starts,
            memory_bytes=status.memory_bytes,
            budget_bytes=status.budget_bytes,
            weights_bytes=status.weights_bytes,
        )


class CertificateView(View):
    """What PEFT made of a version in float32 when it was published: `loaded` is `source`, the
    adapter as its trainer wrote it, `published`, what was made of that, or `nothing`, for the
    `reason`. Nats are of a token's log-probability, on average: the `effect` of the adapter, and
    how far off half and twice its scale would be. `sentence` says it all.
    """

    loaded: str = Field(examples=["source", "published", "nothing"])
    reason: str = ""
    libraries: str = ""
    prompts: int = 0
    tokens: int = 0
    effect: float = 0.0
    half: float = 0.0
    double: float = 0.0
    conversion: float | None = None
    sentence: str = ""

    @classmethod
    def of(cls, certificate: Certificate | None) -> Self | None:
        if certificate is None:
            return None
        return cls(
            loaded=certificate.loaded,
            reason=certificate.reason,
            libraries=certificate.libraries,
            prompts=certificate.prompts,
            tokens=certificate.tokens,
            effect=certificate.effect,
            half=certificate.half,
            double=certificate.double,
            conversion=certificate.conversion,
            sentence=certificate.sentence,
        )


class VersionView(View):
    """A version as an adapter's page lists it.

    `reason` is why it came to its state. `aliases` are to point to it, `serves` are those that do.
    One that is `retiring` gets no new requests and is RETIRED once the engine has let go of it.
    One that is `pinned` is to stay in the engine; `pin_refusal` is why a server cannot keep it.
    """

    version: str
    digest: str
    state: str = Field(examples=["PUBLISHED", "LOADING", "READY", "DRAINING", "RETIRED", "FAILED"])
    reason: str = Field(default="", examples=["the adapter has no effect"])
    retiring: bool = False
    rank: int
    size_bytes: int
    created_at: datetime
    aliases: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    pinned: bool = False
    pin_refusal: str = ""
    merged: MergedView | None = None
    certificate: CertificateView | None = None

    @classmethod
    def of(cls, record: VersionRecord) -> Self:
        return cls(
            version=record.version.version,
            digest=record.digest,
            state=record.state,
            reason=record.reason,
            retiring=record.is_retiring,
            rank=record.rank,
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            aliases=record.aliases,
            serves=record.serves,
            pinned=record.pinned_at is not None,
            pin_refusal=record.pin_refusal,
            merged=MergedView.of(record),
            certificate=CertificateView.of(record.manifest.certificate),
        )


class AuditView(View):
    """One change: who did what to what, from which version or state to which."""

    at: datetime
    actor: str
    action: str
    subject: str
    from_version: str | None = None
    to_version: str | None = None
    digest: str | None = None
    reason: str = ""
    from_state: str | None = None
    to_state: str | None = None

    @classmethod
    def of(cls, row: AuditRow) -> Self:
        return cls(
            at=row.at,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            from_version=_version(row.from_version),
            to_version=_version(row.to_version),
            digest=row.digest,
            reason=row.reason,
            from_state=row.from_state,
            to_state=row.to_state,
        )


class AdapterView(View):
    """An adapter in a list: where its aliases are to point, and what serves by them."""

    adapter: str
    versions: tuple[str, ...]
    aliases: dict[str, str]
    serving: dict[str, str] = {}

    @classmethod
    def of(cls, listing: AdapterListing) -> Self:
        return cls(
            adapter=str(listing),
            versions=tuple(version.version for version in listing.versions),
            aliases=_desired(listing.aliases),
            serving=_serving(listing.aliases),
        )


class AdapterPageView(View):
    """All about one adapter: newest version first, newest change first.

    `aliases` says where each alias is to point, `serving` which version serves by it: the
    same, once a server has loaded and checked it; `modes` by which engine it is to.
    """

    adapter: str
    aliases: dict[str, str]
    serving: dict[str, str] = {}
    modes: dict[str, Mode] = {}
    versions: tuple[VersionView, ...]
    audit: tuple[AuditView, ...] = ()

    @classmethod
    def of(cls, record: AdapterRecord) -> Self:
        return cls(
            adapter=str(record.name),
            aliases=_desired(record.aliases),
            serving=_serving(record.aliases),
            modes={alias: versions.desired_mode for alias, versions in record.aliases.items()},
            versions=tuple(VersionView.of(version) for version in record.versions),
            audit=tuple(AuditView.of(row) for row in record.audit),
        )


class CollectedView(View):
    """The artifacts that were removed, by digest."""

    collected: tuple[str, ...]


MOST_WAIT_SECONDS = 10.0
"""For which the server holds the question for the registry's next revision."""


class RevisionView(View):
    """Grows with every change of the registry."""

    revision: int


class UsageView(View):
    """What one tenant used of one adapter version (`acme/support@v3`) or of `base`."""

    tenant: str
    adapter: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @classmethod
    def of(cls, total: UsageTotal) -> Self:
        return cls(
            tenant=total.tenant,
            adapter=total.adapter,
            requests=total.requests,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            cached_tokens=total.cached_tokens,
        )


def _desired(aliases: Mapping[str, AliasVersions]) -> dict[str, str]:
    return {alias: versions.desired.version for alias, versions in aliases.items()}


def _serving(aliases: Mapping[str, AliasVersions]) -> dict[str, str]:
    return {
        alias: versions.serving.version
        for alias, versions in aliases.items()
        if versions.serving is not None
    }


def _version(number: int | None) -> str | None:
    return None if number is None else f"v{number}"
