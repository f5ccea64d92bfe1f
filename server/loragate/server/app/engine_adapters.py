"""Adapter versions in the base model's engine: what loads them, and what wants them there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loragate.adapters.names import AdapterVersion
from loragate.adapters.rendering.renderer import Renderer
from loragate.server.admission.fair_queue import FairQueue
from loragate.server.app.foundation import Foundation
from loragate.server.app.live_registry import LiveRegistry
from loragate.server.engine.supervision import SupervisedEngine
from loragate.server.residency.loader import Loader
from loragate.server.residency.pins import Pins
from loragate.server.residency.prefetch import HotList, Prefetch
from loragate.server.residency.probe import Probe
from loragate.server.residency.reconciler import AliasReconciler
from loragate.server.residency.residency import Residency


@dataclass(frozen=True, slots=True)
class EngineAdapters:
    live: LiveRegistry
    loader: Loader
    residency: Residency
    prefetch: Prefetch
    pins: Pins
    reconciler: AliasReconciler

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Loads what is pinned, what aliases are to mean and what was in use; owns the tasks."""
        # Before `prefetch` reads what was in use before: pinned versions are loaded first.
        self.pins.hold(self.live.snapshots.current)
        try:
            # The reconciler puts right what a dead server left in the registry, so before
            # `prefetch` loads by what is said there. It is left last.
            async with self.reconciler.running(), self.prefetch.running():
                yield
        finally:
            # Loads under way first: they use the loader's threads.
            await self.residency.close()
            self.loader.close()

    async def warm(self, version: AdapterVersion) -> None:
        """Loads the version for a trial. Raises AdapterUnavailable."""
        self.loader.try_again(version)  # it may have been mended since, and then resumed
        await self.residency.load(version)


def build_engine_adapters(
    foundation: Foundation,
    live: LiveRegistry,
    engine: SupervisedEngine,
    queue: FairQueue,
    renderer: Renderer,
) -> EngineAdapters:
    settings, registry = foundation.config.engine, foundation.registry
    loader = Loader(
        engine=engine,
        registry=registry,
        store=foundation.store,
        publish_check=foundation.publish_check,
        probe=Probe(
            engine,
            renderer,
            is_quantised=settings.weights == "int8" or bool(settings.quantization),
        ),
        on_load=foundation.metrics.adapter_loaded,
        is_busy=engine.is_generating,
        timeout_seconds=settings.load_timeout_seconds,
    )
    residency = Residency(loader, queue, max_resident=settings.max_cpu_loras)
    prefetch = Prefetch(
        residency=residency,
        snapshot=lambda: live.snapshots.current,
        hot=HotList(foundation.home.hot_list),
        background=foundation.background,
    )
    # From here on, since an engine that dies takes all that it holds with it.
    engine.on_restart(prefetch.restore)
    pins = Pins(registry, residency, prefetch, most=settings.max_cpu_loras - settings.max_loras)
    reconciler = AliasReconciler(
        registry=registry,
        snapshots=live.snapshots,
        residency=residency,
        loader=loader,
        pins=pins,
        changed=live.aliases_changed,
        background=foundation.background,
    )
    return EngineAdapters(
        live=live,
        loader=loader,
        residency=residency,
        prefetch=prefetch,
        pins=pins,
        reconciler=reconciler,
    )
