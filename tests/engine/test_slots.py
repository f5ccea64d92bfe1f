"""Slots change hands while other adapters are loaded: each answer is its own adapter's.

Six resident adapters of one tenant share three slots, so that most requests activate one, which
takes another's slot; meanwhile another tenant promotes one version after the other, and each is
placed into a slot in parts, between steps. Nothing of a placement may reach another adapter.
"""

import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import pytest

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from support.clients.both_transports import Answer, Client, GrpcClient, HttpClient, Refused
from support.engines.questions import ANSWER_TOKENS, CHURN_QUESTIONS, CHURN_WEIGHTS, Job
from support.server.real_server import Served
from support.waiting import wait_for

CLIENTS = 6
SETTLES_SECONDS = 60.0
RESIDENTS = {
    AdapterName("acme", f"resident-{number}"): CHURN_WEIGHTS[number] for number in range(6)
}
PROMOTED = AdapterName("globex", "promoted")


@dataclass(frozen=True, slots=True)
class Asked:
    client: Client
    adapter: AdapterName
    question: str

    def ask(self) -> Answer | None:
        """None where no slot came free in time, which a busy machine may bring about."""
        try:
            return self.client.chat(
                self.adapter.name,
                Job("", self.question).messages,
                temperature=0,
                max_tokens=ANSWER_TOKENS,
                return_token_ids=True,
            )
        except Refused as refusal:
            if refusal.code != "no_adapter_slot":
                raise
            return None


def is_served(registry: Registry, adapter: AdapterName) -> bool:
    champion = registry.versions.show(adapter).aliases["champion"]
    return champion.desired == champion.serving


@pytest.fixture
def registry(served: Served) -> Iterator[Registry]:
    with served.world.registry() as registry:
        for adapter, weights in RESIDENTS.items():
            registry.versions.publish(adapter, served.world.weights[weights])
            registry.aliases.set(adapter, "champion", 1)
        assert wait_for(
            lambda: all(is_served(registry, adapter) for adapter in RESIDENTS), SETTLES_SECONDS
        )
        yield registry
        for adapter in (*RESIDENTS, PROMOTED):
            registry.aliases.delete(adapter, "champion")
            for version in registry.versions.show(adapter).versions:
                registry.states.retire(adapter, version.version.number)


def promote_for_ever(served: Served, registry: Registry, ended: threading.Event) -> int:
    """Publishes and promotes until the end; how many were served."""
    for promotions, weights in enumerate(cycle(CHURN_WEIGHTS)):
        version = registry.versions.publish(PROMOTED, served.world.weights[weights])
        registry.aliases.set(PROMOTED, "champion", version.number)
        assert wait_for(lambda: ended.is_set() or is_served(registry, PROMOTED), SETTLES_SECONDS), (
            f"{version} was not promoted"
        )
        if ended.is_set():
            return promotions
    raise AssertionError("a cycle has no end")


def wrong_answers(
    asked: list[Asked], answers: list[Answer | None], reference: Mapping[Job, list[int]]
) -> list[str]:
    return [
        f"{request.adapter} asked {request.question!r} said {answer.text!r}"
        for request, answer in zip(asked, answers, strict=True)
        if answer is not None
        and answer.token_ids != reference[Job(RESIDENTS[request.adapter], request.question)]
    ]


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(100, marks=pytest.mark.timeout(600)),
        pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_placing_one_adapter_changes_no_answer_of_another_while_slots_change_hands(
    served: Served, registry: Registry, reference: dict[Job, list[int]], requests: int
) -> None:
    key = served.world.keys["acme"]
    clients: list[Client] = [HttpClient(served, key), GrpcClient(served, key)]
    chance = random.Random(requests)
    asked = [
        Asked(
            chance.choice(clients), chance.choice(tuple(RESIDENTS)), chance.choice(CHURN_QUESTIONS)
        )
        for _ in range(requests)
    ]
    ended = threading.Event()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        promoting = pool.submit(promote_for_ever, served, registry, ended)
        try:
            answers = list(pool.map(Asked.ask, asked))
        finally:
            ended.set()
        promotions = promoting.result()

    wrong = wrong_answers(asked, answers, reference)
    assert not wrong, f"{len(wrong)} of {requests}: {wrong[:3]}"
    assert promotions >= requests // 20, "hardly anything was placed meanwhile"
    assert answers.count(None) <= requests // 20, "slots are not shared"
    for request, answer in zip(asked, answers, strict=True):
        assert answer is None or answer.adapter == f"{request.adapter}@v1"
