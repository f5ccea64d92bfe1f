"""The registry's changes as they come, for those who watch it over gRPC."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from loragate.adapters.registry.listings import AdapterListing
from loragate.adapters.registry.pages import EVERYTHING
from loragate.adapters.registry.records import AuditRow
from loragate.adapters.registry.snapshot import Snapshot
from loragate.server.admin.administration import Administration
from loragate.server.errors import Draining
from loragate.server.rpc import encode_registry
from loragate.v1 import registry_pb2 as pb


async def watch(
    administration: Administration, tenant: str | None, stopping: asyncio.Event
) -> AsyncGenerator[pb.WatchAdaptersResponse, None]:
    """Yields how things stand, then each change in order, of one tenant or of all.

    However many watch, only the server's own look at the registry finds that there is a change; the
    audit log is read once for each of them then. Raises TenantNotFound at first, and Draining once
    `stopping` is set.
    """
    # Looked up before the state: a change in between is then told twice rather than never.
    latest = await administration.audit(tenant, limit=1)
    seen = latest[0].id if latest else 0
    listings = await administration.adapters(tenant, EVERYTHING)
    snapshot = administration.snapshot
    yield pb.WatchAdaptersResponse(adapters=map(encode_registry.adapter, listings))
    while True:
        # Before waiting: the snapshot may be newer than the audit row that was the latest.
        async for row in _rows_after(administration, tenant, seen):
            seen = row.id
            # No older than the row: it was brought up to date after that was read.
            touched = _adapters_of(administration.snapshot, row.subject)
            yield pb.WatchAdaptersResponse(
                change=encode_registry.change(row), adapters=map(encode_registry.adapter, touched)
            )
        snapshot = await _change(administration, snapshot, stopping)


async def _change(
    administration: Administration, seen: Snapshot, stopping: asyncio.Event
) -> Snapshot:
    changing = asyncio.create_task(administration.change(seen))
    ending = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([changing, ending], return_when=asyncio.FIRST_COMPLETED)
        if stopping.is_set():
            raise Draining(
                "The server is stopping; watch again in a moment.", retry_after_seconds=1
            )
        return changing.result()
    finally:
        changing.cancel()
        ending.cancel()


async def _rows_after(
    administration: Administration, tenant: str | None, seen: int
) -> AsyncIterator[AuditRow]:
    """Oldest first, as many as there are."""
    while rows := await administration.audit_after(seen, tenant):
        for row in rows:
            yield row
            seen = row.id


def _adapters_of(snapshot: Snapshot, subject: str) -> Sequence[AdapterListing]:
    """The adapter that `acme/support` or `acme/support@champion` names; none for other subjects,
    and for one that is gone by now, as a later change will say.
    """
    name, _, _ = subject.partition("@")
    tenant, _, name = name.partition("/")
    listing = snapshot.adapter(tenant, name)
    return () if listing is None else (listing,)
