"""Stock vLLM's own OpenAI server, llama.cpp's, and loragate, each started as a user would, set up
alike.
"""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from bench.streams import Door
from loadtests.ports import free_port
from loragate.adapters.format.ready_file import ReadyForm
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore

MODEL = "smollm2-135m-instruct"
MAX_LORAS = 8
MAX_CPU_LORAS = 64
MAX_MODEL_LEN = 2048
MAX_RANK = 16
KV_CACHE_GIB = 1
# A query in the place of `Registry.show`, which takes a hundred times as long: whoever looks has
# the same two cores.
_SERVING = """
    SELECT versions.number FROM aliases
    JOIN adapters ON adapters.id = aliases.adapter_id
    JOIN versions ON versions.id = aliases.serving_id AND versions.id = aliases.desired_id
    WHERE adapters.tenant_id = ? AND aliases.name = 'champion'
"""
_START_SECONDS = 600.0
_STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What both servers are started for."""

    max_loras: int = MAX_LORAS
    max_cpu_loras: int = MAX_CPU_LORAS
    max_rank: int = MAX_RANK


USUAL = Bounds()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    name: str
    url: str
    grpc: str  # host and port; empty where there is none
    process: subprocess.Popen[bytes]
    doors: Mapping[str, Door]  # by adapter, and "base"
    started: float  # by `time.perf_counter`
    seconds_to_healthy: float
    admin: Mapping[str, str]  # headers
    log: Path
    database: sqlite3.Connection | None = None  # loragate's registry

    def memory_mib(self) -> float:
        """Of the process and all below it, what they share counted once (PSS)."""
        root = psutil.Process(self.process.pid)
        whole = 0.0
        for each in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                whole += each.memory_full_info().pss / 2**20
        return whole


def model_path() -> Path:
    path = Home.from_environment().models / MODEL
    if not path.is_dir():
        raise SystemExit("there is no base model; run 'loragate model prepare' first")
    return path


@asynccontextmanager
async def stock_vllm(
    adapters: Mapping[str, Path], dtype: str = "bfloat16", bounds: Bounds = USUAL
) -> AsyncIterator[Running]:
    """`python -m vllm.entrypoints.openai.api_server`, nothing tuned."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model_path()), "--served-model-name", "base", "--dtype", dtype,
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(MAX_MODEL_LEN),
        "--enable-lora", "--max-loras", str(bounds.max_loras),
        "--max-cpu-loras", str(bounds.max_cpu_loras), "--max-lora-rank", str(bounds.max_rank),
    ]  # fmt: skip
    if adapters:
        command += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    }
    url = f"http://127.0.0.1:{port}"
    doors = {name: Door(url, name) for name in ("base", *adapters)}
    async with _running("vllm", command, environment, url, "/health", doors, {}) as running:
        yield running


@asynccontextmanager
async def llama_cpp(
    server: Path, model: Path, adapters: Mapping[str, Path], slots: int
) -> AsyncIterator[Running]:
    """`llama-server` with files of its own form, nothing tuned but what it cannot know: how many
    requests there are at once, and how many cores there are.
    """
    port = free_port()
    command = [
        str(server), "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--threads", str(len(os.sched_getaffinity(0))), "--parallel", str(slots),
        "--ctx-size", str(slots * MAX_MODEL_LEN), "--flash-attn", "on",
    ]  # fmt: skip
    if adapters:
        command += ["--lora", ",".join(str(path) for path in adapters.values())]
    url = f"http://127.0.0.1:{port}"
    # A request that names no adapter has all of them added, --lora-init-without-apply or not.
    doors = {
        "base": Door(url, "base", more={"lora": [{"id": 0, "scale": 0.0}]} if adapters else {})
    }
    for number, name in enumerate(adapters):
        doors[name] = Door(url, name, more={"lora": [{"id": number, "scale": 1.0}]})
    async with _running("llama.cpp", command, {}, url, "/health", doors, {}) as running:
        yield running


