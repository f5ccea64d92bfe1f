"""An id of the server's own for each usage record, so that a batch written twice counts once.

Records of before have none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("usage_records", sa.Column("row_id", sa.Text))
    op.create_index("ix_usage_records_row_id", "usage_records", ["row_id"], unique=True)
