"""Rollouts and experiments in a running server: who gets which arm, and what follows from it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from loragate.adapters.errors import TrialUnderWay, VersionHeld, VersionNotFound
from loragate.server.config import EngineConfig
from loragate.server.errors import InvalidRequest
from loragate.server.experiments.service import TrialService
from support.models.one_layer import write_adapter
from support.server.small_server import SUPPORT, Served, ServeWith
from support.server.trial_traffic import (
    QUICK,
    arms,
    ask,
    ask_until,
    start_experiment,
    start_rollout,
    status,
    under_way,
    with_two_versions,
)
from support.waiting import until


@pytest_asyncio.fixture
async def two(serve_with: ServeWith, tmp_path: Path) -> AsyncIterator[Served]:
    async with with_two_versions(serve_with, tmp_path) as served:
        yield served


async def test_good_version_goes_up_to_all_requests_and_becomes_the_champion(two: Served) -> None:
    trial = start_rollout(two, 50, 100)

    replies = await ask_until(two, trial, "PASSED")

    assert arms(replies) >= {"champion", "challenger"}
    champion = two.registry.versions.show(SUPPORT).aliases["champion"]
    assert champion.desired.number == 2
    changes = [(row.action, row.actor) for row in two.registry.audit.list("acme/support", 10)]
    assert ("rollout.passed", "server") in changes
    await until(
        lambda: two.registry.versions.show(SUPPORT).aliases["champion"].serving == champion.desired,
        3,
    )
    assert (await ask(two, "late")).headers["x-loragate-adapter"] == "acme/support@v2"


async def test_version_that_people_dislike_is_rolled_back_by_itself(two: Served) -> None:
    trial = start_rollout(two, 50, 100, gates=("thumbs>=champion-20%",), every_seconds=60)
    await under_way(two)

    async with asyncio.timeout(10):
        number = 0
        while status(two, trial) == "RUNNING":
            reply = await ask(two, f"user-{number}")
            is_new = reply.headers.get("x-loragate-arm") == "challenger"
            said = {
                "request_id": reply.headers["x-request-id"],
                "metric": "thumbs",
                "value": 0 if is_new else 1,
            }
            assert (await two.post("/v1/feedback", said)).status_code == 200
            number += 1

    assert status(two, trial) == "ROLLED_BACK"
    assert "thumbs>=champion-20% fails" in two.registry.trials.get(trial.id).status.reason
    reply = await ask(two, "anybody")
    assert reply.headers["x-loragate-adapter"] == "acme/support@v1"
    assert two.registry.versions.show(SUPPORT).aliases["champion"].desired.number == 1


async def test_user_keeps_the_arm_and_named_versions_are_in_no_trial(two: Served) -> None:
    start_rollout(two, 50, every_seconds=60)
    await under_way(two)

    for user in ("ann", "bob", "cem", "dan"):
        replies = [await ask(two, user) for _ in range(4)]
        assert len(arms(replies)) == 1
        assert {reply.headers["x-loragate-unit"] for reply in replies} == {"user"}
    for model in ("support@champion", "support@v1", "support@v2", "base"):
        assert "x-loragate-arm" not in (await ask(two, "ann", model)).headers


async def test_conversation_stands_in_for_a_user_and_the_key_for_both(two: Served) -> None:
    start_rollout(two, 50, every_seconds=60)
    await under_way(two)
    body = {"model": "support", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}

    async def asked(**headers: str) -> tuple[str, str]:
        reply = await two.client.post("/v1/chat/completions", json=body, headers=two.auth | headers)
        return reply.headers["x-loragate-arm"], reply.headers["x-loragate-unit"]

    talks = [await asked(**{"x-conversation-id": f"talk-{i}"}) for i in range(30)]
    assert {unit for _, unit in talks} == {"conversation"}
    assert {arm for arm, _ in talks} == {"champion", "challenger"}
    alone = {await asked() for _ in range(5)}
    assert {unit for _, unit in alone} == {"key"}
    assert len(alone) == 1


async def test_arm_that_cannot_be_loaded_gets_no_request_and_pauses_the_rollout(
    two: Served,
) -> None:
    two.engine.refused.add("acme/support@v2")
    trial = start_rollout(two, 100, every_seconds=60)

    await until(lambda: status(two, trial) == "PAUSED", 10)

    assert "it is bad" in two.registry.trials.get(trial.id).status.reason
    reply = await ask(two, "ann")
    assert reply.headers["x-loragate-adapter"] == "acme/support@v1"
    assert reply.headers["x-loragate-arm"] == "challenger"
    assert reply.headers["x-loragate-fallback"] == "champion"


async def test_arm_that_fails_under_way_is_answered_for_by_the_champion_until_mended(
    serve_with: ServeWith, tmp_path: Path
) -> None:
    room_for_one = EngineConfig(max_loras=1, max_cpu_loras=1)
    async with with_two_versions(serve_with, tmp_path, engine=room_for_one) as two:
        trial = start_rollout(two, 100, every_seconds=60)
        await under_way(two)
        assert (await ask(two, "ann")).headers["x-loragate-adapter"] == "acme/support@v2"
        two.engine.refused.add("acme/support@v2")
        await ask(two, "bob", "support@v1")  # the other one leaves the engine for it

        reply = await ask(two, "ann")

        assert reply.headers["x-loragate-fallback"] == "champion"
        assert reply.headers["x-loragate-adapter"] == "acme/support@v1"
        await until(lambda: status(two, trial) == "PAUSED", 10)

        two.engine.refused.clear()
        TrialService(two.registry).change(SUPPORT, "resume", "", "mended", "test")
        async with asyncio.timeout(10):
            while "x-loragate-fallback" in (await ask(two, "ann")).headers:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert status(two, trial) == "RUNNING"


async def test_restart_goes_on_with_the_same_arms_and_figures(
    serve_with: ServeWith, tmp_path: Path
) -> None:
    users = [f"user-{number}" for number in range(12)]
    async with with_two_versions(serve_with, tmp_path) as before:
        trial = start_rollout(before, 50, 100, every_seconds=60)
        await under_way(before)
        arms_before = {user: arms([await ask(before, user)]) for user in users}

    async with serve_with(experiments=QUICK) as after:
        await under_way(after)
        assert {user: arms([await ask(after, user)]) for user in users} == arms_before
        trial_service = TrialService(after.registry)

        def units() -> int:
            return sum(arm.tally.units for arm in trial_service.report(trial.id).arms)

        await until(lambda: units() == len(users) + 1, 10)  # each once, and who asked first
        assert status(after, trial) == "RUNNING"


async def test_champion_promoted_by_hand_ends_the_rollout(two: Served, tmp_path: Path) -> None:
    trial = start_rollout(two, 100, every_seconds=60)
    await under_way(two)
    two.registry.versions.publish(SUPPORT, write_adapter(tmp_path / "v3", 3))
    two.registry.aliases.set(SUPPORT, "champion", 3)

    await until(lambda: status(two, trial) == "ABORTED", 10)

    assert "changed to v3" in two.registry.trials.get(trial.id).status.reason


async def test_experiment_that_may_decides_by_itself(two: Served) -> None:
    trial = start_experiment(two, is_automatic=True)
    await ask_until(two, trial, "PASSED")
    assert two.registry.versions.show(SUPPORT).aliases["champion"].desired.number == 2


async def test_base_model_can_be_an_arm(two: Served) -> None:
    start_experiment(two, "champion=v1:50%", "plain=base:50%")
    await under_way(two)
    replies = [await ask(two, f"user-{i}") for i in range(30)]
    assert {reply.headers["x-loragate-adapter"] for reply in replies} == {"acme/support@v1", "base"}


async def test_trial_of_a_deleted_tenant_ends_with_it(two: Served) -> None:
    trial = start_rollout(two, 50, every_seconds=60)
    await under_way(two)
    two.registry.tenants.delete("acme")
    await until(lambda: status(two, trial) == "ABORTED", 10)
    async with asyncio.timeout(10):
        while (await two.chat("hi")).status_code != 401:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("arms", "problem"),
    [
        (("champion=v1:50%", "new=v2:40%"), "add up to 0.9"),
        (("champion=v1:50%", "new=v9:50%"), "v9"),
        (("old=v1:50%", "new=v2:50%"), "called 'champion'"),
        (("champion=v2:50%", "new=v1:50%"), "what serves now"),
        (("champion=v1:50%", "new=v2+merged:50%"), "no engine serves acme/support@v2 merged"),
        (("champion=v1:50%", "new"), "is no arm"),
    ],
)
async def test_arms_that_cannot_be_are_refused_at_the_start(
    two: Served, arms: tuple[str, ...], problem: str
) -> None:
    with pytest.raises((InvalidRequest, VersionNotFound), match=problem):
        start_experiment(two, *arms)


async def test_second_trial_of_an_adapter_and_retiring_an_arm_are_refused(two: Served) -> None:
    start_rollout(two, 50, every_seconds=60)
    with pytest.raises(TrialUnderWay):
        start_experiment(two)
    with pytest.raises(VersionHeld, match="rollout"):
        two.registry.states.retire(SUPPORT, 2)