@asynccontextmanager
async def loragate(
    adapters: Mapping[str, Path],
    dtype: str = "bfloat16",
    versions: Mapping[str, Sequence[Path]] | None = None,
    settings: Mapping[str, str] | None = None,
    bounds: Bounds = USUAL,
    module: str = "loragate.server.cli.main",
    checkout: Path | None = None,
) -> AsyncIterator[Running]:
    """`loragate serve`, a tenant per adapter. `versions` are published too, the first promoted.
    `module` is what takes the command line, `checkout` where another version of the project lies.
    """
    with tempfile.TemporaryDirectory(prefix="loragate-bench-") as folder:
        home = Home(Path(folder)).ensure()
        shutil.rmtree(home.models)
        home.models.symlink_to(model_path().parent)
        cache = Home.from_environment().cache  # warm, as it is from the second start on
        cache.mkdir(parents=True, exist_ok=True)
        home.cache.symlink_to(cache)
        published = {**{k: [v] for k, v in adapters.items()}, **(versions or {})}
        keys = _publish_by(checkout, home, published) if checkout else publish(home, published)
        ports = free_port(), free_port()
        environment = {
            "LORAGATE_HOME": folder,
            "LORAGATE_SERVER_HTTP": f"127.0.0.1:{ports[0]}",
            "LORAGATE_SERVER_GRPC": f"127.0.0.1:{ports[1]}",
            "LORAGATE_ADMIN_KEY": "bench",
            "LORAGATE_ENGINE_DTYPE": dtype,
            "LORAGATE_ENGINE_MAX_LORAS": str(bounds.max_loras),
            "LORAGATE_ENGINE_MAX_CPU_LORAS": str(bounds.max_cpu_loras),
            "LORAGATE_ENGINE_MAX_LORA_RANK": str(bounds.max_rank),
            "LORAGATE_ENGINE_MAX_MODEL_LEN": str(MAX_MODEL_LEN),
            "LORAGATE_ENGINE_KV_CACHE_GIB": str(KV_CACHE_GIB),
            **(settings or {}),
            **(_import_from(checkout) if checkout else {}),
        }
        command = [sys.executable, "-m", module, "serve"]
        url = f"http://127.0.0.1:{ports[0]}"
        doors = {name: Door(url, "adapter", key) for name, key in keys.items()}
        doors["base"] = Door(url, "base", next(iter(keys.values())))
        admin = {"authorization": "Bearer bench"}
        async with _running(
            "before" if checkout else "loragate",
            command,
            environment,
            url,
            "/readyz",
            doors,
            admin,
            f"127.0.0.1:{ports[1]}",
        ) as running:
            with closing(sqlite3.connect(home.root / "registry.db")) as database:
                running = replace(running, database=database)
                await _all_serving(running, keys)
                yield running


def _import_from(checkout: Path) -> dict[str, str]:
    roots = ("server", "adapters", "trainer", "proto", "")
    return {"PYTHONPATH": os.pathsep.join(str(checkout / root) for root in roots)}


def _publish_by(
    checkout: Path, home: Home, versions: Mapping[str, Sequence[Path]]
) -> dict[str, str]:
    """By the code that will serve, which may not know a registry that newer code has made."""
    asked = {tenant: [str(folder) for folder in folders] for tenant, folders in versions.items()}
    script = (
        "import json, sys; from pathlib import Path; from bench import servers; "
        "publish = getattr(servers, 'publish', None) or servers._publish; "
        "versions = {k: list(map(Path, v)) for k, v in json.loads(sys.argv[2]).items()}; "
        "print(json.dumps(publish(servers.Home(Path(sys.argv[1])), versions)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home.root), json.dumps(asked)],
        env=os.environ | _import_from(checkout),
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    keys: dict[str, str] = json.loads(done.stdout)
    return keys


def publish(home: Home, versions: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Each tenant's adapter, with these versions, the first promoted; returns keys by tenant."""
    keys: dict[str, str] = {}
    store = ArtifactStore(home.artifacts)
    store.want_ready(ReadyForm("BF16", transposes_b=True))  # as a server that has run before says
    with Registry(home.database_url, store) as registry:
        keys["nobody"] = registry.tenants.create("nobody").key
        for tenant, folders in versions.items():
            keys[tenant] = registry.tenants.create(tenant).key
            name = AdapterName(tenant, "adapter")
            published = [registry.versions.publish(name, folder) for folder in folders]
            registry.aliases.set(name, "champion", published[0].number)
    return keys


async def _all_serving(running: Running, keys: Mapping[str, str]) -> None:
    for tenant in keys:
        if tenant != "nobody":
            await serving(running, tenant, 1)


async def serving(running: Running, tenant: str, version: int, look_every: float = 0.05) -> None:
    """Waits until the tenant's adapter serves that version. The server notices nothing of it."""
    assert running.database is not None
    while running.database.execute(_SERVING, (tenant,)).fetchone() != (version,):  # noqa: ASYNC110
        await asyncio.sleep(look_every)


@asynccontextmanager
async def _running(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    url: str,
    health: str,
    doors: Mapping[str, Door],
    admin: Mapping[str, str],
    grpc: str = "",
) -> AsyncIterator[Running]:
    handle, log = tempfile.mkstemp(prefix=f"bench-{name}-", suffix=".log")
    started = time.perf_counter()
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
        command, env=os.environ | environment, stdout=handle, stderr=handle, start_new_session=True
    )
    os.close(handle)
    try:
        await _until_healthy(process, url + health, Path(log))
        seconds = time.perf_counter() - started
        yield Running(name, url, grpc, process, doors, started, seconds, admin, Path(log))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    async with httpx.AsyncClient() as http:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise SystemExit(f"the server ended:\n{_end_of(log)}")
            with suppress(httpx.TransportError):
                if (await http.get(url)).is_success:
                    return
            await asyncio.sleep(0.1)
    raise SystemExit(f"not healthy in {_START_SECONDS:g} s:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text()[-3000:]
