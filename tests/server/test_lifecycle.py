"""An alias that moves: what serves meanwhile, what is left behind, and what stops a bad version."""

import asyncio
import json
import math
import shutil
import sqlite3
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import StoreError
from loragate.adapters.format.files import SourceFile, inspect
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.aliases import Aliasing
from loragate.adapters.registry.registry import AdapterState
from loragate.adapters.registry.snapshot import Snapshot
from loragate.adapters.registry.transitions import Transitions
from loragate.adapters.store import ArtifactStore
from loragate.server.config import EngineConfig, LimitsConfig, RegistryConfig
from loragate.server.core import Delta, TokenLogprob
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter
from loragate.server.residency import reconciler
from loragate.server.residency.loader import Loader
from loragate.server.residency.pins import Pins
from loragate.server.residency.residency import Residency
from support.engines.echo_engine import EchoEngine, GatedEngine
from support.models.one_layer import write_adapter
from support.server.small_server import (
    SUPPORT,
    Furnished,
    Served,
    ServeWith,
    on_a_socket,
    serve,
    small_config,
)
from support.waiting import until

ROUTER = ("globex", "router", "champion")


def publish(served: Served, tmp_path: Path, seed: int) -> AdapterVersion:
    return served.registry.versions.publish(
        SUPPORT, write_adapter(tmp_path / f"adapter-{seed}", seed)
    )


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
    served.registry.aliases.set(SUPPORT, "champion", two.number)

    await serves(served, "acme/support@v2")

    await until(lambda: served.engine.unloads == ["acme/support@v1"], 10)
    one = served.registry.versions.show(SUPPORT).versions[-1].version
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
        served.registry.aliases.set(SUPPORT, "champion", two.number)
        await serves(served, "acme/support@v2")
        assert served.engine.unloads == []

        rest = [line async for line in events if line]

    assert rest[-1] == "data: [DONE]"
    await until(lambda: served.engine.unloads == ["acme/support@v1"], 10)


async def test_rollback_is_the_same_move_back(served: Served, tmp_path: Path) -> None:
    two = publish(served, tmp_path, 2)
    served.registry.aliases.set(SUPPORT, "champion", two.number)
    await serves(served, "acme/support@v2")

    served.registry.aliases.rollback(SUPPORT)

    await serves(served, "acme/support@v1")


@pytest.mark.parametrize("flaw", ["refused", "without_effect"])
async def test_version_that_does_not_pass_never_serves_and_says_why(
    served: Served, tmp_path: Path, flaw: str
) -> None:
    bad = publish(served, tmp_path, 2)
    getattr(served.engine, flaw).add(str(bad))

    served.registry.aliases.set(SUPPORT, "champion", bad.number)

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
    version = served.registry.versions.publish(SUPPORT, folder)

    served.registry.aliases.set(SUPPORT, "champion", version.number)

    await until(lambda: state(served, version) is expected, 10)
    if expected is AdapterState.FAILED:
        assert reason(served, version).startswith("reference_mismatch: In the engine")
        assert await adapter_that_answers(served) == "acme/support@v1"
        assert served.engine.loaded.keys() <= {1}
    else:
        await serves(served, "acme/support@v2")


@pytest.mark.parametrize("damage", ["changed", "gone"])
async def test_version_whose_files_are_damaged_here_waits_for_their_repair(
    served: Served, tmp_path: Path, damage: str
) -> None:
    two = publish(served, tmp_path, 2)
    weights = served.home.artifacts / two.digest / "adapter_model.safetensors"
    shutil.copytree(weights.parent, tmp_path / "backup")
    if damage == "changed":
        content = weights.read_bytes()
        weights.chmod(0o600)
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        shutil.rmtree(weights.parent)

    served.registry.aliases.set(SUPPORT, "champion", two.number)

    await until(lambda: reason(served, two).startswith("not_loaded: the artifact"), 10)
    assert state(served, two) is AdapterState.PUBLISHED
    assert await adapter_that_answers(served) == "acme/support@v1"
    shutil.rmtree(weights.parent, ignore_errors=True)
    shutil.copytree(tmp_path / "backup", weights.parent)
    await serves(served, "acme/support@v2")
    assert reason(served, two) == ""


