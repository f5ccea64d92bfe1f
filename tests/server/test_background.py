import asyncio
import logging
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from loragate.adapters.errors import StoreError
from loragate.server.app import foundation
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTask, BackgroundTasks, Round
from loragate.server.config import ServerConfig
from loragate.server.telemetry.task_metrics import BackgroundTaskMetrics
from support.server.small_server import Served, ServeWith, on_a_socket
from support.server.trial_traffic import start_rollout, status, with_two_versions
from support.waiting import until

QUICK = Backoff(0.001, 0.004, 60.0)
pytestmark = pytest.mark.timeout(10)


class Rounds:
    """Fails as often as there are errors, then goes well; says when each round ended."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.is_well = asyncio.Event()
        self.is_called = asyncio.Event()
        self.calls = 0

    async def work(self) -> None:
        self.calls += 1
        self.is_called.set()
        if self.errors:
            raise self.errors.pop(0)
        self.is_well.set()


async def _at_once() -> None:
    await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a mistake of ours"),
        ValueError("no number"),
        StoreError("the disk is full"),
        IntegrityError("insert", {}, Exception("duplicate key")),
        PoolTimeout("QueuePool limit reached"),
        TimeoutError(),
        StopIteration(),
        ExceptionGroup("many", [OSError("gone")]),
        asyncio.CancelledError(),  # of something else that the work awaited
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_task_whose_round_raises_goes_on_and_counts_it(error: BaseException) -> None:
    rounds, background = Rounds(error, error), BackgroundTasks(backoff=QUICK)
    async with background.repeating("rounds", rounds.work, wait=_at_once) as task:
        await rounds.is_well.wait()
        assert (task.restarts, task.is_up) == (2, True)


async def test_a_task_whose_wait_raises_goes_on() -> None:
    rounds = Rounds()

    async def broken() -> None:
        raise RuntimeError("nothing to wait for")

    async with BackgroundTasks(backoff=QUICK).repeating("rounds", rounds.work, wait=broken):
        await rounds.is_well.wait()


async def test_a_round_that_failed_is_done_again_without_waiting() -> None:
    has_work, rounds = asyncio.Event(), Rounds(RuntimeError("once"))

    async def wait() -> None:
        await has_work.wait()
        has_work.clear()

    async with BackgroundTasks(backoff=QUICK).repeating("rounds", rounds.work, wait=wait):
        has_work.set()
        await rounds.is_well.wait()
    assert rounds.calls == 2


async def test_each_failure_is_logged_and_a_new_one_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    same = RuntimeError("no such place")
    rounds = Rounds(same, same, ValueError("another"))
    with caplog.at_level(logging.ERROR):
        async with BackgroundTasks(backoff=QUICK).repeating("rounds", rounds.work, wait=_at_once):
            await rounds.is_well.wait()
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True]
    assert all("rounds failed" in record.message for record in caplog.records)


async def test_pauses_grow_from_failure_to_failure_and_shrink_after_a_long_time_without() -> None:
    now, pauses = 0.0, list[float]()
    lives = iter([0.0, 0.0, 0.0, 0.0, 100.0, 0.0])

    class Listening(Backoff):
        def following(self, delay: float | None, uptime: float) -> float:
            delay = None if delay is None else pauses[-1]
            pauses.append(Backoff(1.0, 4.0, 60.0).following(delay, uptime))
            return 0.0

    has_ended = asyncio.Event()

    async def work() -> None:
        nonlocal now
        if (life := next(lives, None)) is None:
            has_ended.set()
            return
        now += life
        raise RuntimeError("again")

    background = BackgroundTasks(backoff=Listening(), clock=lambda: now)
    async with background.repeating("rounds", work, wait=_at_once):
        await has_ended.wait()
    assert pauses == [1.0, 2.0, 4.0, 4.0, 1.0, 2.0]


async def test_leaving_ends_the_task_and_waits_for_what_it_clears_up() -> None:
    steps, has_begun = list[str](), asyncio.Event()

    async def work() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            steps.append("cleared up")

    background = BackgroundTasks()
    async with background.repeating("rounds", work, wait=_at_once):
        await has_begun.wait()
    assert steps == ["cleared up"]
    assert background.all == ()


@pytest.mark.parametrize("raises", [True, False])
async def test_a_task_ends_even_where_its_round_hides_that_it_was_told_to(raises: bool) -> None:
    has_begun = asyncio.Event()

    async def work() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if raises:
                raise RuntimeError("could not be cleared up") from None

    background = BackgroundTasks(backoff=Backoff(60.0, 60.0))
    async with background.repeating("rounds", work, wait=_at_once):
        await has_begun.wait()
    assert background.all == ()


async def test_a_task_with_nothing_to_wait_for_leaves_others_their_turn() -> None:
    async def nothing() -> None:
        pass

    async with BackgroundTasks().repeating("rounds", nothing, wait=nothing):
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_name_is_one_tasks_alone() -> None:
    background = BackgroundTasks()
    async with background.repeating("rounds", _at_once, wait=_at_once):
        with pytest.raises(ValueError, match="'rounds'"):
            async with background.repeating("rounds", _at_once, wait=_at_once):
                pass


async def test_a_vital_task_that_keeps_failing_degrades_and_one_that_recovers_does_not() -> None:
    now, is_broken, rounds = 0.0, True, asyncio.Queue[None]()

    async def work() -> None:
        rounds.put_nowait(None)
        if is_broken:
            raise StoreError("no database")

    background = BackgroundTasks(30.0, QUICK, clock=lambda: now)
    async with background.repeating("usage", work, wait=_at_once, is_vital=True):
        await rounds.get()
        now = 30.0
        await rounds.get()
        assert background.degraded == ()
        now = 30.5
        assert background.degraded == ("usage",)
        is_broken = False
        while background.degraded:
            await asyncio.wait_for(rounds.get(), 5)


async def test_a_task_that_is_not_vital_degrades_nothing() -> None:
    now, rounds = 0.0, Rounds(*[RuntimeError("down")] * 1000)
    background = BackgroundTasks(30.0, Backoff(60.0, 60.0), clock=lambda: now)
    async with background.repeating("hints", rounds.work, wait=_at_once) as task:
        await rounds.is_called.wait()
        now = 1000.0
        assert background.degraded == ()
        assert not task.is_up


@pytest.mark.parametrize(("is_prompt", "degraded"), [(True, ("watch",)), (False, ())])
async def test_a_round_that_hangs_degrades_where_rounds_are_to_be_short(
    is_prompt: bool, degraded: tuple[str, ...]
) -> None:
    now, has_begun = 0.0, asyncio.Event()

    async def hang() -> None:
        has_begun.set()
        await asyncio.Event().wait()

    background = BackgroundTasks(30.0, QUICK, clock=lambda: now)
    repeating = partial(background.repeating, is_vital=True, is_prompt=is_prompt)
    async with repeating("watch", hang, wait=_at_once):
        await has_begun.wait()
        now = 31.0
        assert background.degraded == degraded


async def test_waiting_for_work_is_no_fault_however_long() -> None:
    now, waits = 0.0, asyncio.Event()

    async def wait() -> None:
        waits.set()
        await asyncio.Event().wait()

    background = BackgroundTasks(30.0, clock=lambda: now)
    async with background.repeating("idle", _at_once, wait=wait, is_vital=True, is_prompt=True):
        await waits.wait()
        now = 1e6
        assert background.degraded == ()


async def test_metrics_tell_by_name_what_is_up_and_how_often_it_went_on() -> None:
    rounds, background = Rounds(RuntimeError("once")), BackgroundTasks(backoff=QUICK)
    registry = CollectorRegistry()
    registry.register(BackgroundTaskMetrics(background))
    async with (
        background.repeating("usage records", rounds.work, wait=_at_once),
        background.repeating("idle", _at_once, wait=asyncio.Event().wait),
    ):
        await rounds.is_well.wait()
        rounds.is_called.clear()
        await rounds.is_called.wait()
        lines = generate_latest(registry).decode().splitlines()
    assert 'loragate_background_task_restarts_total{task="usage records"} 1.0' in lines
    assert 'loragate_background_task_restarts_total{task="idle"} 0.0' in lines
    assert 'loragate_background_task_up{task="usage records"} 1.0' in lines


def rename(served: Served, table: str, name: str) -> None:
    with closing(sqlite3.connect(served.home.root / "registry.db", timeout=10)) as database:
        database.execute(f"ALTER TABLE {table} RENAME TO {name}")


async def test_a_server_that_cannot_write_usage_is_not_ready_until_it_can(
    serve_with: ServeWith,
) -> None:
    config = ServerConfig(http="127.0.0.1:0", grpc="127.0.0.1:0", degraded_after_seconds=0)
    async with serve_with(server=config) as served, on_a_socket(served) as client:

        async def say(status: int, state: str) -> None:
            async with asyncio.timeout(10):
                while True:
                    reply = await client.get("/readyz")
                    if reply.json()["status"] == state:
                        break
                    await asyncio.sleep(0.05)
            assert reply.status_code == status
            assert (await client.get("/livez")).status_code == 200

        async def grpc_says(status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
            async with served.channel() as channel, asyncio.timeout(10):
                health: Any = health_pb2_grpc.HealthStub(channel)
                while True:
                    answer = await health.Check(health_pb2.HealthCheckRequest())
                    if answer.status == status:
                        return
                    await asyncio.sleep(0.05)

        rename(served, "usage_records", "away")
        assert (await served.chat()).status_code == 200
        await say(503, "degraded: usage records")
        await grpc_says(health_pb2.HealthCheckResponse.NOT_SERVING)
        assert (await served.chat()).status_code == 200
        lines = (await client.get("/metrics")).text.splitlines()
        assert 'loragate_background_task_up{task="usage records"} 0.0' in lines

        rename(served, "away", "usage_records")
        await say(200, "ready")
        await grpc_says(health_pb2.HealthCheckResponse.SERVING)
        assert len(served.registry.usage.list()) == 2


# By whether they have something to do in a short life.
BUSY = {
    "alias reconciler",
    "merged models",
    "observations",
    "prefetch",
    "probe",
    "registry snapshot",
    "states and pins",
    "trials",
    "usage records",
}
IDLE = {
    "artifact collection",
    "gRPC health",
    "hot list",
    "registry lock",
    "retention",
    "shadows",
    "slot check",
    "unloads",
}


class Stumbling(BackgroundTasks):
    """Each task's first rounds fail, one with each kind of error."""

    @asynccontextmanager
    async def repeating(self, name: str, work: Round, **how: Any) -> AsyncIterator[BackgroundTask]:
        errors = [
            RuntimeError("a mistake of ours"),
            ValueError("no number"),
            IntegrityError("insert", {}, Exception("duplicate key")),
            PoolTimeout("QueuePool limit reached"),
        ]

        async def stumble() -> None:
            if errors:
                raise errors.pop()
            await work()

        how["backoff"] = QUICK
        async with super().repeating(name, stumble, **how) as task:
            yield task


async def test_all_that_a_server_does_by_itself_goes_on_after_any_error(
    serve_with: ServeWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundation, "BackgroundTasks", Stumbling)
    async with with_two_versions(serve_with, tmp_path) as served, served.server.listening():
        trial = start_rollout(served, 100.0, gates=())
        await until(lambda: status(served, trial) == "PASSED", 10)  # trials
        # alias reconciler
        await until(lambda: served.registry.snapshot().unserved_aliases() == (), 10)
        assert (await served.chat()).headers["x-loragate-adapter"] == "acme/support@v2"
        await until(lambda: len(served.registry.usage.list()) == 1, 10)  # usage records
        told = (await served.client.get("/metrics")).text
    seen = dict(re.findall(r'background_task_restarts_total\{task="(.*)"\} (.*)', told))
    assert seen.keys() == BUSY | IDLE
    assert {name: seen[name] for name in BUSY} == dict.fromkeys(BUSY, "4.0")
    assert 'background_task_up{task="alias reconciler"} 1.0' in told
