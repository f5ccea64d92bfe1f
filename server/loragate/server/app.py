"""Builds the server and runs it: the one place where objects are made and tied together."""

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from rich.console import Console
from rich.progress import Progress
from starlette.types import ASGIApp

from loragate.adapters.base_model import BaseModel, prepare
from loragate.adapters.base_profile import BaseProfile
from loragate.adapters.gate import StaticGate
from loragate.adapters.home import Home
from loragate.adapters.manifest import Contract
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry import Registry
from loragate.adapters.rendering import Renderer
from loragate.adapters.snapshot import Limits, Snapshot, SnapshotWatcher
from loragate.adapters.states import AdapterState
from loragate.adapters.store import ArtifactStore
from loragate.server.admin import routes as admin_http
from loragate.server.admin.administration import Administration
from loragate.server.admission import Admission
from loragate.server.auth import Tenants
from loragate.server.config import (
    Config,
    ConfigError,
    LimitsConfig,
    read_chat_template,
    split_address,
)
from loragate.server.engine import Engine
from loragate.server.engines import Engines
from loragate.server.experiments.feedback import FeedbackDesk
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.experiments.places import Places
from loragate.server.experiments.runner import TrialRunner
from loragate.server.fair_queue import FairQueue, QueueBounds
from loragate.server.gateway import Gateway
from loragate.server.health import Health
from loragate.server.http.server import HttpOptions, build_http
from loragate.server.lifecycle import Lifecycle
from loragate.server.loading import Loader
from loragate.server.logs import configure_logs
from loragate.server.memory import (
    GPU_PROCESS_BYTES,
    PROCESS_BYTES,
    Need,
    free_gpu_bytes,
    free_host_bytes,
    weights_bytes,
)
from loragate.server.merged_metrics import MergedModelMetrics
from loragate.server.merged_models import Budget, MergedModels, Workshop
from loragate.server.merging import run_merge
from loragate.server.metrics import Metrics
from loragate.server.pins import Pins
from loragate.server.prefetch import HotList, Prefetch
from loragate.server.probe import Probe
from loragate.server.prompting import NO_CONTRACT, PromptBuilder
from loragate.server.residency import Residency
from loragate.server.routing import Router
from loragate.server.rpc.server import GrpcOptions, GrpcServer, build_server
from loragate.server.shadow import Shadows
from loragate.server.supervision import EngineState, StartEngine, SupervisedEngine
from loragate.server.usage import UsageLog
from loragate.server.validation import RequestLimits
from loragate.server.vllm_start import is_cpu_build

logger = logging.getLogger(__name__)
_CUT_OFF_SECONDS = 1  # for what still runs after the drain to notice that it is over


