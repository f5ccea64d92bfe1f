"""Answers are, token for token, those of vLLM's own offline engine, whoever else is served."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

from support.clients.both_transports import Answer, Client, GrpcClient, HttpClient, Refused
from support.engines.questions import ANSWER_TOKENS, QUESTIONS, Job
from support.server.real_server import ADAPTERS, Served

REQUESTS = 160
STREAMS = 16


def _ask(client: Client, model: str, job: Job, *, streamed: bool) -> Answer:
    ask = client.stream if streamed else client.chat
    return ask(model, job.messages, temperature=0, max_tokens=ANSWER_TOKENS, return_token_ids=True)


def test_references_tell_the_models_apart(reference: dict[Job, list[int]]) -> None:
    models = ("base", *ADAPTERS)
    telling = [q for q in QUESTIONS if len({tuple(reference[Job(m, q)]) for m in models}) == 5]
    assert len(telling) > len(QUESTIONS) / 2


def test_mixed_requests_of_two_tenants_equal_their_own_adapters_reference(
    served: Served, reference: dict[Job, list[int]]
) -> None:
    clients: dict[str, list[Client]] = {
        tenant: [HttpClient(served, key), GrpcClient(served, key)]
        for tenant, key in served.world.keys.items()
    }
    chance = random.Random(7)
    wanted: list[tuple[Client, str, Job, bool]] = []
    for model, question in product(("base", *ADAPTERS), QUESTIONS):
        tenant, _, name = model.rpartition("/")
        own = clients[tenant or chance.choice(("acme", "globex"))]
        for client, streamed in product(own, (False, True)):
            wanted.append((client, name, Job(model, question), streamed))
    wanted += chance.choices(wanted, k=REQUESTS - len(wanted))
    chance.shuffle(wanted)

    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(lambda one: _ask(one[0], one[1], one[2], streamed=one[3]), wanted))

    for (client, _, job, streamed), answer in zip(wanted, answers, strict=True):
        how = f"{job} over {client.transport}, streamed: {streamed}"
        assert answer.token_ids == reference[job], how
        expected = "base" if job.model == "base" else str(served.world.versions[job.model])
        assert answer.adapter == expected, how
        assert answer.completion_tokens == len(answer.token_ids), how


@pytest.mark.parametrize("transport", [HttpClient, GrpcClient])
def test_another_tenants_adapter_is_not_found(
    served: Served, transport: type[HttpClient] | type[GrpcClient]
) -> None:
    client = transport(served, served.world.keys["acme"])
    refusals = []
    for model in ("router", "globex/router", "nothing-like-it"):
        with pytest.raises(Refused) as caught:
            client.chat(model, Job("", "hello").messages, max_tokens=1)
        refusals.append((caught.value.status, caught.value.code))
    assert len(set(refusals)) == 1
    assert refusals[0][1] == "model_not_found"
