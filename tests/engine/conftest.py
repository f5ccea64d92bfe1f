"""The real thing, once a session: vLLM's offline answers for reference, then a served engine.

Both run in float32, where the company in a batch changes no token, so answers can be compared token
for token. The server is a process of its own, started as a user would.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.engines.questions import CHURN_QUESTIONS, CHURN_WEIGHTS, QUESTIONS, Job
from support.models.random_adapters import make_random_adapter, shuffle_adapter
from support.server.real_server import (
    ADAPTERS,
    ROOT,
    START_SECONDS,
    Served,
    World,
    starting,
    wait_until_started,
)

MODEL = "smollm2-135m-instruct"
# What makes the offline engine no other, but sooner done.
OFFLINE = {
    # In one process: of three, each imports vLLM for some twenty seconds, two then poll each other,
    # and the one that computes gets a core less.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # For each product with adapters vLLM copies the matrices of every token's adapter. Of memory
    # that the C library gives back each time, the kernel clears each page again each time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # As the server sets them.
    "GOMP_SPINCOUNT": "100000",
    "TORCHDYNAMO_DISABLE": "1",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("home")
    prepared = Home.from_environment().models
    if not (prepared / MODEL).is_dir():
        pytest.fail("run 'loragate model prepare' first; 'make test' does")
    (root / "models").symlink_to(prepared)
    home = Home(root).ensure()
    adapters = tmp_path_factory.mktemp("adapters")
    folders = {
        "acme/support": ROOT / "examples/adapters/acme-support",
        "globex/router": ROOT / "examples/adapters/globex-router",
        "acme/loud": make_random_adapter(adapters / "loud", prepared / MODEL, rank=16, seed=1),
        "globex/odd": make_random_adapter(adapters / "odd", prepared / MODEL, rank=8, seed=2),
    }
    weights = {
        name: shuffle_adapter(adapters / name, folders["globex/odd"], seed=seed)
        for seed, name in enumerate(CHURN_WEIGHTS)
    }
    keys: dict[str, str] = {}
    versions: dict[str, AdapterVersion] = {}
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        for tenant in ("acme", "globex"):
            keys[tenant] = registry.tenants.create(tenant).key
        for name, folder in folders.items():
            adapter = AdapterName.parse(name)
            versions[name] = registry.versions.publish(adapter, folder)
            registry.aliases.set(adapter, "champion", versions[name].number)
    return World(home, keys, versions, folders, weights)


@pytest.fixture(scope="session")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[Job, list[int]]:
    """What vLLM's own offline `LLM` answers, greedily: token ids by job."""
    jobs = [Job(model, question) for model in ("base", *ADAPTERS) for question in QUESTIONS]
    jobs += [Job(name, question) for name in world.weights for question in CHURN_QUESTIONS]
    work = tmp_path_factory.mktemp("reference")
    asked, answered = work / "jobs.json", work / "answers.json"
    paths = {name: str(folder) for name, folder in {**world.folders, **world.weights}.items()}
    asked.write_text(json.dumps({"jobs": [[j.model, j.question] for j in jobs], "paths": paths}))
    command = [sys.executable, "-m", "support.engines.offline_reference", world.home.models / MODEL]
    done = subprocess.run(
        [*command, asked, answered],
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(jobs, json.loads(answered.read_text()), strict=True))


@pytest.fixture(scope="session")
def launched(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that starts: for most of that time it imports, on one core."""
    with starting(world, tmp_path_factory.mktemp("server") / "serve.log") as server:
        yield server


@pytest.fixture(scope="session")
def served(launched: Served, reference: dict[Job, list[int]]) -> Iterator[Served]:
    # Starts while the reference is computed; the two never answer beside each other.
    wait_until_started(launched)
    yield launched
    launched.process.send_signal(signal.SIGTERM)
    assert launched.process.wait(60) == 0, launched.log.read_text()[-4000:]
