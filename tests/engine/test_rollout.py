"""Rollouts on the real engine, under load: a wrong version goes back by itself, a good one all the
way, and no request fails meanwhile.
"""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from loragate.adapters.names import AdapterName
from support.models.random_adapters import shuffle_adapter
from support.server.real_server import Served
from support.waiting import wait_for

ROLLED = AdapterName("acme", "rolled")
CLIENTS = 6
QUESTION = "Which animal says woof?"
THUMBS = "thumbs>=champion-30%"
UNDER_WAY = {"RUNNING", "INCONCLUSIVE"}


@dataclass
class Users:
    """Ask all the time, each as somebody else, and like the answer that they have always got."""

    served: Served
    liked: str
    numbers: Iterator[int] = field(default_factory=count)
    failures: list[str] = field(default_factory=list)
    arms: set[str] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)

    def ask_until_told(self) -> None:
        key = self.served.world.keys["acme"]
        with _client(self.served, key) as client:
            while not self.stopping.is_set():
                reply = _ask(client, f"user-{next(self.numbers)}")
                if not reply.is_success:
                    self.failures.append(reply.text)
                    continue
                self.arms.add(reply.headers.get("x-loragate-arm", ""))
                said = {
                    "request_id": reply.headers["x-request-id"],
                    "metric": "thumbs",
                    "value": int(_text(reply) == self.liked),
                }
                heard = client.post("/v1/feedback", json=said)
                if not heard.is_success:
                    self.failures.append(heard.text)


@pytest.fixture(scope="module")
def rolled(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """v1 is the champion; v2 says other things, v3 the same."""
    folder = tmp_path_factory.mktemp("rolled")
    source = served.world.folders["globex/odd"]
    first = shuffle_adapter(folder / "v1", source, seed=11)
    wrong = served.world.folders["acme/loud"]
    with served.world.registry() as registry:
        for version in (first, wrong, _same_in_another_file(first, folder / "v3")):
            registry.versions.publish(ROLLED, version)
        registry.aliases.set(ROLLED, "champion", 1)
        assert wait_for(lambda: _serves(served, 1), 60)
    return served


def test_version_that_answers_wrongly_is_rolled_back_by_itself(rolled: Served) -> None:
    _start(rolled, to="v2", steps=[50, 100], gates=[THUMBS, "error_rate<30%"])
    with _users(rolled) as users:
        # While too little is known it is inconclusive, and goes on by itself.
        assert wait_for(lambda: _trial(rolled)["state"] not in UNDER_WAY, 60), _trial(rolled)

    trial = _trial(rolled)
    assert trial["state"] == "ROLLED_BACK", trial
    assert trial["reason"].startswith(THUMBS)
    assert users.arms >= {"champion", "challenger"}
    assert users.failures == []
    assert _serves(rolled, 1)


def test_version_that_answers_as_well_reaches_everybody(rolled: Served) -> None:
    _start(rolled, to="v3", steps=[50, 100], gates=[THUMBS, "error_rate<30%"])
    with _users(rolled) as users:
        assert wait_for(lambda: _trial(rolled)["state"] == "PASSED", 60), _trial(rolled)
        assert wait_for(lambda: _serves(rolled, 3), 10)

    assert users.arms >= {"champion", "challenger"}
    assert users.failures == []


@contextmanager
def _users(served: Served) -> Iterator[Users]:
    with _client(served, served.world.keys["acme"]) as client:
        users = Users(served, _text(_ask(client, "first", "rolled@v1")))
    with ThreadPoolExecutor(CLIENTS) as threads:
        asking = [threads.submit(users.ask_until_told) for _ in range(CLIENTS)]
        try:
            yield users
        finally:
            users.stopping.set()
    for each in asking:
        each.result()


def _ask(client: httpx.Client, user: str, model: str = "rolled") -> httpx.Response:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "user": user,
        "max_tokens": 3,
        "temperature": 0,
    }
    return client.post("/v1/chat/completions", json=body)


def _text(reply: httpx.Response) -> str:
    text: str = reply.json()["choices"][0]["message"]["content"]
    return text


def _start(served: Served, **body: Any) -> None:
    with _admin(served) as admin:
        begun = admin.post("/rollouts", json={"every_seconds": 1, **body})
    assert begun.status_code == 201, begun.text


def _trial(served: Served) -> dict[str, Any]:
    with served.world.registry() as registry:
        status = registry.trials.list("acme")[0].status
    return {"state": status.state, "reason": status.reason}


def _serves(served: Served, number: int) -> bool:
    with served.world.registry() as registry:
        serving = registry.versions.show(ROLLED).aliases["champion"].serving
    return serving is not None and serving.number == number


def _admin(served: Served) -> httpx.Client:
    url = f"{served.url}/admin/v1/tenants/{ROLLED.tenant}/adapters/{ROLLED.name}"
    return _client(served, served.world.home.admin_key({}), url)


def _client(served: Served, key: str, url: str | None = None) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url or served.url, headers=headers, timeout=60)


def _same_in_another_file(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "made": "again"})
    return folder
