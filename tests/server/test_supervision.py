import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.names import AdapterVersion
from loragate.server.admission.fair_queue import FairQueue, QueueBounds
from loragate.server.concurrency.retries import Backoff
from loragate.server.core import Route, SamplingParams
from loragate.server.engine import supervision
from loragate.server.engine.protocol import EngineRequest, LoadedAdapter
from loragate.server.engine.supervision import EngineState, SupervisedEngine
from loragate.server.errors import EngineDead
from loragate.server.residency.residency import Residency
from loragate.v1 import inference_pb2 as pb
from loragate.v1 import inference_pb2_grpc
from support.clock import Clock
from support.engines.echo_engine import DirectLoader, EchoEngine, EchoEngines
from support.server.small_server import Furnished, Served, on_a_socket, serve
from support.waiting import until

QUICK = Backoff(first=0.0)
V1 = AdapterVersion("acme", "support", 1, "digest-1", 1)
SUPPORT = LoadedAdapter(V1, Path("digest-1"))
ROUTE = Route("acme", V1)
PINNED = "support@v1"


def supervised(
    engines: EchoEngines, backoff: Backoff = QUICK
) -> AbstractAsyncContextManager[SupervisedEngine]:
    return SupervisedEngine.running(engines.start, backoff=backoff)


def request(adapter: LoadedAdapter | None = None, tokens: int = 4) -> EngineRequest:
    return EngineRequest("1", range(tokens), SamplingParams(max_tokens=tokens), adapter)


async def answer(engine: SupervisedEngine, asked: EngineRequest) -> str:
    async with aclosing(engine.generate(asked)) as deltas:
        return "".join([delta.text async for delta in deltas])


async def restarted(engine: SupervisedEngine, generation: int = 2) -> None:
    await until(lambda: engine.generation == generation and engine.is_alive)


async def test_it_answers_as_the_engine_that_it_holds() -> None:
    engines = EchoEngines()
    async with supervised(engines) as engine:
        await engine.load(SUPPORT)
        assert await answer(engine, request(SUPPORT)) == " t0 t1 t2 t3"
        await engine.unload(SUPPORT)
        assert (engine.state, engine.generation, engine.model.name) == ("alive", 1, "tiny")
    assert engines.last.unloads == ["acme/support@v1"]
    assert engines.closed == engines.made


async def test_a_first_start_that_fails_is_the_callers_to_know() -> None:
    engines = EchoEngines(failing=1)
    with pytest.raises(RuntimeError, match="no memory"):
        async with supervised(engines):
            pytest.fail("there is no engine")
    assert engines.attempts == 1


async def test_a_death_is_noticed_within_a_second_and_the_next_engine_is_empty() -> None:
    engines = EchoEngines()
    async with supervised(engines) as engine:
        await engine.load(SUPPORT)
        engines.last.is_alive = False
        assert engine.state == "restarting"
        await restarted(engine)
        assert engines.closed == engines.made[:1]
        assert engines.last.loaded == {}
        assert await answer(engine, request()) == " t0 t1 t2 t3"


async def test_while_the_engine_is_down_calls_fail_with_a_hint_and_the_model_stays() -> None:
    engines = EchoEngines()
    async with supervised(engines, Backoff(first=20.0)) as engine:
        engines.last.is_alive = False
        await until(lambda: len(engines.closed) == 1)
        for call in (answer(engine, request()), engine.load(SUPPORT)):
            with pytest.raises(EngineDead, match="restarts by itself") as caught:
                await call
            assert 15 < (caught.value.retry_after_seconds or 0) <= 20.1
        assert engine.model.name == "tiny"
        assert not engine.is_alive


async def test_requests_in_flight_fail_and_bring_the_news() -> None:
    engines = EchoEngines(pace_seconds=0.02)
    async with supervised(engines) as engine:
        asked = [asyncio.create_task(answer(engine, request(tokens=200))) for _ in range(3)]
        await until(lambda: bool(engines.last.running))
        engines.last.is_alive = False
        for result in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(result, EngineDead)
            assert result.retry_after_seconds
        await restarted(engine)


async def test_a_load_that_the_engine_dies_of_ends() -> None:
    engines = EchoEngines(pace_seconds=0.05)
    async with supervised(engines) as engine:
        loading = asyncio.create_task(engine.load(SUPPORT))
        await asyncio.sleep(0)
        engines.last.is_alive = False  # from here on the fake never answers, as vLLM does not
        with pytest.raises(EngineDead, match=r"while it loaded acme/support@v1"):
            await asyncio.wait_for(loading, 1)
        await restarted(engine)
        assert engines.last.loaded == {}


