"""Rollouts and experiments on a small server: begun, sent requests, waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from loragate.adapters.registry.trial_records import Trial
from loragate.server.config import ExperimentsConfig, Section
from loragate.server.experiments.service import TrialService
from loragate.server.experiments.specs import ExperimentSpec, RolloutSpec
from support.models.one_layer import write_adapter
from support.server.small_server import SUPPORT, Reply, Served, ServeWith

QUICK = ExperimentsConfig(look_seconds=0.02)
HALF = ("champion=v1:50%", "new=v2:50%")


@asynccontextmanager
async def with_two_versions(
    serve_with: ServeWith, folder: Path, **sections: Section
) -> AsyncIterator[Served]:
    """A server that looks often, where acme/support has a v2 besides its champion v1."""
    async with serve_with(**{"experiments": QUICK, **sections}) as served:
        served.registry.versions.publish(SUPPORT, write_adapter(folder / "v2", 2))
        yield served


def start_rollout(
    served: Served,
    *percentages: float,
    gates: tuple[str, ...] = ("error_rate<30%",),
    every_seconds: float = 0.05,
    shadow: float = 0.0,
) -> Trial:
    spec = RolloutSpec("v2", percentages or (50.0, 100.0), every_seconds, gates, shadow=shadow)
    return TrialService(served.registry).start_rollout(SUPPORT, spec, "test")


def start_experiment(
    served: Served,
    *arms: str,
    gates: tuple[str, ...] = ("error_rate<30%",),
    is_automatic: bool = False,
) -> Trial:
    spec = ExperimentSpec(arms or HALF, gates, values=1, is_automatic=is_automatic)
    return TrialService(served.registry).start_experiment(SUPPORT, spec, "test")


async def ask(served: Served, user: str, model: str = "support") -> Reply:
    reply = await served.chat("hi", model, user=user, max_tokens=2)
    assert reply.status_code == 200, reply.text
    return reply


async def under_way(served: Served) -> None:
    """Waits until requests are given arms."""
    async with asyncio.timeout(10):
        while "x-loragate-arm" not in (await ask(served, "first")).headers:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def status(served: Served, trial: Trial) -> str:
    return served.registry.trials.get(trial.id).status.state


async def ask_until(
    served: Served, trial: Trial, *states: str, seconds: float = 8.0
) -> list[Reply]:
    """Sends requests of one user after another until the trial is in one of these states."""
    replies: list[Reply] = []
    async with asyncio.timeout(seconds):
        while status(served, trial) not in states:
            number = len(replies)
            replies += await asyncio.gather(
                *(ask(served, f"user-{number + more}") for more in range(10))
            )
    return replies


def arms(replies: list[Reply]) -> set[str]:
    return {reply.headers.get("x-loragate-arm", "") for reply in replies}
