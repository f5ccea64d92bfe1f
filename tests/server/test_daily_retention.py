"""The server deletes what is kept no longer, by itself."""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loragate.adapters.errors import StoreError
from loragate.adapters.registry.registry import Registry, UsageRow
from loragate.adapters.registry.retention import Pruned, Retention, RetentionLedger
from loragate.adapters.store import ArtifactStore
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.upkeep.retention import RetentionTask
from support.waiting import until

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
OLD = NOW - timedelta(days=31)
RETENTION = Retention(usage_days=30)


class StumblingRetention(RetentionLedger):
    """Whose database is away once, in the midst of the first time that something is deleted."""

    rounds = 0

    def prune(self, retention: Retention, now: datetime) -> Iterator[Pruned]:
        self.rounds += 1
        if self.rounds == 1:
            yield Pruned()
            raise StoreError("the database is away")
        yield from super().prune(retention, now)


class StumblingRegistry(Registry):
    def __init__(self, url: str, store: ArtifactStore) -> None:
        super().__init__(url, store)
        self.retention = self.stumbling = StumblingRetention(self._database)


@pytest.fixture
def registry(tmp_path: Path, empty_registry: Path) -> Iterator[StumblingRegistry]:
    url = f"sqlite:///{shutil.copy(empty_registry, tmp_path)}"
    with StumblingRegistry(url, ArtifactStore(tmp_path)) as opened:
        opened.tenants.create("acme")
        yield opened


def use(registry: Registry, times: Sequence[datetime]) -> None:
    registry.usage.add(
        [
            UsageRow(
                f"req-{number}",
                at,
                "acme",
                "support@v1",
                "d",
                "http",
                3,
                4,
                1,
                0.1,
                1.0,
                "ok",
                f"{at} {number}",
            )
            for number, at in enumerate(times)
        ]
    )


async def test_old_rows_go_soon_after_the_start_even_if_the_first_try_fails_and_then_daily(
    registry: StumblingRegistry,
) -> None:
    use(registry, [OLD, NOW])
    background = BackgroundTasks(backoff=Backoff(0.01, 0.01))
    task = RetentionTask(registry, RETENTION, first_seconds=0, every_seconds=0.2, now=lambda: NOW)

    async with task.running(background):
        await until(lambda: len(registry.usage.list()) == 1, 10)
        [found] = background.all
        assert (found.name, found.restarts) == ("retention", 1)
        rounds = registry.stumbling.rounds
        await until(lambda: registry.stumbling.rounds > rounds, 10)
        use(registry, [OLD])
        await until(lambda: len(registry.usage.list()) == 1, 10)

    [total] = registry.usage.totals()
    assert (total.requests, total.prompt_tokens) == (3, 9)


async def test_nothing_goes_before_the_server_had_its_time_to_start(
    registry: StumblingRegistry,
) -> None:
    background = BackgroundTasks()
    async with RetentionTask(registry, RETENTION).running(background):
        assert [task.name for task in background.all] == ["retention"]

    assert registry.stumbling.rounds == 0
