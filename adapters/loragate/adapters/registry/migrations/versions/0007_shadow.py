"""Requests that a second arm answered too, out of sight."""

import sqlalchemy as sa
from alembic import op

from loragate.adapters.registry.tables import UtcDateTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "shadow_pairs",
        sa.Column("exposure_id", sa.Text, primary_key=True),
        sa.Column("arm_id", sa.Integer, sa.ForeignKey("arms.id"), nullable=False, index=True),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("answered_by", sa.Text, nullable=False),
        sa.Column("is_greedy", sa.Boolean, nullable=False),
        sa.Column("same_tokens", sa.Integer, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("shadow_tokens", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("shadow_text", sa.Text, nullable=False),
    )