async def test_an_unload_that_meets_a_dead_engine_is_done() -> None:
    engines = EchoEngines()
    async with supervised(engines) as engine:
        await engine.load(SUPPORT)
        engines.last.is_alive = False
        await asyncio.wait_for(engine.unload(SUPPORT), 1)
        await restarted(engine)
        await engine.unload(SUPPORT)
        assert engines.last.unloads == []


async def test_a_request_for_weights_of_the_last_engine_does_not_reach_the_next() -> None:
    engines = EchoEngines()
    async with supervised(engines) as engine:
        await engine.load(SUPPORT)
        engines.last.is_alive = False
        await restarted(engine)
        with pytest.raises(EngineDead, match="no longer holds"):
            await answer(engine, request(SUPPORT))
        assert engines.last.seen == []


async def test_those_who_listen_hear_of_each_death_and_return() -> None:
    engines = EchoEngines()
    heard: list[EngineState | str] = []

    async def tell(state: EngineState) -> None:
        heard.append(state)

    async with supervised(engines) as engine:
        engine.on_change(tell)
        engine.on_restart(lambda: heard.append("forget"))
        for generation in (2, 3):
            engines.last.is_alive = False
            await restarted(engine, generation)
        await until(lambda: len(heard) == 6)
    assert heard == ["restarting", "forget", "alive"] * 2


async def test_starts_that_fail_are_repeated_ever_more_slowly_until_a_life_was_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    engines = EchoEngines()
    running = SupervisedEngine.running(engines.start, clock=clock, sleep=clock.sleep)
    async with running as engine:
        clock.now += 59
        engines.failing = 8
        with caplog.at_level(logging.WARNING):
            engines.last.is_alive = False
            await restarted(engine)
        assert clock.slept == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
        assert caplog.text.count("did not start") == 8
        clock.slept.clear()
        clock.now += 59
        engines.last.is_alive = False
        await restarted(engine, 3)
        assert clock.slept == [30]
        clock.now += 60
        engines.last.is_alive = False
        await restarted(engine, 4)
        assert clock.slept == [30, 0.5]


async def test_an_engine_that_cannot_be_closed_does_not_stop_the_next() -> None:
    engines = EchoEngines()

    @asynccontextmanager
    async def start() -> AsyncIterator[EchoEngine]:
        async with engines.start() as engine:
            yield engine
        raise OSError("The socket is gone.")

    async with SupervisedEngine.running(start, backoff=QUICK) as engine:
        engines.last.is_alive = False
        await restarted(engine)


async def test_an_engine_that_nobody_supervises_any_more_is_dead() -> None:
    engines = EchoEngines()

    async def fail(seconds: float) -> None:
        raise ValueError("the clock is broken")

    with pytest.raises(ValueError, match="broken"):  # noqa: PT012 - raised on leaving
        async with SupervisedEngine.running(engines.start, backoff=QUICK, sleep=fail) as engine:
            engines.last.is_alive = False
            await until(lambda: engine.state == "dead")
            assert not engine.is_alive
    assert engines.closed == engines.made


# ---- with residency


async def test_residents_are_loaded_again_on_demand_and_old_leases_end_as_ever() -> None:
    engines = EchoEngines()
    async with supervised(engines) as engine:
        queue = FairQueue(permits=9, slots=2, bounds=QueueBounds(9, 9, 1), turn_seconds=0)
        pool = Residency(DirectLoader(engine), queue, max_resident=4)
        engine.on_restart(pool.forget_all)
        async with pool.acquire(ROUTE):
            engines.last.is_alive = False
            await restarted(engine)
            assert pool.resident == ()
            async with pool.acquire(ROUTE) as adapter:
                assert await answer(engine, request(adapter)) == " t0 t1 t2 t3"
        assert queue.slots_in_use == 0
        assert pool.resident == (V1,)
        assert [each.loads for each in engines.made] == [["acme/support@v1"]] * 2


# ---- over the wire


@pytest.fixture
def engines() -> EchoEngines:
    return EchoEngines(pace_seconds=0.002)