@pytest.mark.parametrize("scores", [([-1.0] * 2, [-1.0] * 2), ([-1.7e308] * 2, [-1.0] * 2)])
async def test_reference_that_was_stored_before_it_was_refused_fails_its_version_alone(
    served: Served, tmp_path: Path, scores: tuple[list[float], list[float]]
) -> None:
    two, three = publish(served, tmp_path, 2), publish(served, tmp_path, 3)
    prompt = {"token_ids": [1, 2, 3], "adapter": scores[0], "base": scores[1]}
    store_unchecked(served, two, {"reference": {"prompts": [prompt]}})

    served.registry.aliases.set(SUPPORT, "champion", two.number)
    await until(lambda: state(served, two) is AdapterState.FAILED, 10)
    assert reason(served, two).startswith("invalid_manifest: ")

    served.registry.aliases.set(SUPPORT, "champion", three.number)
    await serves(served, "acme/support@v3")


def store_unchecked(served: Served, version: AdapterVersion, manifest: object) -> None:
    """Gives the version a manifest that publishing refuses."""
    store = ArtifactStore(served.home.artifacts)
    files = inspect(store.path(version.digest))
    path = served.home.root / f"manifest-{version.number}.json"
    path.write_text(json.dumps(manifest))
    added = SourceFile("manifest.json", path, path.stat().st_size)
    digest = store.put(replace(files, files=(*files.files, added)))
    with sqlite3.connect(served.home.root / "registry.db") as database:
        database.execute("UPDATE versions SET digest = ? WHERE id = ?", (digest, version.lora_id))


@dataclass
class OverflowingEngine(GatedEngine):
    """Computes no numbers with the adapters named here."""

    overflowing: set[str] = field(default_factory=set)

    def _scored(self, request: EngineRequest) -> Delta:
        told = super()._scored(request)
        if request.adapter is None or str(request.adapter.version) not in self.overflowing:
            return told
        scores = [TokenLogprob("", token, math.nan) for token in request.prompt_ids[1:]]
        return Delta(index=0, prompt_logprobs=(None, *scores), finish_reason="length")


