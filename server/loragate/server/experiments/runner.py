"""Carries rollouts and experiments on: looks at each about once a second, and does what follows.

The registry says where a trial stands. A change made there by anybody reaches this server with
the next snapshot; a change of this server's own is written there first.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from loragate.adapters.errors import (
    AliasMovedOn,
    AliasNotFound,
    StoreError,
    TrialMovedOn,
    TrialNotFound,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.names import CHAMPION, AdapterVersion
from loragate.adapters.registry.clock import WallClock, wall_clock
from loragate.adapters.registry.listings import AliasVersions
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.snapshot import SnapshotWatcher
from loragate.adapters.registry.trial_records import Trial
from loragate.server.concurrency.daemon_threads import in_daemon_thread
from loragate.server.concurrency.pools import in_pool
from loragate.server.concurrency.retries import Backoff
from loragate.server.concurrency.tasks import BackgroundTasks
from loragate.server.core import ACTOR
from loragate.server.errors import AdapterUnavailable, EngineDead, UnreadablePlan
from loragate.server.experiments.plan_bounds import LONGEST_REASON
from loragate.server.experiments.plans import CHALLENGER, ExperimentPlan, plan_of
from loragate.server.experiments.rollout_plan import (
    RolloutPlan,
    RolloutProgress,
    RolloutState,
    abort,
    fell_back,
    look,
    progress_of,
    roll_back,
    status_of,
    win,
)
from loragate.server.experiments.running import RunningTrial
from loragate.server.experiments.trial_router import ActiveTrial, TrialRouter
from loragate.server.experiments.verdict import Verdict, decide

logger = logging.getLogger(__name__)
_NOTE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_ROUND_PAUSE_SECONDS = 5.0
_BACKOFF = Backoff(first=1.0, most=60.0)  # of one trial
_MOST_RECOUNTS = 2  # at once
_MOST_FAILURES = 8  # in about two minutes, by that
# The server's own faults, which no trial is ended for.
_NOT_THE_TRIALS = (StoreError, EngineDead, asyncio.CancelledError)


@dataclass(slots=True)
class _Trouble:
    """A trial that has failed since it last went well: so often by its own fault, and not to be
    tried again before `not_before`, by the monotonic clock.
    """

    delay: float | None = None
    not_before: float = 0.0
    own_failures: int = 0


class TrialRunner:
    """Follows the registry; `running` owns its tasks.

    Each trial fails for itself: it is tried again after a pause that grows, no other one waits for
    it, and one that fails by its own fault again and again is ended with the reason.
    """

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotWatcher,
        trial_router: TrialRouter,
        warm: Callable[[AdapterVersion], Awaitable[None]],
        wake: asyncio.Event,
        look_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        now: WallClock = wall_clock,
        pool: Executor | None = None,
    ) -> None:
        """`warm` loads a version and raises AdapterUnavailable where that cannot be. `wake` is set
        whenever there is a new snapshot. The registry is called, and figures are computed, in the
        threads of `pool`.
        """
        self._pool = pool
        # Each takes a thread and a connection of its own.
        self._recounts = asyncio.Semaphore(_MOST_RECOUNTS)
        self._registry = registry
        self._snapshots = snapshots
        self._trial_router = trial_router
        self._warm = warm
        self._wake = wake
        self._look_seconds = look_seconds
        self._clock = clock
        self._now = now
        self._revision = -1
        self._under_way: dict[int, Trial] = {}  # as the registry said last
        self._news: dict[int, Trial] = {}  # of these, what its active trial does not know yet
        self._active: dict[int, ActiveTrial] = {}  # by the trial's id, of those that have begun
        self._ended: list[ActiveTrial] = []  # the winner does not serve yet
        self._looked_at: dict[int, float] = {}
        self._noted_at: dict[int, float] = {}
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._not_prepared: dict[int, BaseException] = {}
        self._troubles: dict[int, _Trouble] = {}

    @asynccontextmanager
    async def running(self, background: BackgroundTasks) -> AsyncIterator["TrialRunner"]:
        # The database may be away, and what is in memory goes on: so it is asked again soon.
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_ROUND_PAUSE_SECONDS)
        looking = background.repeating(
            "trials",
            self._round,
            wait=self._pause,
            is_vital=True,  # a version that fails its gates meanwhile is not taken back
            is_prompt=True,
            backoff=backoff,
        )
        try:
            async with looking:
                yield self
        finally:
            for task in tuple(self._preparing.values()):
                task.cancel()
            await asyncio.gather(*self._preparing.values(), return_exceptions=True)
            await self._note_all()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._look_seconds):
                await self._wake.wait()

    async def _round(self) -> None:
        self._wake.clear()
        await self._read_news()
        for trial in tuple(self._under_way.values()):
            await self._carry_on(trial)
        for trial_id in self._active.keys() - self._under_way.keys():
            await self._conclude(trial_id)
        self._drop_what_is_over()  # of those that ended while they were prepared, too
        self._drop_ended()

    async def _read_news(self) -> None:
        revision = self._snapshots.current.revision
        if revision == self._revision:
            return
        under_way = await in_pool(self._pool, self._registry.trials.under_way)
        self._under_way = {trial.id: trial for trial in under_way}
        self._news = dict(self._under_way)
        for kept in (self._troubles, self._not_prepared):
            for trial_id in kept.keys() - self._under_way.keys():
                del kept[trial_id]
        self._revision = revision

    async def _carry_on(self, trial: Trial) -> None:
        """One trial's part of a round, outside of which its failure is not felt.

        Raises StoreError: the database is away, for all of them.
        """
        if (error := self._not_prepared.pop(trial.id, None)) is not None:
            await self._stumble(trial, error)
            return
        trouble = self._troubles.get(trial.id)
        if trouble is not None and self._clock() < trouble.not_before:
            return
        active = self._active.get(trial.id)
        if active is None:
            if trial.id not in self._preparing:
                self._prepare(trial, self._begin(trial))
            return
        try:
            if (news := self._news.get(trial.id)) is not None:
                plan_of(news)
                self._adopt(active, news)
                await self._check_champion(active)
                self._news.pop(trial.id, None)
            if trial.id in self._active:
                await self._look(active)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - one trial's mistake must not end all others
            await self._stumble(trial, error)
        else:
            self._troubles.pop(trial.id, None)

    async def _stumble(self, trial: Trial, error: BaseException) -> None:
        """Tries again later, or ends the trial where the fault is its own and it will not mend."""
        if isinstance(error, UnreadablePlan):
            await self._end_failed(trial, str(error))
            return
        trouble = self._troubles.setdefault(trial.id, _Trouble())
        trouble.delay = _BACKOFF.following(trouble.delay, uptime=0.0)
        trouble.not_before = self._clock() + trouble.delay
        trouble.own_failures += not isinstance(error, _NOT_THE_TRIALS)
        self._looked_at.pop(trial.id, None)  # nobody watches meanwhile
        said = f"{type(error).__name__}: {error}"
        logger.error(
            "%s of %s waits %.0f s: %s", trial, trial.adapter, trouble.delay, said, exc_info=error
        )
        if trouble.own_failures >= _MOST_FAILURES:
            await self._end_failed(trial, f"it failed {trouble.own_failures} times, with {said}")

    async def _end_failed(self, trial: Trial, why: str) -> None:
        active = self._active.get(trial.id)
        before = trial.status if active is None else active.running.trial.status
        status = replace(
            before,
            state=str(RolloutState.ABORTED),
            watched_seconds=before.watched_seconds if math.isfinite(before.watched_seconds) else 0,
            reason=why[:LONGEST_REASON],
        )
        seen = trial if active is None else active.running.trial
        end = partial(self._registry.trials.move, seen, status, ACTOR, is_over=True)
        try:
            await in_pool(self._pool, end)
        except (TrialMovedOn, TrialNotFound):
            self._revision = -1  # somebody was faster
            return
        logger.error("%s of %s was ended: %s", trial, trial.adapter, why)
        self._forget(trial.id)
        await self._snapshots.refresh()

    def _forget(self, trial_id: int) -> None:
        for kept in (
            self._under_way,
            self._news,
            self._active,
            self._looked_at,
            self._noted_at,
            self._troubles,
            self._not_prepared,
        ):
            kept.pop(trial_id, None)
        self._drop_what_is_over()

    def _drop_what_is_over(self) -> None:
        for active in self._trial_router.active_trials():
            if active.running.trial.id not in self._under_way and active not in self._ended:
                self._trial_router.drop(active)

    def _prepare(self, trial: Trial, work: Awaitable[None]) -> None:
        async def prepare() -> None:
            try:
                await work
            except (Exception, asyncio.CancelledError) as error:
                self._not_prepared[trial.id] = error  # for the next round to say
                if isinstance(error, asyncio.CancelledError):
                    raise
            finally:
                del self._preparing[trial.id]
                self._wake.set()

        self._preparing[trial.id] = asyncio.create_task(prepare(), name=f"prepare {trial}")

    async def _begin(self, trial: Trial) -> None:
        """Loads the arms before the first request, so that none waits for that or finds them bad;
        but who has an arm already, from before a restart, keeps it meanwhile.
        """
        running = RunningTrial(trial, plan_of(trial))
        async with self._recounts:
            # Where there were millions of requests it takes minutes, in which other trials must be
            # looked at, and a server that stops must not wait for it.
            has_begun = await in_daemon_thread(partial(self._recount, running))
        active = ActiveTrial(running, self._wake.set)
        is_new = trial.status.step == 0 and not has_begun
        if not is_new:
            self._trial_router.put(active)
        await self._warm_arms(active)
        self._active[trial.id] = active
        self._trial_router.put(active)
        logger.info("%s of %s is under way", trial, trial.adapter)

    def _recount(self, running: RunningTrial) -> bool:
        """Whether there was any request of this step. Blocks."""
        trial, rule = running.trial, running.counting_rule
        with self._registry.observations.step_figures(trial.id, trial.status.step, rule) as figures:
            requests = running.recount(figures)
            running.remember(figures)
        return requests > 0

    async def _warm_arms(self, active: ActiveTrial) -> None:
        for arm in active.running.trial.arms:
            if arm.version is None:
                continue
            try:
                await self._warm(arm.version)
            except AdapterUnavailable as error:
                if arm.name != CHAMPION and error.code != "no_adapter_slot":
                    active.mark_down(arm.name, str(error))
            except EngineDead as error:
                logger.info("%s is not loaded ahead: %s", arm.version, error)
            else:
                active.down.pop(arm.name, None)

    def _adopt(self, active: ActiveTrial, trial: Trial) -> None:
        """Goes on as the registry says."""
        running, before = active.running, active.running.trial.status
        if trial.status.step != before.step:
            active.running = RunningTrial(trial, running.plan)
            return
        watched = max(trial.status.watched_seconds, before.watched_seconds)
        running.trial = replace(trial, status=replace(trial.status, watched_seconds=watched))
        is_resumed = before.state == RolloutState.PAUSED != trial.status.state
        if is_resumed and active.down and trial.id not in self._preparing:
            self._prepare(trial, self._warm_arms(active))

    async def _check_champion(self, active: ActiveTrial) -> None:
        """Ends a trial whose champion somebody has replaced: there is nothing to compare with."""
        versions = [arm.version for arm in active.running.trial.arms]
        champion = self._champion_of(active)
        if active.champion is None or champion is None or champion.desired in versions:
            return
        why = f"the champion was changed to {champion.desired.version} meanwhile"
        await self._move(active, abort(_progress(active), why))

    def _champion_of(self, active: ActiveTrial) -> AliasVersions | None:
        adapter = active.running.trial.adapter
        listing = self._snapshots.current.adapter(adapter.tenant, adapter.name)
        return None if listing is None else listing.aliases.get(CHAMPION)

    async def _look(self, active: ActiveTrial) -> None:
        trial = active.running.trial
        seconds = self._seconds_since_last_look(trial.id)
        if active.down and trial.id not in self._preparing:
            await self._hold(active)
            return
        plan, running = active.running.plan, active.running
        if isinstance(plan, ExperimentPlan) and not plan.is_automatic:
            return
        tallies = running.tallies(self._now())
        verdicts = await in_pool(self._pool, running.judged, tallies)
        match plan:
            case RolloutPlan():
                await self._step(active, plan, seconds, verdicts[CHALLENGER])
            case ExperimentPlan():
                if trial.status.state != RolloutState.PAUSED:
                    await self._decide(active, verdicts)

    def _seconds_since_last_look(self, trial_id: int) -> float:
        now = self._clock()
        seconds = now - self._looked_at.get(trial_id, now)
        self._looked_at[trial_id] = now
        return seconds

    async def _step(
        self, active: ActiveTrial, plan: RolloutPlan, seconds: float, verdict: Verdict
    ) -> None:
        before = _progress(active)
        after = look(plan, before, seconds, verdict)
        if (after.state, after.step) == (before.state, before.step):
            trial = active.running.trial
            active.running.trial = replace(trial, status=status_of(after))
            await self._note(active)
            return
        promote = CHALLENGER if after.state is RolloutState.PASSED else None
        await self._move(active, after, promote)

    async def _decide(self, active: ActiveTrial, verdicts: Mapping[str, Verdict]) -> None:
        """Ends an automatic experiment by its verdict: the first arm that passes wins."""
        decision = decide(verdicts)
        if decision is None:
            return
        arm, why = decision
        progress = _progress(active)
        await self._move(active, win(progress, why) if arm else roll_back(progress, why), arm)

    async def _hold(self, active: ActiveTrial) -> None:
        progress = _progress(active)
        if progress.state is RolloutState.PAUSED:
            return
        arms = "; ".join(f"{arm}: {why}" for arm, why in active.down.items())
        await self._move(active, fell_back(progress, f"the champion answers instead of {arms}"))

    async def _move(
        self, active: ActiveTrial, progress: RolloutProgress, promote: str | None = None
    ) -> None:
        trial = active.running.trial
        move = partial(
            self._registry.trials.move,
            trial,
            status_of(progress),
            ACTOR,
            is_over=progress.state.is_over,
            promote=promote,
        )
        try:
            moved = await in_pool(self._pool, move)
        except TrialMovedOn:
            self._revision = -1  # somebody was faster: look again before anything else
            return
        except (AliasMovedOn, AliasNotFound, VersionRetired, VersionNotFound) as error:
            await self._move(active, abort(_progress(active), str(error)))
            return
        logger.info("%s of %s is %s: %s", trial, trial.adapter, progress.state, progress.reason)
        if progress.state.is_over:
            self._end(active, moved)
        else:
            self._adopt(active, moved)
        await self._snapshots.refresh()

    async def _conclude(self, trial_id: int) -> None:
        """Somebody else has ended it."""
        try:
            trial = await in_pool(self._pool, self._registry.trials.get, trial_id)
        except TrialNotFound:
            self._forget(trial_id)
        else:
            self._end(self._active[trial_id], trial)

    def _end(self, active: ActiveTrial, trial: Trial) -> None:
        if trial.status.state == RolloutState.PASSED:
            self._ended.append(active)  # its units keep their arm until all have it
        self._forget(trial.id)

    def _drop_ended(self) -> None:
        for active in tuple(self._ended):
            champion = self._champion_of(active)
            if champion is None or champion.serving in (champion.desired, None):
                self._ended.remove(active)
                self._trial_router.drop(active)

    async def _note(self, active: ActiveTrial) -> None:
        trial, now = active.running.trial, self._clock()
        if now - self._noted_at.setdefault(trial.id, now) >= _NOTE_SECONDS:
            self._noted_at[trial.id] = now
            await self._write_watched(trial)

    async def _note_all(self) -> None:
        try:
            for active in self._active.values():
                await self._write_watched(active.running.trial)
        except Exception:
            logger.exception("how long trials were watched since they were noted is lost")

    async def _write_watched(self, trial: Trial) -> None:
        seconds = trial.status.watched_seconds
        await in_pool(self._pool, self._registry.trials.note_watched, trial, seconds)


def _progress(active: ActiveTrial) -> RolloutProgress:
    return progress_of(active.running.trial.status)
