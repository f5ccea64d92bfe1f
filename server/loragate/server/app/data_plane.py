"""What tenants ask: the gateway, its stages, and the services beside it."""

import time
from dataclasses import dataclass

from loragate.adapters.registry.snapshot import Limits
from loragate.adapters.rendering.renderer import Renderer
from loragate.server.admission.admission import Admission
from loragate.server.admission.deadlines import Deadlines
from loragate.server.admission.fair_queue import FairQueue
from loragate.server.app.foundation import Foundation
from loragate.server.app.live_registry import LiveRegistry
from loragate.server.config import LimitsConfig
from loragate.server.engine.grammars.compiler import Grammars
from loragate.server.engine.supervision import SupervisedEngine
from loragate.server.experiments.feedback import FeedbackService
from loragate.server.experiments.trial_router import TrialRouter
from loragate.server.gateway.arrivals import Arrivals
from loragate.server.gateway.auth import Authenticator
from loragate.server.gateway.gateway import Gateway
from loragate.server.gateway.generator import Generator
from loragate.server.gateway.preparation import Preparation
from loragate.server.gateway.prompting import PromptBuilder, contract_of
from loragate.server.gateway.resolver import Resolver
from loragate.server.gateway.routing import Router
from loragate.server.gateway.services import Models, TenantServices
from loragate.server.gateway.shadow import Shadows
from loragate.server.gateway.validation import RequestLimits
from loragate.server.merged.models import MergedModels
from loragate.server.residency.residency import Residency


@dataclass(frozen=True, slots=True)
class DataPlane:
    services: TenantServices
    authenticator: Authenticator
    admission: Admission
    deadlines: Deadlines
    trial_router: TrialRouter
    shadows: Shadows


def build_data_plane(
    foundation: Foundation,
    live: LiveRegistry,
    *,
    engine: SupervisedEngine,
    queue: FairQueue,
    renderer: Renderer,
    grammars: Grammars,
    residency: Residency,
    merged: MergedModels,
) -> DataPlane:
    config, snapshots = foundation.config, live.snapshots
    threads, metrics = foundation.threads, foundation.metrics
    authenticator = Authenticator(snapshots, foundation.admin_key)
    admission = Admission(queue)
    deadlines = Deadlines(config.server.request_timeout_seconds)
    router = Router(
        snapshots,
        foundation.base.name,
        max_model_len=engine.model.max_model_len,
        started_at=int(time.time()),
    )
    trial_router = TrialRouter(
        live.observations, can_serve=lambda version: snapshots.current.can_answer(version)
    )
    builder = PromptBuilder(
        renderer=renderer,
        model=engine.model,
        threads=threads,
        templates=foundation.templates,
        most_prompt_scores=config.limits.max_prompt_logprobs,
    )
    shadows = Shadows(
        merged=merged,
        residency=residency,
        builder=builder,
        contract=lambda version: contract_of(snapshots.current, version),
        is_busy=lambda: queue.queued > 0 or queue.running > config.engine.max_num_seqs // 4,
        log=live.observations,
        tokens_per_minute=config.experiments.shadow_tokens_per_minute,
    )
    preparation = Preparation(
        builder=builder,
        registry=snapshots,
        request_limits=RequestLimits(
            vocab_size=engine.model.vocab_size,
            max_logprobs=engine.model.max_logprobs,
            max_choices=config.limits.max_choices,
        ),
        grammars=grammars,
        merged=merged,
        engine=engine,
        threads=threads,
    )
    gateway = Gateway(
        resolver=Resolver(router, trial_router, merged),
        preparation=preparation,
        admission=admission,
        generator=Generator(merged, residency),
        engine=engine,
        shadows=shadows,
        usage=live.usage,
        metrics=metrics,
        deadlines=deadlines,
    )
    arrivals = Arrivals(
        authenticator=authenticator,
        registry=snapshots,
        admission=admission,
        default_limits=_default_limits(config.limits),
        metrics=metrics,
    )
    feedback = FeedbackService(
        foundation.registry.observations,
        trial_router,
        flush=[live.usage.flush, live.observations.flush],
        pool=foundation.pools.records,
    )
    return DataPlane(
        services=TenantServices(arrivals, gateway, Models(router, threads), feedback),
        authenticator=authenticator,
        admission=admission,
        deadlines=deadlines,
        trial_router=trial_router,
        shadows=shadows,
    )


def _default_limits(limits: LimitsConfig) -> Limits:
    return Limits(
        limits.requests_per_minute or None,
        limits.tokens_per_minute or None,
        limits.max_concurrent or None,
    )
