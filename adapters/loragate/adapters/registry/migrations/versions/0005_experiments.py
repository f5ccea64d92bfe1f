"""Rollouts and experiments: trials, their arms, exposures, outcomes and feedback."""

import sqlalchemy as sa
from alembic import op

from loragate.adapters.registry.tables import UtcDateTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column(
            "adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), nullable=False, index=True
        ),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("watched_seconds", sa.Double, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("updated_at", UtcDateTime, nullable=False),
        sa.Column("ended_at", UtcDateTime),
        sa.CheckConstraint("kind IN ('rollout', 'experiment')", name="kind"),
        sqlite_autoincrement=True,
    )
    under_way = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_trials_under_way",
        "trials",
        ["adapter_id"],
        unique=True,
        sqlite_where=under_way,
        postgresql_where=under_way,
    )
    op.create_table(
        "arms",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("trial_id", sa.Integer, sa.ForeignKey("trials.id"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("versions.id"), index=True),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("share", sa.Double, nullable=False),
        sa.UniqueConstraint("trial_id", "name"),
    )
    _create_observations()


def _create_observations() -> None:
    op.create_table(
        "exposures",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("arm_id", sa.Integer, sa.ForeignKey("arms.id"), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("unit_kind", sa.Text, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
    )
    op.create_index("ix_exposures_arm_id_step", "exposures", ["arm_id", "step"])
    op.create_index("ix_exposures_tenant_request_id", "exposures", ["tenant", "request_id"])
    op.create_table(
        "outcomes",
        sa.Column("exposure_id", sa.Text, primary_key=True),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("is_fallback", sa.Boolean, nullable=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("duration_seconds", sa.Double, nullable=False),
        sa.Column("completion_tokens", sa.Integer, nullable=False),
        sa.Column("ttft_seconds", sa.Double),
        sa.Column("itl_seconds", sa.Double),
    )
    op.create_table(
        "feedback",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("metric", sa.Text, primary_key=True),
        sa.Column("value", sa.Double),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("exposure_id", sa.Text, index=True),
        sa.Column("at", UtcDateTime, nullable=False),
    )
