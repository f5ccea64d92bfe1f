"""Merged against unmerged: arms of an experiment whose modes differ."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import MergedInUse
from support.engines.echo_engine import EchoEngine
from support.server.merged_engines import Bench
from support.server.small_server import SUPPORT, Furnished, Served, serve, small_config
from support.server.trial_traffic import QUICK, ask, ask_until, start_experiment, status, under_way
from support.waiting import until

ARMS = ("champion=v1:50%", "merged=v1+merged:50%")


@pytest_asyncio.fixture
async def bench(furnished: Furnished, tmp_path: Path, base: BaseModel) -> AsyncIterator[Bench]:
    """With a server, where v1, the champion, is served merged too."""
    bench = Bench(base)
    config = small_config(experiments=QUICK)
    async with serve(
        *(furnished, tmp_path / "served", base, EchoEngine(), config),
        merged_backend=bench.merged_backend,
    ) as served:
        bench.served = served
        served.registry.merged.serve(SUPPORT, 1)
        await until(lambda: state(served) == "SERVING", 5)
        yield bench


def state(served: Served) -> str:
    [record] = served.registry.versions.show(SUPPORT).versions
    return "" if record.merged is None else record.merged.state


async def test_arms_answer_each_in_its_mode(bench: Bench) -> None:
    served = bench.server
    start_experiment(served, *ARMS)
    await under_way(served)

    replies = [await ask(served, f"user-{i}") for i in range(30)]

    said = {
        (reply.headers["x-loragate-arm"], reply.headers["x-loragate-mode"]) for reply in replies
    }
    assert said == {("champion", "unmerged"), ("merged", "merged")}
    assert bench.engines.last.seen


async def test_merged_model_held_by_an_experiment_is_not_stopped(bench: Bench) -> None:
    start_experiment(bench.server, *ARMS)
    with pytest.raises(MergedInUse, match="experiment"):
        bench.server.registry.merged.stop(SUPPORT, 1)


async def test_arm_whose_engine_dies_is_answered_for_by_the_champion_and_the_trial_pauses(
    bench: Bench,
) -> None:
    served = bench.server
    trial = start_experiment(served, *ARMS)
    await under_way(served)
    bench.may_start.clear()
    bench.engines.last.is_alive = False

    replies = await ask_until(served, trial, "PAUSED")

    fallen = [r.headers for r in replies if r.headers["x-loragate-arm"] == "merged"]
    assert fallen
    assert {each["x-loragate-mode"] for each in fallen} == {"unmerged"}
    assert {each["x-loragate-fallback"] for each in fallen} == {"champion"}
    assert "acme/support@v1+merged cannot answer now" in (
        served.registry.trials.get(trial.id).status.reason
    )


async def test_winner_is_promoted_in_its_mode(bench: Bench) -> None:
    served = bench.server
    trial = start_experiment(served, *ARMS, is_automatic=True)
    await ask_until(served, trial, "PASSED")

    assert served.registry.versions.show(SUPPORT).aliases["champion"].desired_mode == "merged"
    assert status(served, trial) == "PASSED"
    async with asyncio.timeout(5):  # the server follows the registry a moment later
        while (await ask(served, "late")).headers["x-loragate-mode"] != "merged":
            continue