async def test_adapter_with_which_the_engine_computes_no_numbers_fails(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    engine = OverflowingEngine(overflowing={"acme/support@v2"})
    async with serve(furnished, tmp_path / "served", base, engine) as served:
        two = publish(served, tmp_path, 2)
        served.registry.aliases.set(SUPPORT, "champion", two.number)

        await until(lambda: state(served, two) is AdapterState.FAILED, 10)

        assert reason(served, two).startswith("not_finite: ")
        assert await adapter_that_answers(served) == "acme/support@v1"


@dataclass
class PickyEngine(EchoEngine):
    """Never answers the loads of what is named in `stuck`, and has no disk for `diskless`."""

    stuck: set[str] = field(default_factory=set)
    diskless: set[str] = field(default_factory=set)

    async def load(self, adapter: LoadedAdapter) -> None:
        if str(adapter.version) in self.stuck:
            await asyncio.Event().wait()
        if str(adapter.version) in self.diskless:
            raise StoreError("there is no room in /tmp (No space left on device)")
        await super().load(adapter)


@pytest.mark.parametrize(
    ("flaw", "words"), [("stuck", "engine.load_timeout_seconds"), ("diskless", "no room in /tmp")]
)
async def test_load_that_this_machine_cannot_do_holds_nobody_up_and_comes_again(
    furnished: Furnished, tmp_path: Path, base: BaseModel, flaw: str, words: str
) -> None:
    engine = PickyEngine()
    getattr(engine, flaw).add("acme/support@v2")
    config = small_config(engine=EngineConfig(load_timeout_seconds=1.0))
    router = AdapterName("globex", "router")
    async with serve(furnished, tmp_path / "served", base, engine, config) as served:
        two = publish(served, tmp_path, 2)
        other = served.registry.versions.publish(router, write_adapter(tmp_path / "router", 5))
        served.registry.aliases.set(SUPPORT, "champion", two.number)
        await until(lambda: words in reason(served, two), 10)
        served.registry.aliases.set(router, "champion", other.number)
        await until(lambda: served.registry.snapshot().resolve(*ROUTER).number == 2, 10)
        assert state(served, two) is not AdapterState.FAILED
        assert await adapter_that_answers(served) == "acme/support@v1"

        getattr(engine, flaw).clear()
        await serves(served, "acme/support@v2")


async def test_wish_without_a_slot_does_not_hold_up_those_behind_it(
    serve_with: ServeWith, tmp_path: Path
) -> None:
    one_slot = EngineConfig(max_loras=1)
    limits = LimitsConfig(queue_timeout_seconds=60.0)
    async with serve_with(engine=one_slot, limits=limits) as served:
        await serves(served, "acme/support@v1")
        served.engine.pace_seconds = 0.02
        asking = asyncio.create_task(served.chat("a long answer, please", max_tokens=200))
        await until(lambda: bool(served.engine.running), 5)
        early = AdapterName("acme", "early")  # comes first by its name
        slotless = served.registry.versions.publish(early, write_adapter(tmp_path / "early", 5))
        served.registry.aliases.set(early, "champion", slotless.number)
        served.registry.aliases.set(SUPPORT, "spare", 1)

        await until(lambda: "spare" in serving_aliases(served, 1), 10)

        assert "acme/early@v1" not in served.engine.loads
        asking.cancel()
        await until(lambda: state(served, slotless) is AdapterState.READY, 10)


def serving_aliases(served: Served, number: int) -> tuple[str, ...]:
    versions = served.registry.versions.show(SUPPORT).versions
    return next(found.serves for found in versions if found.version.number == number)


async def test_rollback_does_not_wait_for_the_long_answers_of_the_version_it_goes_back_to(
    served: Served, tmp_path: Path
) -> None:
    two = publish(served, tmp_path, 2)
    served.engine.pace_seconds = 0.03
    asking = asyncio.create_task(served.chat("a very long answer", max_tokens=100))
    await until(lambda: bool(served.engine.running), 5)
    served.registry.aliases.set(SUPPORT, "champion", two.number)
    one = served.registry.versions.show(SUPPORT).versions[-1].version
    await until(lambda: state(served, one) is AdapterState.DRAINING, 10)

    served.registry.aliases.rollback(SUPPORT)

    await until(lambda: "champion" in serving_aliases(served, 1), 10)
    assert not asking.done()
    assert state(served, one) is AdapterState.READY
    assert served.engine.loads.count("acme/support@v1") == 1
    assert (await asking).status_code == 200


async def test_retired_version_that_had_left_the_engine_for_others_is_retired_too(
    serve_with: ServeWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "_LOOK_AT_ALL_SECONDS", 0.05)
    async with serve_with(engine=EngineConfig(max_loras=1, max_cpu_loras=1)) as served:
        two = publish(served, tmp_path, 2)
        async with asyncio.timeout(5):
            while (  # noqa: ASYNC110 - the server reads the registry in a moment
                await served.chat(model="support@v2", max_tokens=1)
            ).status_code != 200:
                await asyncio.sleep(0.01)
        assert (await served.chat(model="support@v1", max_tokens=1)).status_code == 200
        assert (list(served.engine.loaded), state(served, two)) == ([1], AdapterState.READY)

        served.registry.states.retire(SUPPORT, two.number)

        await until(lambda: state(served, two) is AdapterState.RETIRED, 10)


async def test_server_without_the_files_leaves_the_one_that_has_them_alone(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    healthy_home, engine = tmp_path / "healthy", EchoEngine()
    async with serve(furnished, healthy_home, base, engine) as healthy:
        await serves(healthy, "acme/support@v1")
        one = healthy.registry.versions.show(SUPPORT).versions[-1].version
        shared = small_config(
            registry=RegistryConfig(url=healthy.home.database_url, poll_seconds=0.02)
        )
        async with serve(
            furnished, tmp_path / "bare", base, EchoEngine(), shared
        ) as bare:  # which takes the registry's lock for lost
            shutil.rmtree(bare.home.artifacts)
            reply = await bare.chat(max_tokens=1)
            assert (reply.status_code, reply.json()["error"]["code"]) == (
                503,
                "adapter_not_loaded",
            )
            assert await adapter_that_answers(healthy) == "acme/support@v1"
            await until(lambda: state(healthy, one) is AdapterState.READY, 10)
            assert await adapter_that_answers(healthy) == "acme/support@v1"


# ---- loops that meet what nobody foresaw


class Unforeseen(Exception):
    """What no part of the server knows."""


def break_once(monkeypatch: pytest.MonkeyPatch, where: type, method: str) -> list[str]:
    """Makes the method raise at its next call; the list tells its calls from then on."""
    whole = getattr(where, method)
    calls: list[str] = []

    def broken(*arguments: object, **named: object) -> object:
        calls.append(method)
        if len(calls) == 1:
            raise Unforeseen(method)
        return whole(*arguments, **named)

    monkeypatch.setattr(where, method, broken)
    return calls


@pytest.mark.parametrize(
    ("where", "method"),
    [
        (Pins, "hold"),
        (Pins, "keep"),
        (Loader, "say_unsaid"),
        (Snapshot, "unserved_aliases"),
        (Residency, "may_acquire"),
        (Aliasing, "set_ready"),
        (Transitions, "set"),
        (Residency, "drained"),
        (Loader, "end_drain"),
    ],
)
async def test_promotion_outlives_what_nobody_foresaw_at_any_step(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: type, method: str
) -> None:
    await serves(served, "acme/support@v1")
    two = publish(served, tmp_path, 2)
    calls = break_once(monkeypatch, where, method)

    served.registry.aliases.set(SUPPORT, "champion", two.number)

    await serves(served, "acme/support@v2")
    one = served.registry.versions.show(SUPPORT).versions[-1].version
    await until(lambda: state(served, one) is AdapterState.PUBLISHED, 10)
    assert list(served.engine.loaded) == [two.lora_id]
    await until(lambda: len(calls) >= 2, 10)


async def test_failed_version_is_tried_again_when_it_is_promoted_again(
    served: Served, tmp_path: Path
) -> None:
    two = publish(served, tmp_path, 2)
    served.engine.refused.add(str(two))
    served.registry.aliases.set(SUPPORT, "champion", two.number)
    await until(lambda: state(served, two) is AdapterState.FAILED, 10)

    served.engine.refused.clear()
    served.registry.aliases.set(SUPPORT, "champion", two.number)

    await serves(served, "acme/support@v2")


async def test_retired_version_is_taken_out_of_the_engine(served: Served, tmp_path: Path) -> None:
    two = publish(served, tmp_path, 2)
    served.registry.aliases.set(SUPPORT, "challenger", two.number)
    await until(lambda: state(served, two) is AdapterState.READY, 10)
    served.registry.aliases.delete(SUPPORT, "challenger")

    served.registry.states.retire(SUPPORT, two.number)

    await until(lambda: state(served, two) is AdapterState.RETIRED, 10)
    assert served.engine.unloads == ["acme/support@v2"]


async def test_every_move_is_audited(served: Served, tmp_path: Path) -> None:
    two = publish(served, tmp_path, 2)
    served.registry.aliases.set(SUPPORT, "champion", two.number, "cli", "a better one")
    await serves(served, "acme/support@v2")

    rows = served.registry.audit.list(str(SUPPORT), 20)

    told = {(row.actor, row.action) for row in rows}
    assert ("cli", "alias.set") in told
    assert ("server", "alias.serve") in told
    assert any(row.reason == "a better one" for row in rows)


async def test_request_right_after_the_first_promotion_is_answered(
    served: Served, tmp_path: Path
) -> None:
    name = AdapterName("acme", "fresh")
    version = served.registry.versions.publish(name, write_adapter(tmp_path / "fresh", 7))
    served.registry.aliases.set(name, "champion", version.number)
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

    served.registry.tenants.delete("acme")

    await until(lambda: served.engine.unloads == ["acme/support@v1"], 5)


async def test_pinned_version_stays_when_its_alias_moves_on(served: Served, tmp_path: Path) -> None:
    await serves(served, "acme/support@v1")
    served.registry.pins.add(SUPPORT, "v1")
    two = publish(served, tmp_path, 2)
    served.registry.aliases.set(SUPPORT, "champion", two.number)

    await serves(served, "acme/support@v2")

    one = served.registry.snapshot().resolve("acme", "support", "v1")
    assert state(served, one) is AdapterState.READY
    assert served.engine.unloads == []


async def test_only_so_many_of_a_tenant_wait_for_a_first_version(
    furnished: Furnished, tmp_path: Path, base: BaseModel
) -> None:
    engine = GatedEngine()
    async with serve(furnished, tmp_path / "served", base, engine) as served:
        await serves(served, "acme/support@v1")
        engine.gate = asyncio.Event()
        name = AdapterName("acme", "fresh")
        version = served.registry.versions.publish(name, write_adapter(tmp_path / "fresh", 7))
        served.registry.aliases.set(name, "champion", version.number)
        await until(lambda: state(served, version) is AdapterState.LOADING, 5)
        await asyncio.sleep(0.1)  # the server's snapshot has the alias too

        asking = [asyncio.create_task(served.chat(model="fresh", max_tokens=1)) for _ in range(22)]
        await until(lambda: sum(task.done() for task in asking) == 6, 4)
        engine.gate.set()
        replies = await asyncio.gather(*asking)

    refused = [reply for reply in replies if reply.status_code == 503]
    assert len(refused) == 6
    assert {reply.json()["error"]["code"] for reply in refused} == {"adapter_loading"}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}
    assert [reply.status_code for reply in replies].count(200) == 16
