"""What hangs in one place stands in nobody else's way."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from loragate.adapters.registry.observations import ObservationLedger
from loragate.adapters.registry.tenants import Tenancy
from loragate.adapters.registry.usage import UsageLedger
from loragate.server.concurrency.pools import Pools, in_pool
from support.server.small_server import Served, bearer
from support.waiting import until

MANY = 40  # more than any pool has threads


@contextmanager
def hanging(
    monkeypatch: pytest.MonkeyPatch, where: type, method: str
) -> Iterator[Callable[[], int]]:
    """Calls of a method of the registry hang until the end; yields how many do."""
    may_go_on, begun = threading.Event(), threading.Semaphore(0)
    original = getattr(where, method)
    count = 0

    def hang(*arguments: object) -> object:
        nonlocal count
        count += 1
        begun.release()
        may_go_on.wait(30)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(where, method, hang)
        try:
            yield lambda: count
        finally:
            may_go_on.set()


async def is_recorded_and_revoked(served: Served) -> None:
    """Requests are answered, their usage is written, and a key that is revoked stops working."""
    assert (await served.complete(max_tokens=1)).status_code == 200
    await until(lambda: len(served.registry.usage.list("acme")) == 1, 5)
    await is_revoked(served)


async def is_revoked(served: Served) -> None:
    [record] = served.registry.tenants.list_keys("globex")
    served.registry.tenants.revoke_key(record.key_id)
    headers = bearer(served.keys["globex"])
    async with asyncio.timeout(5):
        while (await served.client.get("/v1/models", headers=headers)).status_code != 401:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("where", "method", "path"),
    [(Tenancy, "list", "/admin/v1/tenants"), (UsageLedger, "totals", "/admin/v1/usage")],
)
async def test_administrators_calls_that_hang_stop_nothing_else(
    served: Served, monkeypatch: pytest.MonkeyPatch, where: type, method: str, path: str
) -> None:
    with hanging(monkeypatch, where, method) as hang:
        headers = bearer(served.admin_key)
        asking = [
            asyncio.create_task(served.client.get(path, headers=headers)) for _ in range(MANY)
        ]
        await until(lambda: hang() >= 1, 5)
        await is_recorded_and_revoked(served)
    for reply in await asyncio.gather(*asking):
        assert reply.status_code == 200


async def test_feedback_that_hangs_stops_no_request_and_no_revocation(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await served.complete(max_tokens=1)
    body = {"request_id": answer.headers["x-request-id"], "metric": "thumbs", "value": 1}
    with hanging(monkeypatch, ObservationLedger, "add_feedback") as hang:
        asking = [asyncio.create_task(served.post("/v1/feedback", body)) for _ in range(MANY)]
        await until(lambda: hang() >= 1, 5)
        assert (await served.complete(max_tokens=1)).status_code == 200
        await is_revoked(served)
    await asyncio.gather(*asking)


async def test_leaving_waits_for_no_thread() -> None:
    may_end = threading.Event()
    with Pools() as pools:
        hangs = asyncio.create_task(in_pool(pools.records, may_end.wait, 30))
        await asyncio.sleep(0)
    assert not hangs.done()
    may_end.set()
    await hangs


async def test_what_a_function_returns_or_raises_comes_back() -> None:
    with Pools() as pools:
        assert await in_pool(pools.files, int, "10", base=16) == 16
        with pytest.raises(ValueError, match="invalid literal"):
            await in_pool(pools.files, int, "x")