@pytest_asyncio.fixture
async def served(
    furnished: Furnished, tmp_path: Path, base: BaseModel, engines: EchoEngines
) -> AsyncIterator[Served]:
    nobody = EchoEngine()
    home = tmp_path / "served"
    async with serve(furnished, home, base, nobody, start=engines.start) as served:
        yield served


async def probe(served: Served) -> tuple[int, int]:
    live, ready = [await served.client.get(path) for path in ("/livez", "/readyz")]
    return live.status_code, ready.status_code


async def test_http_says_503_and_when_to_come_again_until_the_engine_is_back(
    served: Served, engines: EchoEngines
) -> None:
    assert (await served.chat(model=PINNED)).status_code == 200
    killed = time.monotonic()
    engines.last.is_alive = False
    refused = await served.chat(model=PINNED)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_dead"
    assert int(refused.headers["retry-after"]) >= 1
    assert await probe(served) == (200, 503)
    assert time.monotonic() - killed < 1
    await until(lambda: len(engines.made) == 2, 5)
    assert await probe(served) == (200, 200)
    assert (await served.chat(model=PINNED)).status_code == 200
    assert engines.last.loads == ["acme/support@v1"]
    assert "loragate_engine_starts 2.0" in (await served.client.get("/metrics")).text


async def test_a_request_in_flight_is_answered_with_503(
    served: Served, engines: EchoEngines
) -> None:
    asking = asyncio.create_task(served.chat("hello " * 20, PINNED, max_tokens=100))
    await until(lambda: bool(engines.last.running))
    engines.last.is_alive = False
    reply = await asyncio.wait_for(asking, 1)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
    assert "retry-after" in reply.headers


async def test_grpc_says_unavailable_and_health_follows(
    served: Served, engines: EchoEngines
) -> None:
    states = health_pb2.HealthCheckResponse
    metadata = (("authorization", served.auth["authorization"]),)
    async with (
        on_a_socket(served),
        served.channel() as channel,
    ):
        stub = inference_pb2_grpc.InferenceStub(channel)
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        told = watch(health_pb2.HealthCheckRequest())
        assert (await anext(aiter(told))).status == states.SERVING
        asked = pb.CompletionRequest(model="base", prompts=[pb.Prompt(text="abc")])
        engines.last.is_alive = False
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Complete(asked, metadata=metadata)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "retry-after-ms" in dict(refused.value.trailing_metadata() or ())
        async with asyncio.timeout(5):
            assert (await anext(aiter(told))).status == states.NOT_SERVING
            assert (await anext(aiter(told))).status == states.SERVING
        assert (await stub.Complete(asked, metadata=metadata)).choices
        told.cancel()


async def test_what_was_resident_is_loaded_again_though_nobody_asks(
    served: Served, engines: EchoEngines
) -> None:
    assert (await served.chat(model=PINNED)).status_code == 200
    engines.last.is_alive = False
    await until(lambda: len(engines.made) == 2, 5)
    await until(lambda: engines.last.loads == ["acme/support@v1"], 5)


async def test_listeners_that_fail_are_logged_and_stop_neither_the_engine_nor_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engines = EchoEngines()
    heard: list[str] = []

    def fail() -> None:
        raise KeyError("a listener's mistake")

    async def fail_by(error: BaseException, state: EngineState) -> None:
        raise error

    async def hear(state: EngineState) -> None:
        heard.append(state)

    async with supervised(engines) as engine:
        engine.on_restart(fail)
        engine.on_restart(lambda: heard.append("forgotten"))
        for error in (RuntimeError("no health"), TimeoutError(), asyncio.CancelledError()):
            engine.on_change(partial(fail_by, error))
        engine.on_change(hear)
        for generation in (2, 3):
            engines.last.is_alive = False
            await restarted(engine, generation)
            await until(lambda: heard[-1:] == ["alive"])
        assert heard == ["restarting", "forgotten", "alive"] * 2
        assert engine.state == "alive"
    assert "a listener's mistake" in caplog.text
    assert "no health" in caplog.text


async def test_a_listener_that_hangs_holds_the_next_engine_up_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervision, "_TELL_SECONDS", 0.01)
    engines = EchoEngines()

    async def hang(state: EngineState) -> None:
        await asyncio.Event().wait()

    async with supervised(engines) as engine:
        engine.on_change(hang)
        engines.last.is_alive = False
        await restarted(engine)
        assert engine.state == "alive"
