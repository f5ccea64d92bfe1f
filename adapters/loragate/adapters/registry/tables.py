"""The registry's tables. Only this package reads or writes them; `migrations` makes them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from loragate.adapters.errors import UnreadableRecord

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


class _ReadTime(Protocol):
    def __call__(self, value: Any) -> datetime | None: ...


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in and out, UTC in the database; SQLite's own type forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> _ReadTime | None:
        convert = super().result_processor(dialect, coltype)
        if convert is None:
            return None

        def read(value: Any) -> datetime | None:
            try:
                return convert(value)
            except (ValueError, TypeError, OverflowError) as error:
                raise UnreadableRecord(
                    f"a record of the registry's database says {value!r} where a time belongs: it "
                    "is damaged; restore the database from a backup"
                ) from error

        return read

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; pass an aware datetime")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class AnyText(TypeDecorator[str]):
    """Text that comes from clients, models or errors, and may hold what no database takes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


def storable(text: str) -> str:
    """With U+FFFD for NUL, which PostgreSQL refuses, and for halves of surrogates, which are no
    UTF-8.
    """
    return _NOT_STORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


# SQLite counts up by itself in columns of exactly this type.
BigId = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Tenants(Base):
    """A deleted tenant's row stays, so that its id is never given to somebody else.

    Here, in `Adapters` and in `Versions`, ``revision`` is the registry's revision as of the row's
    last change: a snapshot is renewed by reading what has grown since. A tenant's covers its keys,
    an adapter's its aliases and versions.
    """

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    max_concurrent: Mapped[int | None] = mapped_column(BigInteger)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revision: Mapped[int] = mapped_column(BigInteger, default=0, index=True)


class ApiKeys(Base):
    """The id is the key's public beginning; of the rest only the hash is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    sha256: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(AnyText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Adapters(Base):
    """``next_number`` only grows: a version's number is never given twice."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Text)
    next_number: Mapped[int]
    revision: Mapped[int] = mapped_column(BigInteger, default=0, index=True)


class Versions(Base):
    """The id is the engine's integer for the version; AUTOINCREMENT, so never one that was used
    before. ``reason`` is why it came to its state. ``retiring``: it is to be retired as soon as the
    engine has let go of it. ``pinned_at``: since when it is to stay in the engine; ``pin_refusal``
    is why a server cannot do so, empty where it can. ``merged_since``: since when its merged model
    is to be served; ``merged_state`` and ``merged_reason`` are how far a server has come with that.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        CheckConstraint(
            "state IN ('PUBLISHED', 'LOADING', 'READY', 'DRAINING', 'RETIRED', 'FAILED')",
            name="state",
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(Text, index=True)
    state: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(AnyText, default="")
    retiring: Mapped[bool] = mapped_column(default=False)
    manifest: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revision: Mapped[int] = mapped_column(BigInteger, default=0, index=True)
    pinned_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    pin_refusal: Mapped[str] = mapped_column(AnyText, default="")
    merged_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    merged_state: Mapped[str] = mapped_column(Text, default="")
    merged_reason: Mapped[str] = mapped_column(AnyText, default="")


class Artifacts(Base):
    """What was made of a version beside its adapter, one of a ``kind``: ``merged``."""

    __tablename__ = "artifacts"

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(Text, index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Aliases(Base):
    """``desired_id``: where the alias is to point. ``serving_id``: where requests by it go. The
    modes, ``unmerged`` or ``merged``, are by which engine.
    """

    __tablename__ = "aliases"

    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    desired_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    serving_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), index=True)
    desired_mode: Mapped[str] = mapped_column(Text, default="unmerged")
    serving_mode: Mapped[str] = mapped_column(Text, default="unmerged")
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Audit(Base):
    """Who changed what, in order of ``id``. Rows are only added."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text, index=True)
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    from_state: Mapped[str | None] = mapped_column(Text)
    to_state: Mapped[str | None] = mapped_column(Text)
    digest: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(AnyText)


class UsageRecords(Base):
    """One row a request. The request id is not the key: a client chooses it and may choose it
    twice. ``row_id`` is the server's, so that what is written twice is there once.
    """

    __tablename__ = "usage_records"
    __table_args__ = (
        Index(None, "tenant", "at"),
        Index(None, "request_id"),
        Index(None, "row_id", unique=True),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    request_id: Mapped[str] = mapped_column(AnyText)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    tenant: Mapped[str] = mapped_column(Text)
    adapter: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)
    transport: Mapped[str] = mapped_column(Text)
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    ttft_seconds: Mapped[float | None] = mapped_column(Double)
    duration_seconds: Mapped[float] = mapped_column(Double)
    outcome: Mapped[str] = mapped_column(Text)
    row_id: Mapped[str | None] = mapped_column(Text)


