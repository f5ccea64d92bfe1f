"""Merged models in engines of their own: on demand, within memory, never in anybody's way."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import StoreError
from loragate.adapters.registry.merged_serving import MergedServing
from loragate.adapters.registry.merged_states import MergedState, MergedStatus
from loragate.adapters.registry.snapshot import Snapshot
from loragate.server.engine.memory import MemoryRequirement
from loragate.server.merged.memory import MemoryBudget
from loragate.v1 import inference_pb2 as pb
from loragate.v1 import inference_pb2_grpc
from support.engines.echo_engine import TINY_MODEL, EchoEngine
from support.server.merged_engines import PLENTY, Bench
from support.server.small_server import (
    SUPPORT,
    Furnished,
    Reply,
    Served,
    bearer,
    serve,
    small_config,
)
from support.waiting import until


@pytest.fixture
def bench(base: BaseModel) -> Bench:
    return Bench(base)


@pytest.fixture
def serving(
    furnished: Furnished, tmp_path: Path, base: BaseModel, engine: EchoEngine, bench: Bench
) -> AbstractAsyncContextManager[Served]:
    root = tmp_path / "served"
    return serve(furnished, root, base, engine, small_config(), merged_backend=bench.merged_backend)


@pytest_asyncio.fixture
async def served(
    serving: AbstractAsyncContextManager[Served], bench: Bench
) -> AsyncIterator[Served]:
    async with serving as served:
        bench.served = served
        yield served


def status(served: Served) -> MergedStatus | None:
    snapshot = served.registry.snapshot()
    return snapshot.merged(snapshot.resolve("acme", "support", "v1"))


def state(served: Served) -> str:
    found = status(served)
    return "" if found is None else found.state


async def serve_merged(served: Served) -> None:
    served.registry.merged.serve(SUPPORT, 1)
    await until(lambda: state(served) == "SERVING", 5)


def mode(reply: Reply) -> tuple[str, str]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-loragate-adapter"] == "acme/support@v1"
    return reply.headers["x-loragate-mode"], reply.headers.get("x-loragate-fallback", "")


async def test_merged_model_is_served_by_an_engine_of_its_own_where_the_route_says_so(
    served: Served, engine: EchoEngine, bench: Bench
) -> None:
    assert mode(await served.chat()) == ("unmerged", "")
    await serve_merged(served)
    assert mode(await served.chat()) == ("unmerged", "")
    assert mode(await served.chat(model="support@v1+merged")) == ("merged", "")

    served.registry.aliases.set(SUPPORT, "champion", 1, mode="merged")
    async with asyncio.timeout(10):
        while mode(await served.chat()) != ("merged", ""):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)

    asked = bench.engines.last.seen[-1]
    assert asked.adapter is None
    assert list(asked.prompt_ids) == list(engine.seen[-1].prompt_ids)
    base = await served.chat(model="base")
    assert "x-loragate-mode" not in base.headers


async def test_merged_model_is_listed_while_it_serves_and_only_then(served: Served) -> None:
    async def listed() -> dict[str, dict[str, object]]:
        reply = await served.client.get("/v1/models", headers=served.auth)
        return {card["id"]: card for card in reply.json()["data"]}

    async def told_on_grpc() -> set[str]:
        async with served.channel() as channel:
            asked = inference_pb2_grpc.InferenceStub(channel).ListModels(
                pb.ListModelsRequest(), metadata=tuple(served.auth.items())
            )
            return {model.id for model in (await asked).models}

    name = "support@v1+merged"
    async with served.server.listening():
        assert name not in await listed()
        await serve_merged(served)
        async with asyncio.timeout(2):
            while name not in (cards := await listed()):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        assert cards[name] == cards["support@v1"] | {"id": name, "root": f"acme/{name}"}
        got = await served.client.get(f"/v1/models/{name}", headers=served.auth)
        assert got.json() == cards[name]
        assert await told_on_grpc() == set(cards)

        served.registry.merged.stop(SUPPORT, 1)
        async with asyncio.timeout(2):
            while name in await listed():  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        assert name not in await told_on_grpc()


async def test_trailers_of_grpc_say_the_mode_too(served: Served) -> None:
    await serve_merged(served)
    async with served.server.listening(), served.channel() as channel:
        message = pb.Message(role="user", content="hello")
        call = inference_pb2_grpc.InferenceStub(channel).Chat(
            pb.ChatRequest(model="support@v1+merged", messages=[message]),
            metadata=tuple(served.auth.items()),
        )
        await call
        said = dict(await call.trailing_metadata())
    assert (said["x-loragate-mode"], said["x-loragate-adapter"]) == ("merged", "acme/support@v1")


async def test_merged_model_that_nobody_serves_is_not_found_with_the_reason(
    served: Served,
) -> None:
    reply = await served.chat(model="support@v1+merged")
    assert reply.status_code == 404
    assert "loragate merge acme/support@v1 --serve" in reply.json()["error"]["message"]


async def test_version_without_a_merged_model_is_merged_first(served: Served, bench: Bench) -> None:
    await serve_merged(served)

    assert [str(version) for version in bench.made] == ["acme/support@v1"]
    actions = [
        (row.action, row.reason) for row in served.registry.audit.list("acme/support@v1", 10)
    ]
    assert actions[:3] == [
        ("version.merged_state", "SERVING"),
        ("version.merged_state", "STARTING"),
        ("version.merge", ""),
    ]


async def test_merged_model_that_does_not_fit_is_refused_with_figures_and_nothing_starts(
    served: Served, bench: Bench
) -> None:
    served.registry.merges.attach(SUPPORT, 1, bench.base.path)
    bench.free_bytes = 3 * 2**30

    served.registry.merged.serve(SUPPORT, 1)
    await until(lambda: state(served) == "REFUSED", 5)

    found = status(served)
    assert found is not None
    assert "it needs 2.00 GiB (weights 0.00 GiB, KV cache 1.00 GiB, process 1.00 GiB)" in (
        found.reason
    )
    assert "0.00 GiB are free beside the 1.00 GiB" in found.reason
    assert bench.engines.attempts == 0
    assert mode(await served.chat(model="support@v1+merged")) == ("unmerged", "unmerged")

    bench.free_bytes = PLENTY
    served.registry.merged.serve(SUPPORT, 1)
    await until(lambda: state(served) == "SERVING", 5)


async def test_making_a_merged_model_takes_the_host_s_memory_wherever_engines_compute(
    served: Served, bench: Bench
) -> None:
    bench.free_host_bytes = 2**30  # all of it kept in reserve
    served.registry.merged.serve(SUPPORT, 1)
    await until(lambda: state(served) == "REFUSED", 5)

    found = status(served)
    assert found is not None
    assert "of the host's memory for a minute, and 0.00 GiB are free" in found.reason

    # What is made already needs none of it: the engine's memory is another one.
    served.registry.merges.attach(SUPPORT, 1, bench.base.path)
    served.registry.merged.serve(SUPPORT, 1)
    await until(lambda: state(served) == "SERVING", 5)
    assert bench.made == []


async def test_merged_model_with_a_shorter_context_leaves_what_is_longer_to_its_version_unmerged(
    served: Served, bench: Bench
) -> None:
    bench.engines.model = replace(TINY_MODEL, max_model_len=100)
    await serve_merged(served)

    async def asked(text: str, **body: object) -> tuple[str, str]:
        return mode(await served.chat(text, model="support@v1+merged", **body))

    assert await asked("hello") == ("merged", "")
    assert await asked("hello", max_tokens=20) == ("merged", "")
    assert await asked("hello", max_tokens=90) == ("unmerged", "unmerged")
    assert await asked("hello" * 20) == ("unmerged", "unmerged")
    refused = await served.chat("hello" * 60, model="support@v1+merged")
    assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_on_a_gpu_an_engine_has_taken_all_or_nothing_of_what_it_was_promised() -> None:
    need, engine = MemoryRequirement(3 * 2**30, 2**30), EchoEngine(memory_bytes=5)
    on_cpu = MemoryBudget(0, 0, "auto", need, 0)
    assert on_cpu.outstanding(need, engine) == need.bytes - 5
    # What its process holds of the host says nothing of the GPU.
    on_gpu = MemoryBudget(0, 0, "auto", need, 0, is_gpu=True)
    assert on_gpu.outstanding(need, engine) == 0
    engine.is_alive = False
    assert on_gpu.outstanding(need, engine) == need.bytes


async def test_engine_that_does_not_start_is_told_and_the_version_answers_unmerged(
    served: Served, bench: Bench
) -> None:
    bench.engines.failing = 1
    served.registry.merged.serve(SUPPORT, 1)
    await until(lambda: state(served) == "FAILED", 5)

    found = status(served)
    assert found is not None
    assert found.reason == "There is no memory for the model."
    assert mode(await served.chat(model="support@v1+merged")) == ("unmerged", "unmerged")


async def test_traffic_goes_to_the_unmerged_version_within_a_second_when_the_engine_dies(
    served: Served, bench: Bench
) -> None:
    await serve_merged(served)
    bench.may_start.clear()
    died = time.monotonic()
    bench.engines.last.is_alive = False

    assert mode(await served.chat(model="support@v1+merged")) == ("unmerged", "unmerged")
    assert time.monotonic() - died < 1
    await until(lambda: state(served) == "RESTARTING", 2)
    assert (await served.client.get("/readyz")).status_code == 200

    bench.may_start.set()
    await until(lambda: state(served) == "SERVING", 5)
    assert mode(await served.chat(model="support@v1+merged")) == ("merged", "")


async def test_request_whose_engine_dies_before_its_first_token_is_answered_unmerged(
    served: Served, bench: Bench
) -> None:
    bench.engines.pace_seconds = 0.05
    await serve_merged(served)
    asking = asyncio.create_task(served.chat(model="support@v1+merged"))
    await until(lambda: bool(bench.engines.last.running))
    bench.engines.last.is_alive = False

    assert mode(await asking) == ("unmerged", "unmerged")


async def test_model_that_is_stopped_ends_its_requests_first(served: Served, bench: Bench) -> None:
    bench.engines.pace_seconds = 0.05
    await serve_merged(served)
    asking = asyncio.create_task(served.chat(model="support@v1+merged", max_tokens=10))
    await until(lambda: bool(bench.engines.last.running))

    served.registry.merged.stop(SUPPORT, 1)
    await until(lambda: state(served) == "STOPPING")
    assert bench.engines.closed == []

    assert mode(await asking) == ("merged", "")
    await until(lambda: bool(bench.engines.closed), 5)
    await until(lambda: state(served) == "", 5)
    assert bench.engines.last.aborted == []


async def test_model_asked_for_again_while_it_stops_is_served_again(
    served: Served, bench: Bench
) -> None:
    await serve_merged(served)
    served.registry.merged.stop(SUPPORT, 1)
    served.registry.merged.serve(SUPPORT, 1)

    await until(lambda: state(served) == "SERVING", 5)
    assert mode(await served.chat(model="support@v1+merged")) == ("merged", "")


async def test_merged_models_serve_again_after_a_restart_of_the_server(
    served: Served, bench: Bench, furnished: Furnished, tmp_path: Path, engine: EchoEngine
) -> None:
    await serve_merged(served)
    served.registry.aliases.set(SUPPORT, "champion", 1, mode="merged")
    as_it_was = Furnished(served.home.root, served.keys)

    again = Bench(bench.base)
    async with serve(
        *(as_it_was, tmp_path / "again", bench.base, EchoEngine(), small_config()),
        merged_backend=again.merged_backend,
    ) as restarted:
        await until(lambda: state(restarted) == "SERVING", 5)
        assert mode(await restarted.chat()) == ("merged", "")
        assert again.made == []


async def test_merged_model_takes_no_slot_of_the_base_engine(
    served: Served, engine: EchoEngine, bench: Bench
) -> None:
    await serve_merged(served)
    loads = list(engine.loads)
    await served.chat(model="support@v1+merged")
    assert engine.loads == loads


async def test_merged_engines_have_metrics_of_their_own(served: Served) -> None:
    await serve_merged(served)
    await served.chat(model="support@v1+merged")

    text = (await served.client.get("/metrics")).text
    labels = '{adapter="acme/support@v1",tenant="acme"}'
    assert f"loragate_merged_engine_up{labels} 1.0" in text
    assert f"loragate_merged_engine_starts{labels} 1.0" in text
    assert 'adapter="acme/support+merged",outcome="ok"' in text


async def test_another_tenant_cannot_ask_for_the_merged_model(served: Served) -> None:
    await serve_merged(served)
    body = {"model": "acme/support@v1+merged", "messages": [{"role": "user", "content": "hi"}]}
    reply = await served.client.post(
        "/v1/chat/completions", json=body, headers=bearer(served.keys["globex"])
    )
    assert reply.status_code == 404


class Unforeseen(Exception):
    """What no part of the server knows."""


def break_calls(
    monkeypatch: pytest.MonkeyPatch, where: type, method: str, error: Exception, times: int
) -> list[str]:
    """Makes the next calls raise; the list tells all calls from then on."""
    whole = getattr(where, method)
    calls: list[str] = []

    def broken(*arguments: object, **named: object) -> object:
        calls.append(method)
        if len(calls) <= times:
            raise error
        return whole(*arguments, **named)

    monkeypatch.setattr(where, method, broken)
    return calls


@pytest.mark.parametrize(
    ("where", "method", "error"),
    [
        (Snapshot, "served_merged", Unforeseen("in a look")),
        (MergedServing, "set_state", Unforeseen("in a word")),
        (MergedServing, "set_state", StoreError("the database did not answer")),
    ],
)
async def test_merged_models_outlive_what_nobody_foresaw(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    where: type,
    method: str,
    error: Exception,
) -> None:
    calls = break_calls(monkeypatch, where, method, error, times=2)

    await serve_merged(served)

    assert len(calls) > 2
    assert mode(await served.chat(model="support@v1+merged")) == ("merged", "")


async def test_end_that_could_not_be_told_is_told_later(
    served: Served, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.engines.failing = 1
    error = StoreError("the database did not answer")
    # MAKING and STARTING are told, and what follows is not.
    whole, told = MergedServing.set_state, list[object]()

    def away_for_a_while(
        self: MergedServing, version: object, state: object, *rest: object
    ) -> None:
        told.append(state)
        if state is MergedState.FAILED and told.count(MergedState.FAILED) <= 2:
            raise error
        whole(self, version, state, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(MergedServing, "set_state", away_for_a_while)

    served.registry.merged.serve(SUPPORT, 1)

    await until(lambda: state(served) == "FAILED", 5)
    assert told.count(MergedState.FAILED) == 3


async def test_making_that_is_wanted_no_longer_is_ended(served: Served, bench: Bench) -> None:
    bench.may_make.clear()
    served.registry.merged.serve(SUPPORT, 1)
    await until(lambda: state(served) == "MAKING", 5)

    served.registry.merged.stop(SUPPORT, 1)

    await until(lambda: bool(bench.given_up), 5)
    await until(lambda: state(served) == "", 5)
    assert bench.engines.attempts == 0
