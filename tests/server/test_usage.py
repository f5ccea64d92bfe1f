import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import pytest

from loragate.adapters.errors import StoreError
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.records import UsageRow
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.core import Delta, Route
from loragate.server.errors import Overloaded
from loragate.server.telemetry.usage import Record, UsageLog

ROUTE = Route("acme", AdapterVersion("acme", "support", 1, "d" * 64, 1))


def open_registry(home: Home) -> Registry:
    return Registry(home.database_url, ArtifactStore(home.artifacts))


async def test_records_outlive_the_process_that_wrote_them(home: Home) -> None:
    with open_registry(home) as registry:
        async with UsageLog(registry.usage).writing(BackgroundTasks()) as log:
            with log.record("req-1", ROUTE, "http") as record:
                record.prompt_tokens = 7
                async for _ in record.count(deltas((1,), (2, 3))):
                    pass
    with open_registry(home) as registry:
        (row,) = registry.usage.list()
    assert (row.request_id, row.tenant, row.adapter) == ("req-1", "acme", "acme/support@v1")
    assert (row.digest, row.transport, row.outcome) == ("d" * 64, "http", "ok")
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (7, 3, 4)
    assert row.ttft_seconds is not None
    assert 0 <= row.ttft_seconds <= row.duration_seconds


async def deltas(*steps: tuple[int, ...]) -> AsyncGenerator[Delta, None]:
    for number, ids in enumerate(steps):
        yield Delta(index=0, token_ids=ids, cached_tokens=0 if number else 4)


async def test_tokens_are_told_as_they_come() -> None:
    told: list[int] = []
    async for delta in Record("req-1", ROUTE, "http").count(deltas((1,), (2, 3)), told.append):
        assert told[-1] == len(delta.token_ids)
    assert told == [1, 2]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (Overloaded("full"), "overloaded"),
        (Overloaded("full", code="special"), "special"),
        (KeyError("secret"), "internal_error"),
    ],
)
async def test_a_request_is_recorded_however_it_ends(
    home: Home, error: BaseException, outcome: str
) -> None:
    heard: list[Record] = []
    with open_registry(home) as registry:
        async with UsageLog(registry.usage, heard.append).writing(BackgroundTasks()) as log:
            with pytest.raises(type(error)), log.record("req-1", ROUTE, "grpc"):
                raise error
        (row,) = registry.usage.list()
    assert (row.outcome, row.ttft_seconds, row.completion_tokens) == (outcome, None, 0)
    assert [record.outcome for record in heard] == [outcome]


async def test_closing_the_counter_closes_what_it_counts() -> None:
    has_closed = False

    async def endless() -> AsyncGenerator[Delta, None]:
        nonlocal has_closed
        try:
            while True:
                yield Delta(index=0, token_ids=(1,))
        finally:
            has_closed = True

    record = Record("req-1", ROUTE, "http")
    counted = record.count(endless())
    await anext(counted)
    await anext(counted)
    await counted.aclose()
    assert has_closed
    assert record.usage.completion_tokens == 2
    assert len(record.itl_seconds) == 1


@dataclass
class FullDisk:
    """Keeps rows; a write fails while there are failures left."""

    failures: int = 0
    rows: list[UsageRow] = field(default_factory=list)
    attempted: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def add(self, records: Sequence[UsageRow]) -> None:
        self.loop.call_soon_threadsafe(self.attempted.set)
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        self.rows += records


async def test_what_the_database_does_not_take_is_kept_and_written_later_in_order() -> None:
    ledger = FullDisk(failures=1)
    async with UsageLog(ledger).writing(BackgroundTasks()) as log:
        with log.record("req-1", ROUTE, "http"):
            pass
        await asyncio.wait_for(ledger.attempted.wait(), 2)
        with log.record("req-2", ROUTE, "http"):
            pass
    assert [row.request_id for row in ledger.rows] == ["req-1", "req-2"]


async def test_a_write_that_fails_while_the_server_stops_is_tried_once_more() -> None:
    ledger = FullDisk(failures=1)
    log = UsageLog(ledger)
    with log.record("req-1", ROUTE, "http"):
        pass
    async with log.writing(BackgroundTasks()):
        await asyncio.wait_for(ledger.attempted.wait(), 2)
        # The thread has failed; the task that wrote has not heard of it when it is cancelled.
    assert [row.request_id for row in ledger.rows] == ["req-1"]
