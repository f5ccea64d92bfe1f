"""Carries rollouts and experiments on: looks at each about once a second, and does what follows.

Where a trial stands is the registry's word. A change made there by anybody reaches this server with
the next snapshot; a change of this server's own is written there first.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from loragate.adapters.errors import (
    AliasMovedOn,
    AliasNotFound,
    LoragateError,
    TrialMovedOn,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.listings import AliasVersions
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry import Registry
from loragate.adapters.snapshot import SnapshotWatcher
from loragate.adapters.trial_records import Observations, Trial
from loragate.server.errors import AdapterUnavailable, EngineDead
from loragate.server.experiments.places import Clock, Places, Station, wall_clock
from loragate.server.experiments.plans import CHALLENGER, CHAMPION, ExperimentPlan, from_json
from loragate.server.experiments.rollout_plan import (
    RolloutPlan,
    RolloutProgress,
    RolloutState,
    abort,
    fell_back,
    look,
    progress_of,
    roll_back,
    standing_of,
    win,
)
from loragate.server.experiments.running import RunningTrial
from loragate.server.experiments.verdict import Verdict, decide

logger = logging.getLogger(__name__)
ACTOR = "server"
_NOTE_SECONDS = 5.0
_NOTHING_SEEN = Observations((), (), ())


class TrialRunner:
    """Follows the registry; `running` owns its tasks."""

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotWatcher,
        places: Places,
        warm: Callable[[AdapterVersion], Awaitable[None]],
        wake: asyncio.Event,
        look_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        now: Clock = wall_clock,
    ) -> None:
        """`warm` loads a version and raises AdapterUnavailable where that cannot be. `wake` is set
        whenever there is a new snapshot.
        """
        self._registry = registry
        self._snapshots = snapshots
        self._places = places
        self._warm = warm
        self._wake = wake
        self._look_seconds = look_seconds
        self._clock = clock
        self._now = now
        self._revision = -1
        self._stations: dict[int, Station] = {}  # by the trial's id
        self._ended: list[Station] = []  # the winner does not serve yet
        self._looked_at: dict[int, float] = {}
        self._noted_at: dict[int, float] = {}
        self._preparing: dict[int, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["TrialRunner"]:
        task = asyncio.create_task(self._follow(), name="trials")
        try:
            yield self
        finally:
            tasks = [task, *self._preparing.values()]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(LoragateError):
                await self._note_all()

    async def _follow(self) -> None:
        while True:
            try:
                await self._keep_up()
                for station in tuple(self._stations.values()):
                    await self._look(station)
                self._let_go()
            except LoragateError as error:  # the database is away: what is in memory goes on
                logger.warning("rollouts and experiments wait: %s", error)
                self._revision = -1
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._wake.wait()
            self._wake.clear()

    async def _keep_up(self) -> None:
        revision = self._snapshots.current.revision
        if revision == self._revision:
            return
        under_way = {
            trial.id: trial for trial in await asyncio.to_thread(self._registry.trials_under_way)
        }
        for trial in under_way.values():
            if (station := self._stations.get(trial.id)) is not None:
                self._adopt(station, trial)
                await self._check_champion(station)
            elif trial.id not in self._preparing:
                self._prepare(trial.id, self._begin(trial))
        for trial_id in self._stations.keys() - under_way.keys():
            self._end(self._stations[trial_id], await self._read(trial_id))
        self._revision = revision

    async def _read(self, trial_id: int) -> Trial:
        return await asyncio.to_thread(self._registry.trial, trial_id)

    def _prepare(self, trial_id: int, work: Awaitable[None]) -> None:
        async def prepare() -> None:
            try:
                await work
            except LoragateError as error:
                logger.warning("trial %d waits: %s", trial_id, error)
            finally:
                del self._preparing[trial_id]
                self._revision = -1  # it may have changed meanwhile
                self._wake.set()

        self._preparing[trial_id] = asyncio.create_task(prepare(), name=f"trial {trial_id}")

    async def _begin(self, trial: Trial) -> None:
        """Loads the arms before the first request, so that none waits for that or finds them bad;
        but who has an arm already, from before a restart, keeps it meanwhile.
        """
        plan = from_json(trial.plan)
        step = trial.standing.step
        seen = await asyncio.to_thread(self._registry.observations, trial.id, step)
        # In a thread: a long trial's figures take a while to count anew.
        running = await asyncio.to_thread(RunningTrial, trial, plan, seen)
        station = Station(running, self._wake.set)
        is_new = step == 0 and not seen.exposures
        if not is_new:
            self._places.put(station)
        await self._warm_arms(station)
        self._stations[trial.id] = station
        self._places.put(station)
        logger.info("%s of %s is under way", trial, trial.adapter)

    async def _warm_arms(self, station: Station) -> None:
        for arm in station.running.trial.arms:
            if arm.version is None:
                continue
            try:
                await self._warm(arm.version)
            except AdapterUnavailable as error:
                if arm.name != CHAMPION and error.code != "no_adapter_slot":
                    station.mark_down(arm.name, str(error))
            except EngineDead as error:
                logger.info("%s is not loaded ahead: %s", arm.version, error)
            else:
                station.down.pop(arm.name, None)

    def _adopt(self, station: Station, trial: Trial) -> None:
        """Goes on as the registry says."""
        running, before = station.running, station.running.trial.standing
        if trial.standing.step != before.step:
            station.running = RunningTrial(trial, running.plan, _NOTHING_SEEN)
            return
        watched = max(trial.standing.watched_seconds, before.watched_seconds)
        running.trial = replace(trial, standing=replace(trial.standing, watched_seconds=watched))
        is_resumed = before.state == RolloutState.PAUSED != trial.standing.state
        if is_resumed and station.down and trial.id not in self._preparing:
            self._prepare(trial.id, self._warm_arms(station))

    async def _check_champion(self, station: Station) -> None:
        """Ends a trial whose champion somebody has replaced: there is nothing to compare with."""
        versions = [arm.version for arm in station.running.trial.arms]
        champion = self._champion_of(station)
        if station.champion is None or champion is None or champion.desired in versions:
            return
        why = f"the champion was changed to {champion.desired.version} meanwhile"
        await self._move(station, abort(_progress(station), why))

    def _champion_of(self, station: Station) -> AliasVersions | None:
        adapter = station.running.trial.adapter
        listing = self._snapshots.current.adapter(adapter.tenant, adapter.name)
        return None if listing is None else listing.aliases.get(CHAMPION)

    async def _look(self, station: Station) -> None:
        trial = station.running.trial
        seconds = self._seconds_since_last_look(trial.id)
        if station.down and trial.id not in self._preparing:
            await self._pause(station)
            return
        plan, running = station.running.plan, station.running
        if isinstance(plan, ExperimentPlan) and not plan.is_automatic:
            return
        tallies = running.tallies(self._now())
        verdicts = await asyncio.to_thread(running.judged, tallies)
        match plan:
            case RolloutPlan():
                await self._step(station, plan, seconds, verdicts[CHALLENGER])
            case ExperimentPlan():
                if trial.standing.state != RolloutState.PAUSED:
                    await self._decide(station, verdicts)

    def _seconds_since_last_look(self, trial_id: int) -> float:
        now = self._clock()
        seconds = now - self._looked_at.get(trial_id, now)
        self._looked_at[trial_id] = now
        return seconds

    async def _step(
        self, station: Station, plan: RolloutPlan, seconds: float, verdict: Verdict
    ) -> None:
        before = _progress(station)
        after = look(plan, before, seconds, verdict)
        if (after.state, after.step) == (before.state, before.step):
            trial = station.running.trial
            station.running.trial = replace(trial, standing=standing_of(after))
            await self._note(station)
            return
        promote = CHALLENGER if after.state is RolloutState.PASSED else None
        await self._move(station, after, promote)

    async def _decide(self, station: Station, verdicts: Mapping[str, Verdict]) -> None:
        """Ends an automatic experiment by its verdict: the first arm that passes wins."""
        decision = decide(verdicts)
        if decision is None:
            return
        arm, why = decision
        progress = _progress(station)
        await self._move(station, win(progress, why) if arm else roll_back(progress, why), arm)

    async def _pause(self, station: Station) -> None:
        progress = _progress(station)
        if progress.state is RolloutState.PAUSED:
            return
        arms = "; ".join(f"{arm}: {why}" for arm, why in station.down.items())
        await self._move(station, fell_back(progress, f"the champion answers instead of {arms}"))

    async def _move(
        self, station: Station, progress: RolloutProgress, promote: str | None = None
    ) -> None:
        trial = station.running.trial
        move = partial(
            self._registry.move_trial,
            trial,
            standing_of(progress),
            ACTOR,
            is_over=progress.state.is_over,
            promote=promote,
        )
        try:
            moved = await asyncio.to_thread(move)
        except TrialMovedOn:
            self._revision = -1  # somebody was faster: look again before anything else
            return
        except (AliasMovedOn, AliasNotFound, VersionRetired, VersionNotFound) as error:
            await self._move(station, abort(_progress(station), str(error)))
            return
        logger.info("%s of %s is %s: %s", trial, trial.adapter, progress.state, progress.reason)
        if progress.state.is_over:
            self._end(station, moved)
        else:
            self._adopt(station, moved)
        await self._snapshots.refresh()

    def _end(self, station: Station, trial: Trial) -> None:
        for kept in (self._stations, self._looked_at, self._noted_at):
            kept.pop(trial.id, None)
        if trial.standing.state == RolloutState.PASSED:
            self._ended.append(station)  # its units keep their arm until all have it
        else:
            self._places.drop(station)

    def _let_go(self) -> None:
        for station in tuple(self._ended):
            champion = self._champion_of(station)
            if champion is None or champion.serving in (champion.desired, None):
                self._ended.remove(station)
                self._places.drop(station)

    async def _note(self, station: Station) -> None:
        trial, now = station.running.trial, self._clock()
        if now - self._noted_at.setdefault(trial.id, now) >= _NOTE_SECONDS:
            self._noted_at[trial.id] = now
            await self._write_watched(trial)

    async def _note_all(self) -> None:
        for station in self._stations.values():
            await self._write_watched(station.running.trial)

    async def _write_watched(self, trial: Trial) -> None:
        seconds = trial.standing.watched_seconds
        await asyncio.to_thread(self._registry.note_watched, trial, seconds)


def _progress(station: Station) -> RolloutProgress:
    return progress_of(station.running.trial.standing)
