"""Shadows: made after the answer, kept in pairs, charged to nobody, dropped first."""

import asyncio
from pathlib import Path

import pytest

from loragate.adapters.format.manifest import Contract
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.snapshot import Limits, Snapshot
from loragate.adapters.registry.trial_records import ShadowRow
from loragate.server.app import data_plane, foundation
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.config import EngineConfig, ExperimentsConfig
from loragate.server.experiments.report import to_html
from loragate.server.experiments.service import TrialService
from loragate.server.gateway.prompting import contract_of
from support.registry.observations import observed
from support.server.small_server import Served, ServeWith
from support.server.trial_traffic import ask, start_rollout, under_way, with_two_versions
from support.waiting import until

QUICK = Backoff(0.001, 0.01)
EAGER = ExperimentsConfig(look_seconds=0.02, shadow_tokens_per_minute=100_000)


def pairs(served: Served, trial_id: int) -> tuple[ShadowRow, ...]:
    return served.registry.observations.shadow_pairs(trial_id)


def shadows_in_engine(served: Served) -> list[str]:
    return [seen.id for seen in served.engine.seen if seen.id.startswith("shadow-")]


async def test_the_other_arm_answers_too_and_both_answers_are_in_the_report(
    serve_with: ServeWith, tmp_path: Path
) -> None:
    async with with_two_versions(serve_with, tmp_path, experiments=EAGER) as two:
        trial = start_rollout(two, 50, every_seconds=60, shadow=1.0)
        await under_way(two)
        for number in range(8):
            await ask(two, f"user-{number}")

        await until(lambda: len(pairs(two, trial.id)) >= 4, 3)

        names = {arm.id: arm.name for arm in trial.arms}
        for pair in pairs(two, trial.id):
            assert pair.answered_by != names[pair.arm_id]
            assert pair.shadow_text.endswith(pair.text)  # it echoes, and a shadow may say more
        page = to_html(TrialService(two.registry).report(trial.id))
        assert "Shadows: the same request, answered twice" in page


async def test_shadows_are_charged_to_nobody(serve_with: ServeWith, tmp_path: Path) -> None:
    async with with_two_versions(serve_with, tmp_path, experiments=EAGER) as two:
        two.registry.tenants.set_limits(
            "acme", Limits(requests_per_minute=10_000, max_concurrent=1)
        )
        trial = start_rollout(two, 50, every_seconds=60, shadow=1.0)
        await under_way(two)
        before = len(two.registry.usage.list("acme"))
        for number in range(5):
            await ask(two, f"user-{number}")
        await until(lambda: len(pairs(two, trial.id)) >= 2, 3)
        await until(lambda: len(two.registry.usage.list("acme")) >= before + 5, 3)

        ids = {row.request_id for row in two.registry.usage.list("acme")}
        assert not any(request_id.startswith("shadow-") for request_id in ids)
        seen = observed(two.registry, trial.id, 0)
        assert len(seen.exposures) == len({row.request_id for row in seen.exposures})


async def test_a_busy_server_makes_no_shadows(serve_with: ServeWith, tmp_path: Path) -> None:
    one_is_enough = EngineConfig(max_num_seqs=3)  # busy with more than a quarter of them: with one
    async with with_two_versions(
        serve_with, tmp_path, experiments=EAGER, engine=one_is_enough
    ) as two:
        start_rollout(two, 50, every_seconds=60, shadow=1.0)
        await under_way(two)
        await until(lambda: not two.engine.running, 3)
        before = len(shadows_in_engine(two))
        two.engine.pace_seconds = 0.2
        long = asyncio.create_task(two.complete("a long text that goes on and on", max_tokens=20))
        await until(lambda: bool(two.engine.running), 3)
        for number in range(3):
            await ask(two, f"user-{number}")
        assert len(shadows_in_engine(two)) == before
        two.engine.pace_seconds = 0.0
        await long


async def test_a_shadow_under_way_gives_way_to_requests(
    serve_with: ServeWith, tmp_path: Path
) -> None:
    one_is_enough = EngineConfig(max_num_seqs=3)
    async with with_two_versions(
        serve_with, tmp_path, experiments=EAGER, engine=one_is_enough
    ) as two:
        trial = start_rollout(two, 50, every_seconds=60, shadow=1.0)
        await under_way(two)
        two.engine.pace_seconds = 0.05
        await ask(two, "ann")
        await until(lambda: any(run.startswith("shadow-") for run in two.engine.running), 3)
        kept = len(pairs(two, trial.id))

        await ask(two, "bob", "support@v1")

        assert any(run.startswith("shadow-") for run in two.engine.aborted)
        assert len(pairs(two, trial.id)) == kept


async def test_without_a_budget_there_are_none(serve_with: ServeWith, tmp_path: Path) -> None:
    none = ExperimentsConfig(look_seconds=0.02, shadow_tokens_per_minute=0)
    async with with_two_versions(serve_with, tmp_path, experiments=none) as two:
        start_rollout(two, 50, every_seconds=60, shadow=1.0)
        await under_way(two)
        for number in range(5):
            await ask(two, f"user-{number}")
        assert shadows_in_engine(two) == []


async def test_shadows_go_on_after_one_that_fails_in_any_way(
    serve_with: ServeWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [RuntimeError("a mistake of ours"), ValueError(), TimeoutError()]

    def stumbling(snapshot: Snapshot, version: AdapterVersion | None) -> Contract:
        if errors:
            raise errors.pop()
        return contract_of(snapshot, version)

    monkeypatch.setattr(data_plane, "contract_of", stumbling)
    monkeypatch.setattr(foundation, "BackgroundTasks", lambda after: BackgroundTasks(after, QUICK))
    async with with_two_versions(serve_with, tmp_path, experiments=EAGER) as two:
        trial = start_rollout(two, 50, every_seconds=60, shadow=1.0)
        await under_way(two)
        for number in range(8):
            await ask(two, f"user-{number}")
        await until(lambda: len(pairs(two, trial.id)) >= 1, 5)
        assert errors == []
        metrics = (await two.client.get("/metrics")).text
    assert 'loragate_background_task_restarts_total{task="shadows"} 3.0' in metrics