class UsageDays(Base):
    """Sums of usage records that are kept no longer, by the day (UTC) on which they began."""

    __tablename__ = "usage_days"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    adapter: Mapped[str] = mapped_column(Text, primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)


class Trials(Base):
    """Rollouts and experiments: what sends some of an adapter's requests elsewhere, one at a time.

    ``plan`` is JSON that the server reads, like ``state``. ``watched_seconds``: at the present
    ``step``. It is over with ``ended_at``.
    """

    __tablename__ = "trials"
    __table_args__ = (
        CheckConstraint("kind IN ('rollout', 'experiment')", name="kind"),
        Index(
            "ix_trials_under_way",
            "adapter_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), index=True)
    salt: Mapped[str] = mapped_column(Text)
    plan: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    step: Mapped[int]
    watched_seconds: Mapped[float] = mapped_column(Double)
    reason: Mapped[str] = mapped_column(AnyText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Arms(Base):
    """Who can answer in a trial; without a version, the base model. A rollout's shares are those
    of its steps.
    """

    __tablename__ = "arms"
    __table_args__ = (UniqueConstraint("trial_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"))
    position: Mapped[int]
    name: Mapped[str] = mapped_column(Text)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), index=True)
    mode: Mapped[str] = mapped_column(Text)
    share: Mapped[float] = mapped_column(Double)


class Exposures(Base):
    """One row a request that a trial took, written when it was admitted. The id is the server's.
    ``unit`` is a digest, so that no user's name is kept.
    """

    __tablename__ = "exposures"
    __table_args__ = (
        # All that `step_figures` looks at of requests that do not count: to look rows up by it
        # would take minutes where there are millions.
        Index("ix_exposures_units", "arm_id", "step", "unit", "at", "id", "unit_kind"),
        Index(None, "tenant", "request_id"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    arm_id: Mapped[int] = mapped_column(ForeignKey("arms.id"))
    step: Mapped[int]
    tenant: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(AnyText)
    unit: Mapped[str] = mapped_column(Text)
    unit_kind: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class Outcomes(Base):
    """How an exposed request ended. ``is_fallback``: another arm had to answer it. No foreign key:
    an exposure that could not be kept must not cost a batch of outcomes.
    """

    __tablename__ = "outcomes"
    __table_args__ = (
        Index(
            "ix_outcomes_fallbacks",
            "exposure_id",
            sqlite_where=text("is_fallback = 1"),
            postgresql_where=text("is_fallback"),
        ),
    )

    exposure_id: Mapped[str] = mapped_column(Text, primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    is_fallback: Mapped[bool]
    failed: Mapped[bool]
    duration_seconds: Mapped[float] = mapped_column(Double)
    completion_tokens: Mapped[int]
    ttft_seconds: Mapped[float | None] = mapped_column(Double)
    itl_seconds: Mapped[float | None] = mapped_column(Double)


class ShadowPairs(Base):
    """One row a request that a second arm answered too, out of sight: both answers, cut short."""

    __tablename__ = "shadow_pairs"

    exposure_id: Mapped[str] = mapped_column(Text, primary_key=True)
    arm_id: Mapped[int] = mapped_column(ForeignKey("arms.id"), index=True)
    step: Mapped[int]
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    answered_by: Mapped[str] = mapped_column(Text)
    is_greedy: Mapped[bool]
    same_tokens: Mapped[int]
    tokens: Mapped[int]
    shadow_tokens: Mapped[int]
    seconds: Mapped[float] = mapped_column(Double)
    text: Mapped[str] = mapped_column(AnyText)
    shadow_text: Mapped[str] = mapped_column(AnyText)


class Feedback(Base):
    """What somebody thought of an answer. ``exposure_id`` is None where no trial had taken the
    request, ``value`` for a comment.
    """

    __tablename__ = "feedback"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    request_id: Mapped[str] = mapped_column(AnyText, primary_key=True)
    metric: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[float | None] = mapped_column(Double)
    comment: Mapped[str] = mapped_column(AnyText)
    exposure_id: Mapped[str | None] = mapped_column(Text, index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class Revision(Base):
    """One row, whose value grows with every change that a server must see."""

    __tablename__ = "revision"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
