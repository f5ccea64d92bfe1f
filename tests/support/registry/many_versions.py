"""A registry with as many versions as wanted, quickly: the rows of one, copied."""

import sqlite3
from contextlib import closing
from pathlib import Path

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.registry.promotions import let_serve

_VERSIONS = """
INSERT INTO versions (adapter_id, number, digest, state, reason, retiring, manifest, size_bytes,
    created_at, revision)
SELECT adapters.id, numbers.value, digest, state, reason, retiring, manifest, size_bytes,
    created_at, :revision
FROM adapters, numbers, versions AS model
WHERE model.id = 1 AND adapters.id > 1 ORDER BY adapters.id, numbers.value
"""
_ALIASES = """
INSERT INTO aliases SELECT adapter_id, 'champion', min(id), min(id), '2030-01-01 00:00:00.000000',
    'unmerged', 'unmerged'
FROM versions WHERE adapter_id > 1 GROUP BY adapter_id
"""


def fill(url: str, store: ArtifactStore, folder: Path, tenants: int, each: int) -> None:
    """Beside ``acme/support``, one adapter with ``each`` versions of each of so many tenants; the
    first version serves.
    """
    support = AdapterName("acme", "support")
    with Registry(url, store) as registry:
        registry.tenants.create("acme")
        registry.versions.publish(support, folder)
        let_serve(registry, support, "champion", 1)
        revision = registry.revision()
    names = [(f"tenant-{number}", "2030-01-01 00:00:00.000000") for number in range(tenants)]
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.executemany(
            f"INSERT INTO tenants (id, created_at, revision) VALUES (?, ?, {revision})", names
        )
        connection.executemany(
            "INSERT INTO adapters (tenant_id, name, next_number, revision) VALUES (?, ?, ?, ?)",
            [(tenant, "support", each + 1, revision) for tenant, _ in names],
        )
        connection.execute("CREATE TEMP TABLE numbers (value INTEGER)")
        connection.executemany("INSERT INTO numbers VALUES (?)", [(n + 1,) for n in range(each)])
        connection.execute(_VERSIONS, {"revision": revision})
        connection.execute(_ALIASES)
        connection.commit()