def serve(config: Config) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what runs and returns."""
    configure_logs(config.server.log_level)
    home = Home.from_environment().ensure()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        base = prepare(config.engine.model, home.models, progress)
    uvloop.run(
        run(
            config,
            home,
            base,
            lambda: run_vllm(config, base, home.cache),
            merged_workshop(config, home, base),
        )
    )


async def run(
    config: Config,
    home: Home,
    base: BaseModel,
    start: StartEngine,
    workshop: Workshop | None = None,
) -> None:
    """Starts the engine, serves until asked to stop, and drains."""
    stopping = Stopping()
    with home.serving_alone(), stopping.on_signals():
        # Told now, not after a minute of starting the engine; taken for good by `listening`.
        _listen(config.server.http).close()
        logger.info("starting the engine with %s", base.name)
        async with (
            build(config, home, base, start, workshop=workshop) as server,
            server.listening(),
        ):
            _leave_to_itself_what_is_loaded()
            await stopping.requested.wait()
            await server.drain()


def _leave_to_itself_what_is_loaded() -> None:
    """Keeps the garbage collector from the 800,000 objects that importing vLLM makes.

    They stay as long as the process, and looking through them would hold every stream up for a
    third of a second, each time that requests have left enough behind.
    """
    gc.collect()
    gc.freeze()


def run_vllm(config: Config, base: BaseModel, cache: Path) -> AbstractAsyncContextManager[Engine]:
    # Imported here, since vllm takes seconds to import and only a real server needs it.
    from loragate.server import vllm_engine

    return vllm_engine.run_engine(config.engine, base, cache)


def merged_workshop(config: Config, home: Home, base: BaseModel) -> Workshop:
    """Merged models in vLLM; the trainer, if it is installed, makes those that are missing."""

    def start(folder: Path, need: Need) -> AbstractAsyncContextManager[Engine]:
        from loragate.server import vllm_engine

        merged = replace(base, path=folder)
        return vllm_engine.run_merged_engine(config.engine, merged, home.cache, need)

    url = config.registry.url or home.database_url
    return Workshop(
        start,
        partial(
            run_merge,
            base=config.engine.model,
            dtype=config.engine.dtype,
            environment={"LORAGATE_HOME": str(home.root), "LORAGATE_REGISTRY_URL": url},
        ),
        free_host_bytes if is_cpu_build() else free_gpu_bytes,
    )


def merged_budget(config: Config, base: BaseModel) -> Budget:
    is_cpu = is_cpu_build()
    base_kv = int(config.engine.kv_cache_gib * 2**30)
    return Budget(
        kv_cache_bytes=int(config.merged.kv_cache_gib * 2**30),
        reserve_bytes=int(config.merged.reserve_gib * 2**30),
        dtype=config.engine.dtype,
        base_need=Need(weights_bytes(base.path, config.engine.dtype), base_kv)
        if is_cpu
        else Need(0, 0, 0),
        # The base model in float32, its sum with the adapter, and what was written, loaded again.
        merging_bytes=3 * weights_bytes(base.path, "float32") if is_cpu else 0,
        process_bytes=PROCESS_BYTES if is_cpu else GPU_PROCESS_BYTES,
    )


@dataclass(slots=True)
class Server:
    """Everything that runs, tied together; `http` is the ASGI application."""

    config: Config
    http: ASGIApp
    grpc: GrpcServer
    health: Health
    admission: Admission
    http_port: int = 0
    grpc_port: int = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Takes requests on both ports. Raises ConfigError where an address is not to be had."""
        with _listen(self.config.server.http) as listener:
            web = _Uvicorn(
                uvicorn.Config(
                    self.http,
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                    timeout_graceful_shutdown=_CUT_OFF_SECONDS,
                )
            )
            self.grpc_port = await self._start_grpc()
            running = asyncio.create_task(web.serve([listener]), name="http")
            try:
                await web.has_started(running)
                self.http_port = listener.getsockname()[1]
                await self.grpc.set_serving(self.health.is_ready)
                logger.info(
                    "serving HTTP on %s and gRPC on %s",
                    _with_port(self.config.server.http, self.http_port),
                    _with_port(self.config.server.grpc, self.grpc_port),
                )
                yield
            finally:
                web.should_exit = True
                await asyncio.gather(running, self.grpc.stop(_CUT_OFF_SECONDS))
                await self.admission.drained()  # what was cut off writes its usage record yet

    async def drain(self) -> None:
        """Takes nothing new, and waits for what runs, `drain_seconds` at most."""
        logger.info("stopping: no new requests, %d under way", self.admission.in_flight)
        self.health.drain()
        self.admission.is_draining = True
        await self.grpc.set_serving(False)
        try:
            async with asyncio.timeout(self.config.server.drain_seconds):
                await self.admission.drained()
        except TimeoutError:
            logger.warning("%d requests are cut off", self.admission.in_flight)

    async def follow(self, state: EngineState) -> None:
        """Tells gRPC's health; HTTP's probes ask for themselves."""
        logger.info("the engine is %s", state)
        await self.grpc.set_serving(self.health.is_ready)

    async def _start_grpc(self) -> int:
        address = self.config.server.grpc
        try:
            return await self.grpc.start(address)
        except RuntimeError:
            raise ConfigError(
                f"gRPC cannot listen on {address}: is another server running there? "
                "Choose another address with --grpc."
            ) from None


