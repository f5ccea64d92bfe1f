"""Builds the server: the one place where objects are made and tied together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial

import msgspec
from rich.console import Console
from rich.progress import Progress

from loragate.adapters.base_models.preparation import BaseModel, prepare
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.retention import Retention
from loragate.adapters.registry.snapshot import Limits, Snapshot, SnapshotWatcher
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.rendering.templates import Templates
from loragate.adapters.store import ArtifactStore
from loragate.server import serving
from loragate.server.admin.administration import Administration
from loragate.server.admission.admission import Admission
from loragate.server.admission.deadlines import Deadlines
from loragate.server.admission.fair_queue import FairQueue, QueueBounds
from loragate.server.admission.shares import TenantCaps
from loragate.server.concurrency.daemon_threads import in_daemon_thread
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.concurrency.pools import Pools
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.config import Config, LimitsConfig, are_metrics_closed, read_chat_template
from loragate.server.engine.grammars.compiler import Grammars, vocabulary_of
from loragate.server.engine.supervision import StartEngine, SupervisedEngine
from loragate.server.experiments.feedback import FeedbackService
from loragate.server.experiments.observation_log import ObservationLog
from loragate.server.experiments.runner import TrialRunner
from loragate.server.experiments.trial_router import TrialRouter
from loragate.server.gateway.arrivals import Arrivals
from loragate.server.gateway.auth import Tenants
from loragate.server.gateway.gateway import Gateway
from loragate.server.gateway.generator import Generator
from loragate.server.gateway.preparation import Preparation
from loragate.server.gateway.prompting import TEMPLATE_CHILDREN, PromptBuilder, contract_of
from loragate.server.gateway.resolver import Resolver
from loragate.server.gateway.routing import Router, shadowed_adapters_warning
from loragate.server.gateway.services import Models, TenantServices
from loragate.server.gateway.shadow import Shadows
from loragate.server.gateway.validation import RequestLimits
from loragate.server.gauges import add_gauges
from loragate.server.http import admin_routes as admin_http
from loragate.server.http.server import HttpOptions, build_http
from loragate.server.merged.backend import MergedBackend
from loragate.server.merged.engine_status import Engines
from loragate.server.merged.metrics import MergedModelMetrics
from loragate.server.merged.models import MergedModels
from loragate.server.merged.vllm_backend import (
    base_engine,
    merged_budget,
    require_fitting,
    vllm_merged_backend,
)
from loragate.server.residency.loader import Loader
from loragate.server.residency.pins import Pins
from loragate.server.residency.prefetch import HotList, Prefetch
from loragate.server.residency.probe import Probe
from loragate.server.residency.reconciler import AliasReconciler
from loragate.server.residency.residency import Residency
from loragate.server.rpc.server import GrpcOptions, build_server
from loragate.server.server import Server
from loragate.server.telemetry.health import Health
from loragate.server.telemetry.metrics import Metrics
from loragate.server.telemetry.task_metrics import BackgroundTaskMetrics
from loragate.server.telemetry.usage import UsageLog
from loragate.server.upkeep.collecting import collecting
from loragate.server.upkeep.registry_lock import RegistryLock
from loragate.server.upkeep.retention import RetentionTask

logger = logging.getLogger(__name__)
# A database that answers again is to be read at once: what was revoked meanwhile still works.
_LOOK_AGAIN = Backoff(first=0.2, most=2.0)
MakeQueue = Callable[[Config, Callable[[], bool]], FairQueue]  # with whether there are many tenants


async def run(
    config: Config,
    home: Home,
    base: BaseModel,
    start: StartEngine,
    merged_backend: MergedBackend | None = None,
) -> None:
    """Serves this model until asked to stop; see `serving.run`."""
    await serving.run(
        config, home, lambda: build(config, home, base, start, merged_backend=merged_backend)
    )


@asynccontextmanager
async def build_from_settings(config: Config, home: Home) -> AsyncIterator[Server]:
    """Finds or makes the base model, then builds its server, as `build` does.

    The base model may have to be downloaded, which takes minutes and cannot be interrupted.
    """
    require_fitting(config.engine)

    def find_or_make() -> BaseModel:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            return prepare(config.engine.model, home.models, progress)

    base = await in_daemon_thread(find_or_make)
    logger.info("starting the engine with %s", base.name)
    merged_backend = vllm_merged_backend(config, home, base)
    start = partial(base_engine, config, base, home.cache)
    async with build(config, home, base, start, merged_backend=merged_backend) as server:
        yield server


def fair_queue(config: Config, is_shared: Callable[[], bool]) -> FairQueue:
    limits = config.limits
    return FairQueue(
        permits=limits.max_in_flight,
        base_permits=config.engine.max_num_seqs,
        slots=config.engine.max_loras,
        bounds=QueueBounds(
            limits.max_queued, limits.max_queued_per_adapter, limits.queue_timeout_seconds
        ),
        turn_seconds=limits.slot_turn_seconds,
        caps=TenantCaps(
            max_sequences=limits.max_sequences_per_tenant,
            max_loras=limits.max_loras_per_tenant,
            max_queued=limits.max_queued_per_tenant,
        ),
        is_shared=is_shared,
    )


@asynccontextmanager
async def build(
    config: Config,
    home: Home,
    base: BaseModel,
    start: StartEngine,
    make_queue: MakeQueue = fair_queue,
    merged_backend: MergedBackend | None = None,
) -> AsyncIterator[Server]:
    """Starts the engine and makes all objects of a server around it; nothing listens yet.

    `make_queue` decides who goes next; a benchmark compares. Without a `merged_backend` no merged
    model can be served.
    """
    store = ArtifactStore(home.artifacts)
    chat_template = read_chat_template(config.engine)
    templates = Templates(TEMPLATE_CHILDREN)
    publish_check = PublishCheck(
        BaseProfile.read(base, chat_template), config.engine.max_lora_rank, templates
    )
    metrics = Metrics(config.metrics.max_adapters)
    background = BackgroundTasks(config.server.degraded_after_seconds)
    admin_key = home.admin_key()
    url = config.registry.url or home.database_url
    with (
        Pools() as pools,
        templates,
        Registry(url, store, publish_check) as registry,
        registry.serving_alone() as serving_lock,
        closing(FairThreads()) as threads,
        # It asks for the vocabulary with the first constraint, long after these are there.
        closing(
            Grammars(
                lambda: vocabulary_of(renderer.tokenizer, engine.model.vocab_size),
                config.engine.grammar_timeout_seconds,
            )
        ) as grammars,
    ):
        registry_lock = RegistryLock(serving_lock, pools.lock)
        log = UsageLog(registry.usage, metrics.count, pools.records)
        observations = ObservationLog(registry.observations, pools.records)
        changed, trials_changed, merged_changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        snapshots = SnapshotWatcher(
            registry,
            [_wake(changed), _wake(trials_changed), _wake(merged_changed)],
            pools.snapshot,
        )
        async with (
            SupervisedEngine.running(start) as engine,
            log.writing(background) as usage,
            observations.writing(background),
            _following(snapshots, config.registry.poll_seconds, background),
            registry_lock.watched(background),
        ):
            if hidden := await asyncio.to_thread(
                shadowed_adapters_warning, snapshots.current, base.name
            ):
                logger.warning("%s", hidden)
            health = Health(
                lambda: engine.state, lambda: (*registry_lock.degraded, *background.degraded)
            )
            tenants = Tenants(snapshots, admin_key)
            queue = make_queue(config, lambda: snapshots.current.tenant_count > 1)
            admission = Admission(queue)
            deadlines = Deadlines(config.server.request_timeout_seconds)
            renderer = Renderer.load(base.path, chat_template)
            loader = Loader(
                engine,
                registry,
                store,
                publish_check,
                Probe(engine, renderer),
                metrics.adapter_loaded,
                is_busy=engine.is_generating,
                timeout_seconds=config.engine.load_timeout_seconds,
            )
            residency = Residency(loader, queue, max_resident=config.engine.max_cpu_loras)
            prefetch = Prefetch(
                residency, lambda: snapshots.current, HotList(home.hot_list), background
            )
            engine.on_restart(prefetch.restore)
            trial_router = TrialRouter(
                observations, lambda version: snapshots.current.can_answer(version)
            )
            budget = await asyncio.to_thread(merged_budget, config, base)
            merged = MergedModels(
                registry,
                snapshots,
                engine,
                merged_backend or MergedBackend(),
                budget,
                merged_changed,
                background,
            )
            builder = PromptBuilder(
                renderer, engine.model, threads, templates, config.limits.max_prompt_logprobs
            )
            shadows = Shadows(
                merged,
                residency,
                builder,
                lambda version: contract_of(snapshots.current, version),
                lambda: queue.queued > 0 or queue.running > config.engine.max_num_seqs // 4,
                observations,
                config.experiments.shadow_tokens_per_minute,
            )
            engines = Engines(engine, budget.base_need, merged).statuses
            router = Router(snapshots, base.name, int(time.time()))
            gateway = Gateway(
                resolver=Resolver(router, trial_router, merged),
                preparation=Preparation(
                    builder,
                    snapshots,
                    RequestLimits(
                        vocab_size=engine.model.vocab_size,
                        max_logprobs=engine.model.max_logprobs,
                        max_choices=config.limits.max_choices,
                    ),
                    grammars,
                    merged,
                    engine,
                    threads,
                ),
                admission=admission,
                generator=Generator(merged, residency),
                engine=engine,
                shadows=shadows,
                usage=usage,
                metrics=metrics,
                deadlines=deadlines,
            )
            services = TenantServices(
                Arrivals(tenants, snapshots, admission, _default_limits(config.limits), metrics),
                gateway,
                Models(router, threads),
                FeedbackService(
                    registry.observations,
                    trial_router,
                    [usage.flush, observations.flush],
                    pool=pools.records,
                ),
            )
            metrics.follow(lambda: snapshots.current)
            add_gauges(metrics, snapshots, queue, residency, shadows, engine)
            metrics.registry.register(MergedModelMetrics(merged))
            metrics.registry.register(BackgroundTaskMetrics(background))
            administration = partial(
                Administration,
                registry,
                snapshots=snapshots,
                engines=engines,
                pool=pools.administration,
                files_pool=pools.files,
                orphans_after_seconds=config.registry.orphans_after_seconds,
            )
            grpc_server = build_server(
                services,
                administration("grpc"),
                admin_key=admin_key,
                is_tenant_key=tenants.is_tenant_key,
                options=GrpcOptions(
                    config.server.max_body_bytes,
                    config.server.max_adapter_bytes,
                    config.server.body_timeout_seconds,
                    config.server.write_timeout_seconds,
                ),
                threads=threads,
            )
            admin = admin_http.build_router(
                administration("http"),
                admin_key,
                threads,
                is_tenant_key=tenants.is_tenant_key,
                max_adapter_bytes=config.server.max_adapter_bytes,
            )
            metrics_key = tenants.is_admin_key if are_metrics_closed(config) else None
            options = HttpOptions(
                config.server.max_body_bytes, config.server.body_timeout_seconds, metrics_key
            )
            http = build_http(services, health, metrics, options, threads, [admin])
            server = Server(
                config.server,
                http,
                grpc_server,
                health,
                admission,
                deadlines,
                background,
                registry_lock,
            )
            engine.on_change(server.follow)
            most_pins = config.engine.max_cpu_loras - config.engine.max_loras
            pins = Pins(registry, residency, prefetch, most_pins)
            pins.hold(snapshots.current)  # before anybody loads what was hot
            reconciler = AliasReconciler(
                registry, snapshots, residency, loader, pins, changed, background
            )

            async def warm(version: AdapterVersion) -> None:
                loader.try_again(version)  # it may have been mended since, and then resumed
                await residency.load(version)

            trials = TrialRunner(
                registry,
                snapshots,
                trial_router,
                warm,
                trials_changed,
                config.experiments.look_seconds,
                pool=pools.trials,
            )
            retention = RetentionTask(
                registry,
                Retention(**msgspec.structs.asdict(config.retention)),
                pools.administration,
            )
            try:
                async with (
                    reconciler.running(),
                    prefetch.running(),
                    merged.running(),
                    trials.running(background),
                    shadows.running(background),
                    retention.running(background),
                    background.repeating("slot check", engine.check_slots, wait=engine.idle),
                    collecting(registry, home, config.registry, background, pools.files),
                ):
                    yield server
            finally:
                await residency.close()
                loader.close()


@asynccontextmanager
async def _following(
    snapshots: SnapshotWatcher, poll_seconds: float, background: BackgroundTasks
) -> AsyncIterator[None]:
    """Keeps the snapshot up to date. Raises StoreError where there is no first one to be had."""
    await snapshots.refresh()
    look = background.repeating(
        "registry snapshot",
        snapshots.refresh,
        wait=partial(asyncio.sleep, poll_seconds),
        is_vital=True,  # a key that is revoked meanwhile goes on working
        is_prompt=True,
        backoff=_LOOK_AGAIN,
    )
    async with look:
        yield


def _wake(sleeper: asyncio.Event) -> Callable[[Snapshot], None]:
    return lambda snapshot: sleeper.set()


def _default_limits(limits: LimitsConfig) -> Limits:
    return Limits(
        limits.requests_per_minute or None,
        limits.tokens_per_minute or None,
        limits.max_concurrent or None,
    )
