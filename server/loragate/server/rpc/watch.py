"""The registry's changes as they come, for those who watch it over gRPC."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from loragate.adapters.errors import TenantNotFound
from loragate.adapters.registry import AdapterListing, AuditRow
from loragate.server.admin.administration import Administration
from loragate.server.errors import Draining
from loragate.server.rpc import records
from loragate.v1 import registry_pb2 as pb

_POLL_SECONDS = 0.2
_FEW_ROWS = 16


async def watch(
    administration: Administration, tenant: str | None, stopping: asyncio.Event
) -> AsyncGenerator[pb.WatchAdaptersResponse, None]:
    """Yields how things stand, then each change in order, of one tenant or of all.

    Raises TenantNotFound at first, and Draining once `stopping` is set.
    """
    # Looked up before the state: a change in between is then told twice rather than never.
    latest = await administration.audit(tenant, limit=1)
    seen = latest[0].id if latest else 0
    listings = await administration.adapters(tenant)
    yield pb.WatchAdaptersResponse(adapters=map(records.adapter, listings))
    while True:
        await _pause(stopping)
        for row in await _rows_after(administration, tenant, seen):
            seen = row.id
            touched = await _adapters_of(administration, row.subject)
            yield pb.WatchAdaptersResponse(
                change=records.change(row), adapters=map(records.adapter, touched)
            )


async def _pause(stopping: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_POLL_SECONDS):
            await stopping.wait()
    except TimeoutError:
        return
    raise Draining("The server is stopping; watch again in a moment.", retry_after_seconds=1.0)


async def _rows_after(
    administration: Administration, tenant: str | None, seen: int
) -> Sequence[AuditRow]:
    """Oldest first. The log is read from its end, so more is asked for until all are there."""
    limit = _FEW_ROWS
    while True:
        rows = await administration.audit(tenant, limit)
        unseen = [row for row in rows if row.id > seen]
        if len(unseen) < limit:
            return unseen[::-1]
        limit *= 2


async def _adapters_of(administration: Administration, subject: str) -> Sequence[AdapterListing]:
    """The adapter that `acme/support` or `acme/support@champion` names; none for other subjects."""
    name, _, _ = subject.partition("@")
    tenant, slash, _ = name.partition("/")
    if not slash:
        return ()
    try:
        listings = await administration.adapters(tenant)
    except TenantNotFound:
        return ()  # deleted meanwhile, as the next change will say
    return [listing for listing in listings if str(listing) == name]