def fair_queue(config: Config) -> FairQueue:
    limits = config.limits
    return FairQueue(
        places=limits.max_in_flight,
        slots=config.engine.max_loras,
        bounds=QueueBounds(
            limits.max_queued, limits.max_queued_per_adapter, limits.queue_timeout_seconds
        ),
        turn_seconds=limits.slot_turn_seconds,
    )


@asynccontextmanager
async def build(
    config: Config,
    home: Home,
    base: BaseModel,
    start: StartEngine,
    make_queue: Callable[[Config], FairQueue] = fair_queue,
    workshop: Workshop | None = None,
) -> AsyncIterator[Server]:
    """Starts the engine and makes all objects of a server around it; nothing listens yet.

    `make_queue` decides who goes next; a benchmark compares. Without a `workshop` no merged model
    can be served.
    """
    store = ArtifactStore(home.artifacts)
    chat_template = read_chat_template(config.engine)
    gate = StaticGate(BaseProfile.read(base, chat_template), config.engine.max_lora_rank)
    metrics = Metrics(config.metrics.max_adapters)
    admin_key = home.admin_key()
    url = config.registry.url or home.database_url
    with Registry(url, store, gate) as registry, registry.serving_alone():
        log = UsageLog(registry, metrics.count)
        observations = ObservationLog(registry)
        changed, trials_changed, merged_changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        watcher = SnapshotWatcher(
            registry,
            config.registry.poll_seconds,
            [
                lambda snapshot: changed.set(),
                lambda snapshot: trials_changed.set(),
                lambda snapshot: merged_changed.set(),
            ],
        )
        async with (
            SupervisedEngine.running(start) as engine,
            log.writing() as usage,
            observations.writing(),
            watcher as snapshots,
        ):
            health = Health(lambda: engine.state)
            tenants = Tenants(snapshots, admin_key)
            queue = make_queue(config)
            admission = Admission(queue)
            renderer = Renderer.load(base.path, chat_template)
            probe = Probe(engine, renderer)
            loader = Loader(
                engine,
                registry,
                store,
                gate,
                probe,
                metrics.adapter_loaded,
                is_busy=engine.is_generating,
            )
            residency = Residency(loader, queue, max_resident=config.engine.max_cpu_loras)
            prefetch = Prefetch(residency, lambda: snapshots.current, HotList(home.hot_list))
            engine.on_restart(prefetch.restore)
            places = Places(observations, lambda version: _can_serve(snapshots.current, version))
            budget = await asyncio.to_thread(merged_budget, config, base)
            merged = MergedModels(
                registry,
                snapshots,
                engine,
                workshop or Workshop(),
                budget,
                merged_changed,
            )
            builder = PromptBuilder(renderer, engine.model)
            shadows = Shadows(
                merged,
                residency,
                builder,
                lambda version: _contract(snapshots.current, version),
                lambda: queue.queued > 0 or queue.in_flight > config.engine.max_num_seqs // 4,
                observations,
                config.experiments.shadow_tokens_per_minute,
            )
            engines = Engines(engine, budget.base_need, merged).standings
            gateway = Gateway(
                tenants=tenants,
                router=Router(snapshots, base.name, int(time.time())),
                registry=snapshots,
                admission=admission,
                residency=residency,
                usage=usage,
                engine=engine,
                builder=builder,
                metrics=metrics,
                places=places,
                feedback=FeedbackDesk(registry, places, [usage.flush, observations.flush]),
                shadows=shadows,
                merged=merged,
                default_limits=_default_limits(config.limits),
                request_limits=RequestLimits(
                    vocab_size=engine.model.vocab_size,
                    max_logprobs=engine.model.max_logprobs,
                    max_choices=config.limits.max_choices,
                ),
                timeout_seconds=config.server.request_timeout_seconds,
            )
            _add_gauges(metrics, queue, residency)
            metrics.registry.register(MergedModelMetrics(merged))
            metrics.gauge(
                "loragate_shadows_made",
                "Answers compared with a second arm's.",
                lambda: shadows.made,
            )
            metrics.gauge(
                "loragate_shadows_dropped", "Second answers left out.", lambda: shadows.dropped
            )
            metrics.gauge(
                "loragate_engine_starts",
                "Times the engine was started; more than 1 where it has died.",
                lambda: engine.generation,
            )
            grpc_server = build_server(
                gateway,
                Administration(registry, "grpc", snapshots.refresh, engines),
                admin_key=admin_key,
                is_tenant_key=tenants.is_tenant_key,
                options=GrpcOptions(config.server.max_body_bytes, config.server.max_adapter_bytes),
            )
            admin = admin_http.build_router(
                Administration(registry, "http", snapshots.refresh, engines),
                admin_key,
                is_tenant_key=tenants.is_tenant_key,
                max_adapter_bytes=config.server.max_adapter_bytes,
            )
            options = HttpOptions(
                config.server.max_body_bytes,
                tenants.is_admin_key if config.metrics.require_admin_key else None,
            )
            http = build_http(gateway, health, metrics, options, [admin])
            server = Server(config, http, grpc_server, health, admission)
            engine.on_change(server.follow)
            most_pins = config.engine.max_cpu_loras - config.engine.max_loras
            pins = Pins(registry, residency, prefetch, most_pins)
            lifecycle = Lifecycle(registry, snapshots, residency, loader, pins, changed)
            trials = TrialRunner(
                registry,
                snapshots,
                places,
                residency.load,
                trials_changed,
                config.experiments.look_seconds,
            )
            try:
                async with (
                    lifecycle.running(),
                    prefetch.running(),
                    merged.running(),
                    trials.running(),
                    shadows.running(),
                ):
                    yield server
            finally:
                await residency.close()


