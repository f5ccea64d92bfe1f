"""Versions that come and go under load: each answer is, token for token, that of one version.

Eight adapters with two versions each share three slots and four places in memory, their champions
move all the time, and half of the requests name a version. Every folder is the first version of one
adapter and the second of another, so that one directory is in the engine under two ids as well.
"""

import random
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import httpx
import pytest

from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from support.clients.both_transports import Answer, Client, GrpcClient, HttpClient
from support.engines.questions import ANSWER_TOKENS, CHURN_QUESTIONS, CHURN_WEIGHTS, Job
from support.server.real_server import Served
from support.waiting import wait_for

AT_ONCE = 12
APART = 3  # a folder's two adapters belong to different tenants
SETTLES_SECONDS = 60.0
ADAPTERS = tuple(
    AdapterName("acme" if number % 2 else "globex", f"churn-{number}")
    for number in range(len(CHURN_WEIGHTS))
)


@dataclass(frozen=True, slots=True)
class Churn:
    served: Served
    registry: Registry
    weights: Mapping[str, str]  # by version, as the header names it

    def is_settled(self, adapter: AdapterName) -> bool:
        champion = self.registry.versions.show(adapter).aliases["champion"]
        return champion.desired == champion.serving

    def loads(self) -> int:
        """How often the server has loaded a version, any version."""
        text = httpx.get(f"{self.served.url}/metrics").text
        found = re.search(r"^loragate_adapter_load_seconds_count (\S+)$", text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))


@pytest.fixture
def churn(served: Served) -> Iterator[Churn]:
    weights: dict[str, str] = {}
    with served.world.registry() as registry:
        for number, adapter in enumerate(ADAPTERS):
            for shift in (0, APART):
                name = CHURN_WEIGHTS[(number + shift) % len(CHURN_WEIGHTS)]
                weights[str(registry.versions.publish(adapter, served.world.weights[name]))] = name
            registry.aliases.set(adapter, "champion", 1)
        churn = Churn(served, registry, weights)
        assert wait_for(lambda: all(map(churn.is_settled, ADAPTERS)), SETTLES_SECONDS)
        yield churn
        for adapter in ADAPTERS:
            registry.aliases.delete(adapter, "champion")
            for number in (1, 2):
                registry.states.retire(adapter, number)


@dataclass(frozen=True, slots=True)
class Asked:
    client: Client
    adapter: AdapterName
    selector: str  # "", "@v1" or "@v2"
    question: str
    streamed: bool

    def ask(self) -> Answer:
        ask = self.client.stream if self.streamed else self.client.chat
        return ask(
            f"{self.adapter.name}{self.selector}",
            Job("", self.question).messages,
            temperature=0,
            max_tokens=ANSWER_TOKENS,
            return_token_ids=True,
        )


def choose(served: Served, requests: int) -> list[Asked]:
    clients: dict[str, list[Client]] = {
        tenant: [HttpClient(served, key), GrpcClient(served, key)]
        for tenant, key in served.world.keys.items()
    }
    chance = random.Random(requests)
    wanted: list[Asked] = []
    for _ in range(requests):
        adapter = chance.choice(ADAPTERS)
        wanted.append(
            Asked(
                chance.choice(clients[adapter.tenant]),
                adapter,
                chance.choice(("", "", "@v1", "@v2")),
                chance.choice(CHURN_QUESTIONS),
                chance.random() < 0.5,
            )
        )
    return wanted


def move_champions(churn: Churn, ended: threading.Event) -> int:
    """Promotes and rolls back one adapter after the other until the end; how many came true."""
    moves = 0
    for adapter in cycle(ADAPTERS):
        for is_promotion in (True, False):
            if is_promotion:
                churn.registry.aliases.set(adapter, "champion", 2)
            else:
                churn.registry.aliases.rollback(adapter)
            is_over = partial(_is_over, churn, adapter, ended)
            assert wait_for(is_over, SETTLES_SECONDS), f"{adapter} did not move"
            if ended.is_set():
                return moves
            moves += 1
    raise AssertionError("a cycle has no end")


def _is_over(churn: Churn, adapter: AdapterName, ended: threading.Event) -> bool:
    return ended.is_set() or churn.is_settled(adapter)


@pytest.mark.parametrize(
    "requests", [pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_answers_are_of_the_version_that_they_name_while_versions_come_and_go(
    churn: Churn, reference: dict[Job, list[int]], requests: int
) -> None:
    wanted = choose(churn.served, requests)
    loads_before, ended = churn.loads(), threading.Event()
    with ThreadPoolExecutor(AT_ONCE + 1) as pool:
        moving = pool.submit(move_champions, churn, ended)
        try:
            answers = list(pool.map(Asked.ask, wanted))
        finally:
            ended.set()  # else the pool waits for the moves for ever
        moves = moving.result()

    for asked, answer in zip(wanted, answers, strict=True):
        how = f"{asked} answered by {answer.adapter}"
        job = Job(churn.weights[answer.adapter], asked.question)
        assert answer.token_ids == reference[job], how
        assert answer.adapter.startswith(f"{asked.adapter}{asked.selector or '@'}"), how
    assert moves >= requests // 30, "the champions did not move"
    assert churn.loads() - loads_before > requests // 4, "hardly anything was loaded"


def test_references_tell_the_weights_apart(reference: dict[Job, list[int]]) -> None:
    # Two may well agree on one question, but no two on all.
    said = {
        tuple(tuple(reference[Job(weights, question)]) for question in CHURN_QUESTIONS)
        for weights in CHURN_WEIGHTS
    }
    assert len(said) == len(CHURN_WEIGHTS)
