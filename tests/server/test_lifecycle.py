"""An alias that moves: what serves meanwhile, what is left behind, and what stops a bad version."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from fakes import GatedEngine
from small_server import SUPPORT, Furnished, Served, on_a_socket, serve, until
from tiny_adapters import write_adapter

from loragate.adapters.base_model import BaseModel
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry import AdapterState


def publish(served: Served, tmp_path: Path, seed: int) -> AdapterVersion:
    return served.registry.publish(SUPPORT, write_adapter(tmp_path / f"adapter-{seed}", seed))


def state(served: Served, version: AdapterVersion) -> AdapterState:
    return served.registry.snapshot().state(version)


def reason(served: Served, version: AdapterVersion) -> str:
    return served.registry.snapshot().reason(version)


async def adapter_that_answers(served: Served) -> str:
    reply = await served.chat(max_tokens=1)
    assert reply.status_code == 200, reply.text
    return reply.headers["x-loragate-adapter"]


async def serves(served: Served, wanted: str) -> None:
    async with asyncio.timeout(10):
        while await adapter_that_answers(served) != wanted:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def test_promoted_version_serves_and_the_old_one_leaves_the_engine(
    served: Served, tmp_path: Path
) -> None:
    await serves(served, "acme/support@v1")
    two = publish(served, tmp_path, 2)
    served.registry.set_alias(SUPPORT, "champion", two.number)

    await serves(served, "acme/support@v2")

    await until(lambda: served.engine.unloads == ["acme/support@v1"], 10)
    one = served.registry.show(SUPPORT).versions[-1].version
    await until(lambda: state(served, one) is AdapterState.PUBLISHED, 10)
    assert state(served, two) is AdapterState.READY


async def test_in_flight_request_finishes_on_old_version_after_swap(
    served: Served, tmp_path: Path
) -> None:
    two = publish(served, tmp_path, 2)
    served.engine.pace_seconds = 0.03
    body = {
        "model": "support",
        "messages": [{"role": "user", "content": "a long answer, please"}],
        "max_tokens": 40,
        "stream": True,
    }
    async with (
        on_a_socket(served) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert answer.headers["x-loragate-adapter"] == "acme/support@v1"
        events = answer.aiter_lines()
        await anext(events)
        served.registry.set_alias(SUPPORT, "champion", two.number)
        await serves(served, "acme/support@v2")
        assert served.engine.unloads == []

        rest = [line async for line in events if line]

    assert rest[-1] == "data: [DONE]"
    await until(lambda: served.engine.unloads == ["acme/support@v1"], 10)


async def test_rollback_is_the_same_move_back(served: Served, tmp_path: Path) -> None:
    two = publish(served, tmp_path, 2)
    served.registry.set_alias(SUPPORT, "champion", two.number)
    await serves(served, "acme/support@v2")

    served.registry.rollback(SUPPORT)

    await serves(served, "acme/support@v1")


@pytest.mark.parametrize("flaw", ["refused", "without_effect"])
async def test_version_that_does_not_pass_never_serves_and_says_why(
    served: Served, tmp_path: Path, flaw: str
) -> None:
    bad = publish(served, tmp_path, 2)
    getattr(served.engine, flaw).add(str(bad))

    served.registry.set_alias(SUPPORT, "champion", bad.number)

    await until(lambda: state(served, bad) is AdapterState.FAILED, 10)
    assert reason(served, bad)
    assert await adapter_that_answers(served) == "acme/support@v1"
    assert served.engine.loaded.keys() <= {1}


@pytest.mark.parametrize(
    ("scored", "expected"), [(-2.0, AdapterState.READY), (-4.0, AdapterState.FAILED)]
)
async def test_version_is_held_against_its_manifests_reference(
    served: Served, tmp_path: Path, scored: float, expected: AdapterState
) -> None:
    folder = write_adapter(tmp_path / "adapter", 2)
    prompt = {"token_ids": [1, 2, 3], "adapter": [scored] * 2, "base": [-1.0] * 2}
    (folder / "manifest.json").write_text(json.dumps({"reference": {"prompts": [prompt]}}))
    version = served.registry.publish(SUPPORT, folder)

    served.registry.set_alias(SUPPORT, "champion", version.number)

    await until(lambda: state(served, version) is expected, 10)
    if expected is AdapterState.FAILED:
        assert reason(served, version).startswith("reference_mismatch: In the engine")
        assert await adapter_that_answers(served) == "acme/support@v1"
        assert served.engine.loaded.keys() <= {1}
    else:
        await serves(served, "acme/support@v2")


@pytest.mark.parametrize("damage", ["changed", "gone"])
async def test_version_whose_artifact_was_damaged_never_serves(
    served: Served, tmp_path: Path, damage: str
) -> None:
    two = publish(served, tmp_path, 2)
    weights = served.home.artifacts / two.digest / "adapter_model.safetensors"
    if damage == "changed":
        content = weights.read_bytes()
        weights.chmod(0o600)
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        shutil.rmtree(weights.parent)

    served.registry.set_alias(SUPPORT, "champion", two.number)

    await until(lambda: state(served, two) is AdapterState.FAILED, 10)
    assert reason(served, two).startswith("damaged_artifact: ")
    assert await adapter_that_answers(served) == "acme/support@v1"


async def test_failed_version_is_tried_again_when_it_is_promoted_again(
    served: Served, tmp_path: Path
) -> None:
    two = publish(served, tmp_path, 2)
    served.engine.refused.add(str(two))
    served.registry.set_alias(SUPPORT, "champion", two.number)
    await until(lambda: state(served, two) is AdapterState.FAILED, 10)

    served.engine.refused.clear()
    served.registry.set_alias(SUPPORT, "champion", two.number)

    await serves(served, "acme/support@v2")


async def test_retired_version_is_taken_out_of_the_engine(served: Served, tmp_path: Path) -> None:
    two = publish(served, tmp_path, 2)
    served.registry.set_alias(SUPPORT, "challenger", two.number)
    await until(lambda: state(served, two) is AdapterState.READY, 10)
    served.registry.delete_alias(SUPPORT, "challenger")

    served.registry.retire(SUPPORT, two.number)

    await until(lambda: state(served, two) is AdapterState.RETIRED, 10)
    assert served.engine.unloads == ["acme/support@v2"]


async def test_every_move_is_audited(served: Served, tmp_path: Path) -> None:
    two = publish(served, tmp_path, 2)
    served.registry.set_alias(SUPPORT, "champion", two.number, "cli", "a better one")
    await serves(served, "acme/support@v2")

    rows = served.registry.audit(str(SUPPORT), 20)

    told = {(row.actor, row.action) for row in rows}
    assert ("cli", "alias.set") in told
    assert ("server", "alias.serve") in told
    assert any(row.reason == "a better one" for row in rows)


async def test_request_right_after_the_first_promotion_is_answered(
    served: Served, tmp_path: Path
) -> None:
    name = AdapterName("acme", "fresh")
    version = served.registry.publish(name, write_adapter(tmp_path / "fresh", 7))
    served.registry.set_alias(name, "champion", version.number)
    async with asyncio.timeout(10):
        # The server may not have looked at the registry yet.
        while (  # noqa: ASYNC110 - it has no event
            reply := await served.chat(model="fresh", max_tokens=1)
        ).status_code == 404:
            await asyncio.sleep(0.01)
    assert reply.status_code == 200, reply.text


async def test_versions_of_a_deleted_tenant_leave_the_engine(served: Served) -> None:
    await serves(served, "acme/support@v1")
    await until(lambda: list(served.engine.loaded) == [1], 10)

    served.registry.delete_tenant("acme")

    await until(lambda: served.engine.unloads == ["acme/support@v1"], 5)


async def test_pinned_version_stays_when_its_alias_moves_on(served: Served, tmp_path: Path) -> None:
    await serves(served, "acme/support@v1")
    served.registry.pin(SUPPORT, "v1")
    two = publish(served, tmp_path, 2)
    served.registry.set_alias(SUPPORT, "champion", two.number)

    await serves(served, "acme/support@v2")

    one = served.registry.snapshot().resolve("acme", "support", "v1")
    assert state(served, one) is AdapterState.READY
    assert served.engine.unloads == []


async def test_only_so_many_wait_for_a_first_version(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    engine = GatedEngine()
    async with serve(furnished, tmp_path / "served", base, engine) as served:
        await serves(served, "acme/support@v1")
        engine.gate = asyncio.Event()
        name = AdapterName("acme", "fresh")
        version = served.registry.publish(name, write_adapter(tmp_path / "fresh", 7))
        served.registry.set_alias(name, "champion", version.number)
        await until(lambda: state(served, version) is AdapterState.LOADING, 5)
        await asyncio.sleep(0.1)  # the server's snapshot has the alias too

        asking = [asyncio.create_task(served.chat(model="fresh", max_tokens=1)) for _ in range(70)]
        await until(lambda: sum(task.done() for task in asking) == 6, 4)
        engine.gate.set()
        replies = await asyncio.gather(*asking)

    refused = [reply for reply in replies if reply.status_code == 503]
    assert len(refused) == 6
    assert {reply.json()["error"]["code"] for reply in refused} == {"adapter_loading"}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}
    assert [reply.status_code for reply in replies].count(200) == 64
