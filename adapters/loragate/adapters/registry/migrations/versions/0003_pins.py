"""Pins: versions that are to stay in the engine."""

import sqlalchemy as sa
from alembic import op

from loragate.adapters.registry.tables import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("versions", sa.Column("pinned_at", UtcDateTime))
    op.add_column("versions", sa.Column("pin_refusal", sa.Text, nullable=False, server_default=""))
