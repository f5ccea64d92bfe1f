"""Merged models that are to be served, and by which mode an alias reaches its version."""

import sqlalchemy as sa
from alembic import op

from loragate.adapters.registry.tables import UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("versions", sa.Column("merged_since", UtcDateTime))
    for column in ("merged_state", "merged_reason"):
        op.add_column("versions", sa.Column(column, sa.Text, nullable=False, server_default=""))
    for column in ("desired_mode", "serving_mode"):
        op.add_column(
            "aliases", sa.Column(column, sa.Text, nullable=False, server_default="unmerged")
        )
