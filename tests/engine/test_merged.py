"""A merged model says what its version says, by an engine that may die without anybody's harm."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import httpx
import psutil
import pytest

from support.clients.both_transports import Answer, GrpcClient, HttpClient
from support.engines.questions import ANSWER_TOKENS, QUESTIONS, Job
from support.server.real_server import Served
from support.waiting import wait_for

START_SECONDS = 240
MODEL = "acme/support"


def loragate(served: Served, command: str) -> str:
    """Asks the running server, as an operator elsewhere would."""
    key = served.world.home.admin_key({})
    environment = os.environ | {"LORAGATE_URL": served.url, "LORAGATE_ADMIN_KEY": key}
    done = subprocess.run(
        [sys.executable, "-m", "loragate.server.cli.main", *command.split()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cores(served: Served) -> set[int]:
    """The processes that hold a model."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    return {child.pid for child in children if child.memory_info().rss > 300 * 2**20}


@pytest.fixture(scope="module")
def merged_core(served: Served) -> Iterator[int]:
    """Its process, with the version's merged model, which the server has to make first."""
    before = cores(served)
    loragate(served, f"adapter merged {MODEL}@v1 --wait --timeout {START_SECONDS}")
    [core] = cores(served) - before
    yield core
    loragate(served, f"adapter merged {MODEL}@v1 --stop")
    assert wait_for(lambda: cores(served) <= before, 20)


@pytest.fixture
def client(served: Served) -> HttpClient:
    return HttpClient(served, served.world.keys["acme"])


def ask(client: HttpClient | GrpcClient, question: str, model: str = "support@v1+merged") -> Answer:
    messages = Job(MODEL, question).messages
    return client.chat(
        model, messages, temperature=0, max_tokens=ANSWER_TOKENS, return_token_ids=True
    )


def test_merged_answers_equal_the_version_s_token_for_token(
    served: Served, merged_core: int, reference: dict[Job, list[int]], client: HttpClient
) -> None:
    clients = (client, GrpcClient(served, served.world.keys["acme"]))
    wanted = list(product(clients, QUESTIONS))
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(pool.map(lambda one: ask(*one), wanted))

    for (_, question), answer in zip(wanted, answers, strict=True):
        assert (answer.mode, answer.adapter) == ("merged", f"{MODEL}@v1")
        assert answer.token_ids == reference[Job(MODEL, question)], question


def test_engines_are_listed_with_their_memory(served: Served, merged_core: int) -> None:
    headers = {"authorization": f"Bearer {served.world.home.admin_key({})}"}
    engines = httpx.get(f"{served.url}/admin/v1/engines", headers=headers, timeout=20).json()

    assert [engine["state"] for engine in engines] == ["alive", "alive"]
    assert engines[1]["name"] == f"{MODEL}@v1+merged"
    for engine in engines:
        assert engine["weights_bytes"] < engine["memory_bytes"] < engine["budget_bytes"]


def test_killed_core_sends_its_traffic_to_the_version_and_comes_back(
    served: Served, merged_core: int, reference: dict[Job, list[int]], client: HttpClient
) -> None:
    question = QUESTIONS[0]
    os.kill(merged_core, signal.SIGKILL)
    answer = ask(client, question)

    # Not after the wait for another core.
    assert answer.mode == "unmerged"
    assert answer.token_ids == reference[Job(MODEL, question)]
    assert httpx.get(f"{served.url}/readyz").is_success
    assert ask(client, question, "base").adapter == "base"

    assert wait_for(lambda: ask(client, question).mode == "merged", START_SECONDS)
    assert ask(client, question).token_ids == reference[Job(MODEL, question)]