class Stopping:
    """SIGTERM and SIGINT: the first asks to finish, a second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        if self.requested.is_set():
            logger.warning("stopping at once")
            for engine_process in multiprocessing.active_children():
                engine_process.kill()
            os._exit(128 + number)
        self.requested.set()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would close streams before they have ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def has_started(self, running: asyncio.Task[None]) -> None:
        while not self.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.01)


def _listen(address: str) -> socket.socket:
    """Bound here, since uvicorn ends the process where it cannot. Raises ConfigError."""
    host, port = split_address("server.http", address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"HTTP cannot listen on {address} ({error.strerror}): is another server running "
            "there? Choose another address with --http."
        ) from None


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"


def _default_limits(limits: LimitsConfig) -> Limits:
    return Limits(
        limits.requests_per_minute or None,
        limits.tokens_per_minute or None,
        limits.max_concurrent or None,
    )


def _contract(snapshot: Snapshot, version: AdapterVersion | None) -> Contract:
    return NO_CONTRACT if version is None else snapshot.manifest(version).contract


def _can_serve(snapshot: Snapshot, version: AdapterVersion) -> bool:
    return snapshot.state(version) not in (AdapterState.FAILED, AdapterState.RETIRED)


def _add_gauges(metrics: Metrics, queue: FairQueue, residency: Residency) -> None:
    metrics.gauge(
        "loragate_requests_running", "Requests that hold a place.", lambda: queue.in_flight
    )
    metrics.gauge("loragate_requests_queued", "Requests that wait.", lambda: queue.queued)
    metrics.gauge(
        "loragate_adapters_resident",
        "Adapter versions loaded in the engine.",
        lambda: len(residency.resident),
    )
    metrics.gauge(
        "loragate_adapters_leased",
        "Adapter versions that requests hold now.",
        lambda: queue.leased,
    )
    metrics.gauge(
        "loragate_adapters_awaiting_slot",
        "Adapter versions whose requests wait for one of the engine's slots.",
        lambda: queue.awaiting_slot,
    )
