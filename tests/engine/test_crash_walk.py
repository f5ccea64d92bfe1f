"""The real engine's core, and then the whole server, are killed in the middle of a promotion."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import AdapterState
from loragate.adapters.store import ArtifactStore
from support.clients.both_transports import Answer, GrpcClient, HttpClient, Refused
from support.engines.questions import ANSWER_TOKENS, CHURN_QUESTIONS, CHURN_WEIGHTS, Job
from support.server.real_server import START_SECONDS, Served, World, running
from support.waiting import wait_for

SUPPORT, ROUTER = AdapterName("acme", "support"), AdapterName("globex", "router")
OLD, NEW, ELSE = CHURN_WEIGHTS[:3]
SETTLES_SECONDS = 60.0


@pytest.fixture
def small_world(world: World, tmp_path: Path) -> World:
    """A home of its own, whose server may die: acme/support with two versions, globex/router."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/models").symlink_to(world.home.models)
    home = Home(tmp_path / "home").ensure()
    small = World(home, {}, {}, {}, world.weights)
    with small.registry() as registry:
        keys = {tenant: registry.tenants.create(tenant).key for tenant in ("acme", "globex")}
        for adapter, weights in ((SUPPORT, OLD), (SUPPORT, NEW), (ROUTER, ELSE)):
            registry.versions.publish(adapter, world.weights[weights])
            registry.aliases.set(adapter, "champion", 1)
    return World(home, keys, {}, {}, world.weights)


@dataclass(frozen=True, slots=True)
class Exactness:
    """Compares answers with the offline reference of the version that they name."""

    reference: dict[Job, list[int]]

    def check(self, answer: Answer, question: str) -> str:
        """Returns the version."""
        weights = {f"{SUPPORT}@v1": OLD, f"{SUPPORT}@v2": NEW, f"{ROUTER}@v1": ELSE}
        assert answer.token_ids == self.reference[Job(weights[answer.adapter], question)]
        return answer.adapter

    def ask(self, client: HttpClient | GrpcClient, model: str, question: str) -> str:
        messages = Job("", question).messages
        answer = client.chat(
            model, messages, temperature=0, max_tokens=ANSWER_TOKENS, return_token_ids=True
        )
        return self.check(answer, question)


@pytest.fixture
def exact(reference: dict[Job, list[int]]) -> Exactness:
    return Exactness(reference)


def load_of_another_adapter(
    server: Served, exact: Exactness, ended: threading.Event
) -> list[Refused]:
    """Asks until the end; each answer is exact, or refused in the way that is returned."""
    client, refusals = HttpClient(server, server.world.keys["globex"]), list[Refused]()
    while not ended.is_set():
        try:
            assert exact.ask(client, "router", CHURN_QUESTIONS[0]) == f"{ROUTER}@v1"
        except Refused as refused:
            refusals.append(refused)
            ended.wait(0.1)
    return refusals


def core_of(server: Served) -> psutil.Process:
    children = psutil.Process(server.process.pid).children(recursive=True)
    [core] = [child for child in children if child.name().startswith("VLLM::EngineCor")]
    return core


def state(world: World, number: int) -> AdapterState:
    with world.registry() as registry:
        versions = registry.versions.show(SUPPORT).versions
    return next(found.state for found in versions if found.version.number == number)


def serving(world: World) -> int:
    with world.registry() as registry:
        return registry.snapshot().resolve("acme", "support", "champion").number


def is_ready(server: Served) -> bool:
    return httpx.get(f"{server.url}/readyz").is_success


def check_answers(server: Served, exact: Exactness, number: int) -> None:
    for tenant, model, version in (
        ("acme", "support", f"{SUPPORT}@v{number}"),
        ("globex", "router", f"{ROUTER}@v1"),
    ):
        for client in (HttpClient, GrpcClient):
            asked = client(server, server.world.keys[tenant])
            for question in CHURN_QUESTIONS:
                assert exact.ask(asked, model, question) == version


@pytest.fixture
def first_server(small_world: World, tmp_path: Path) -> Iterator[Served]:
    with running(small_world, tmp_path / "first.log") as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_promotion_survives_the_death_of_the_core_and_a_rollback_that_of_the_server(
    small_world: World, first_server: Served, exact: Exactness, tmp_path: Path
) -> None:
    core, ended = core_of(first_server), threading.Event()
    with ThreadPoolExecutor(2) as pool, small_world.registry() as registry:
        under_load = [
            pool.submit(load_of_another_adapter, first_server, exact, ended) for _ in range(2)
        ]
        try:
            registry.aliases.set(SUPPORT, "champion", 2)
            assert wait_for(lambda: state(small_world, 2) is AdapterState.LOADING, 10)
            os.kill(core.pid, signal.SIGKILL)

            assert wait_for(lambda: not is_ready(first_server), 1)
            refused = httpx.post(
                f"{first_server.url}/v1/chat/completions",
                json={"model": "support", "messages": Job("", "hello").messages},
                headers={"authorization": f"Bearer {small_world.keys['acme']}"},
            )
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
            assert int(refused.headers["retry-after"]) >= 1
            assert serving(small_world) == 1

            assert wait_for(lambda: is_ready(first_server), START_SECONDS)
            assert wait_for(lambda: serving(small_world) == 2, SETTLES_SECONDS)
            check_answers(first_server, exact, 2)
        finally:
            ended.set()
        refusals = [refusal for load in under_load for refusal in load.result()]
        assert {(refusal.status, refusal.code) for refusal in refusals} == {(503, "engine_dead")}

        assert wait_for(lambda: state(small_world, 1) is AdapterState.PUBLISHED, SETTLES_SECONDS)
        core = core_of(first_server)
        registry.aliases.rollback(SUPPORT)
        assert wait_for(lambda: state(small_world, 1) is AdapterState.LOADING, 10)
        first_server.process.kill()
        first_server.process.wait()
    psutil.wait_procs([core], timeout=10)
    assert not core.is_running(), "the core outlives its server, and holds the model's memory"
    assert serving(small_world) in (1, 2)

    with running(small_world, tmp_path / "second.log") as second_server:
        assert serving(small_world) == 1
        check_answers(second_server, exact, 1)
        assert {state(small_world, number) for number in (1, 2)} <= {
            AdapterState.PUBLISHED,
            AdapterState.READY,
        }
    store = ArtifactStore(small_world.home.artifacts)
    with small_world.registry() as registry:
        for version in registry.snapshot().versions():
            store.verify(version.digest)
