"""States of versions, aliases with a desired and a serving version, revisions of rows."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy import RowMapping

from loragate.adapters.registry.tables import UtcDateTime

revision = "0002"
down_revision = "0001"

_STATES = "state IN ('PUBLISHED', 'LOADING', 'READY', 'DRAINING', 'RETIRED', 'FAILED')"

_OLD_ALIASES = sa.table(
    "aliases",
    sa.column("adapter_id", sa.Integer),
    sa.column("name", sa.Text),
    sa.column("version_id", sa.Integer),
    sa.column("updated_at", UtcDateTime),
)


def upgrade() -> None:
    aliases = op.get_bind().execute(sa.select(_OLD_ALIASES)).mappings().all()
    # Before `versions`, which SQLite can only change by making it anew: nothing may refer to it.
    op.drop_table("aliases")
    _extend_versions()
    _add_revision("tenants")
    _add_revision("adapters")
    op.add_column("audit", sa.Column("from_state", sa.Text))
    op.add_column("audit", sa.Column("to_state", sa.Text))
    _create_aliases(aliases)


def _extend_versions() -> None:
    with op.batch_alter_table(
        "versions", table_kwargs={"sqlite_autoincrement": True}, recreate="auto"
    ) as versions:
        # Made anew, SQLite's table loses the old constraint, which it would not know by name.
        if op.get_context().dialect.name != "sqlite":
            versions.drop_constraint("state", type_="check")
        versions.create_check_constraint("state", _STATES)
        versions.add_column(sa.Column("reason", sa.Text, nullable=False, server_default=""))
        versions.add_column(
            sa.Column("retiring", sa.Boolean, nullable=False, server_default=sa.false())
        )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    _add_revision("versions")


def _add_revision(table: str) -> None:
    op.add_column(table, sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index(f"ix_{table}_revision", table, ["revision"])


def _create_aliases(before: Sequence[RowMapping]) -> None:
    """What an alias pointed to was what it served."""
    table = op.create_table(
        "aliases",
        sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column(
            "desired_id", sa.Integer, sa.ForeignKey("versions.id"), nullable=False, index=True
        ),
        sa.Column("serving_id", sa.Integer, sa.ForeignKey("versions.id"), index=True),
        sa.Column("updated_at", UtcDateTime, nullable=False),
    )
    rows = [
        {
            "adapter_id": alias["adapter_id"],
            "name": alias["name"],
            "desired_id": alias["version_id"],
            "serving_id": alias["version_id"],
            "updated_at": alias["updated_at"],
        }
        for alias in before
    ]
    if rows:
        op.bulk_insert(table, rows)
