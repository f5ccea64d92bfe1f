"""What counts a trial's figures anew without reading each request; and sums of usage by day, for
records that are kept no longer.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.drop_index("ix_exposures_arm_id_step", "exposures")
    op.create_index(
        "ix_exposures_units", "exposures", ["arm_id", "step", "unit", "at", "id", "unit_kind"]
    )
    op.create_index(
        "ix_outcomes_fallbacks",
        "outcomes",
        ["exposure_id"],
        sqlite_where=sa.text("is_fallback = 1"),
        postgresql_where=sa.text("is_fallback"),
    )
    op.create_table(
        "usage_days",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "adapter", "day", name="pk_usage_days"),
    )
