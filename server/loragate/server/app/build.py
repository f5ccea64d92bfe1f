"""Builds the server, in an order whose reasons stand beside it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial

import msgspec
from rich.console import Console
from rich.progress import Progress

from loragate.adapters.base_models.preparation import BaseModel, prepare
from loragate.adapters.home import Home
from loragate.adapters.registry.retention import Retention
from loragate.adapters.rendering.renderer import Renderer
from loragate.server.admission.fair_queue import FairQueue, QueueBounds
from loragate.server.admission.shares import TenantCaps
from loragate.server.app import serving
from loragate.server.app.data_plane import DataPlane, build_data_plane
from loragate.server.app.engine_adapters import EngineAdapters, build_engine_adapters
from loragate.server.app.foundation import Foundation
from loragate.server.app.gauges import add_gauges
from loragate.server.app.live_registry import LiveRegistry
from loragate.server.app.server import Server
from loragate.server.app.transports import build_transports
from loragate.server.concurrency.daemon_threads import in_daemon_thread
from loragate.server.config import Config
from loragate.server.engine.grammars.compiler import Grammars, vocabulary_of
from loragate.server.engine.supervision import StartEngine, SupervisedEngine
from loragate.server.experiments.runner import TrialRunner
from loragate.server.gateway.routing import shadowed_adapters_warning
from loragate.server.gateway.shadow import Shadows
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
from loragate.server.residency.residency import Residency
from loragate.server.telemetry.health import Health
from loragate.server.telemetry.task_metrics import BackgroundTaskMetrics
from loragate.server.upkeep.collecting import collecting
from loragate.server.upkeep.retention import RetentionTask

logger = logging.getLogger(__name__)
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
    with Foundation.opened(config, home, base) as foundation:
        async with (
            # Its start takes minutes, and the snapshot has to be new, so that one is read after it.
            # It is left last, so its end holds up no record that is still to be written.
            SupervisedEngine.running(start) as engine,
            LiveRegistry.running(foundation) as live,
        ):
            await _warn_of_shadowed_adapters(live, base)
            renderer = Renderer.load(
                base.path, foundation.chat_template, config.engine.special_tokens_in_text
            )
            queue = make_queue(config, lambda: live.snapshots.current.tenant_count > 1)
            adapters = build_engine_adapters(foundation, live, engine, queue, renderer)
            budget = await asyncio.to_thread(merged_budget, config, base)
            merged = MergedModels(
                registry=foundation.registry,
                snapshots=live.snapshots,
                base_engine=engine,
                merged_backend=merged_backend or MergedBackend(),
                budget=budget,
                changed=live.merged_changed,
                background=foundation.background,
            )
            with closing(_grammars(config, renderer, engine)) as grammars:
                data_plane = build_data_plane(
                    foundation,
                    live,
                    engine=engine,
                    queue=queue,
                    renderer=renderer,
                    grammars=grammars,
                    residency=adapters.residency,
                    merged=merged,
                )
                server = build_transports(
                    foundation,
                    live,
                    data_plane,
                    health=_health(foundation, engine),
                    engines=Engines(engine, budget.base_need, merged).statuses,
                )
                _add_metrics(
                    foundation,
                    live,
                    engine=engine,
                    queue=queue,
                    residency=adapters.residency,
                    shadows=data_plane.shadows,
                    merged=merged,
                )
                engine.on_change(server.follow)
                async with _running(foundation, live, engine, adapters, merged, data_plane):
                    yield server


def _grammars(config: Config, renderer: Renderer, engine: SupervisedEngine) -> Grammars:
    return Grammars(
        lambda: vocabulary_of(renderer.tokenizer, engine.model.vocab_size),
        config.engine.grammar_timeout_seconds,
    )


def _health(foundation: Foundation, engine: SupervisedEngine) -> Health:
    lock, background = foundation.registry_lock, foundation.background
    return Health(lambda: engine.state, lambda: (*lock.degraded, *background.degraded))


async def _warn_of_shadowed_adapters(live: LiveRegistry, base: BaseModel) -> None:
    hidden = await asyncio.to_thread(shadowed_adapters_warning, live.snapshots.current, base.name)
    if hidden:
        logger.warning("%s", hidden)


def _add_metrics(
    foundation: Foundation,
    live: LiveRegistry,
    *,
    engine: SupervisedEngine,
    queue: FairQueue,
    residency: Residency,
    shadows: Shadows,
    merged: MergedModels,
) -> None:
    metrics = foundation.metrics
    metrics.follow(lambda: live.snapshots.current)
    add_gauges(
        metrics,
        snapshots=live.snapshots,
        queue=queue,
        residency=residency,
        shadows=shadows,
        engine=engine,
    )
    metrics.registry.register(MergedModelMetrics(merged))
    metrics.registry.register(BackgroundTaskMetrics(foundation.background))


@asynccontextmanager
async def _running(
    foundation: Foundation,
    live: LiveRegistry,
    engine: SupervisedEngine,
    adapters: EngineAdapters,
    merged: MergedModels,
    data_plane: DataPlane,
) -> AsyncIterator[None]:
    """Owns all that the server does by itself."""
    config, registry = foundation.config, foundation.registry
    background, pools = foundation.background, foundation.pools
    trials = TrialRunner(
        registry=registry,
        snapshots=live.snapshots,
        trial_router=data_plane.trial_router,
        warm=adapters.warm,
        wake=live.trials_changed,
        look_seconds=config.experiments.look_seconds,
        pool=pools.trials,
    )
    retention = RetentionTask(
        registry, Retention(**msgspec.structs.asdict(config.retention)), pools.administration
    )
    async with (
        # First, and left last: trials, shadows and merged models all call on adapters.
        adapters.running(),
        merged.running(),
        # After both have put right what the registry says of a dead server's versions: trials go
        # by it.
        trials.running(background),
        data_plane.shadows.running(background),
        retention.running(background),
        background.repeating("slot check", engine.check_slots, wait=engine.idle),
        collecting(registry, foundation.home, config.registry, background, pools.files),
    ):
        yield
