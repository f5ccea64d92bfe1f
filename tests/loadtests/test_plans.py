"""What is asked and when, before anybody asks it."""

from collections import Counter
from itertools import islice, pairwise

import pytest

from loadtests.plans import Ask, Mix, Plan
from loadtests.scenarios import SCENARIOS, Phase, Scenario
from loadtests.target import Adapter, Target, Tenant

TARGET = Target(
    http="http://127.0.0.1:1",
    grpc="127.0.0.1:2",
    tenants=tuple(
        Tenant(name, f"key-{name}", tuple(Adapter(f"adapter-{number}") for number in range(4)))
        for name in ("acme", "globex")
    ),
    flooder=Tenant("noisy", "key-noisy"),
)


def plan_of(*phases: Phase, mix: Mix | None = None, seed: int = 0, seconds: float = 100.0) -> Plan:
    scenario = Scenario("made", "made for a test", phases)
    return Plan(scenario, TARGET, mix or Mix(), rate=10.0, duration_seconds=seconds, seed=seed)


def arrivals(plan: Plan) -> list[Ask]:
    return [ask for timed in plan.phases for ask in plan.arrivals(timed)]


def test_same_seed_asks_the_same_and_another_seed_does_not() -> None:
    phase = Phase("steady", 1.0, rate=1.0)
    assert arrivals(plan_of(phase)) == arrivals(plan_of(phase))
    assert arrivals(plan_of(phase)) != arrivals(plan_of(phase, seed=1))


def test_arrivals_come_at_the_rate_within_their_phase_and_over_both_protocols() -> None:
    plan = plan_of(Phase("slow", 0.5, rate=0.5), Phase("fast", 0.5, rate=2.0))
    slow, fast = (list(plan.arrivals(timed)) for timed in plan.phases)

    assert 200 < len(slow) < 300
    assert 900 < len(fast) < 1100
    assert all(0 <= (ask.at or 0) < 50 for ask in slow)
    assert all(50 <= (ask.at or 0) < 100 for ask in fast)
    protocols = Counter(ask.protocol for ask in fast)
    assert min(protocols["http"], protocols["grpc"]) > 400


def test_gaps_between_arrivals_are_those_of_a_poisson_process() -> None:
    at = [ask.at or 0.0 for ask in arrivals(plan_of(Phase("steady", 1.0, rate=1.0)))]
    gaps = [late - early for early, late in pairwise(at)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.15)


def test_adapters_are_asked_for_by_zipfs_law_and_evenly_where_it_is_off() -> None:
    phase = Phase("steady", 1.0, rate=1.0)
    skewed = Counter(ask.adapter for ask in arrivals(plan_of(phase, mix=Mix(base_share=0.0))))
    first, second = skewed["acme/adapter-0"], skewed["globex/adapter-0"]
    assert first / second == pytest.approx(2.0, rel=0.3)
    assert first / skewed["globex/adapter-3"] > 5

    even = Counter(
        ask.adapter for ask in arrivals(plan_of(phase, mix=Mix(skew=0.0, base_share=0.0)))
    )
    assert len(even) == 8
    assert max(even.values()) < 1.5 * min(even.values())


def test_base_model_gets_its_share() -> None:
    asks = arrivals(plan_of(Phase("steady", 1.0, rate=1.0), mix=Mix(base_share=0.25)))
    assert sum(ask.adapter == "base" for ask in asks) / len(asks) == pytest.approx(0.25, abs=0.05)


def test_flood_comes_from_the_flooder_alone_and_leaves_the_others_as_they_were() -> None:
    quiet = arrivals(plan_of(Phase("same", 1.0, rate=1.0)))
    flooded = arrivals(plan_of(Phase("same", 1.0, rate=1.0, flood=10.0)))

    assert {ask.tenant for ask in flooded if ask.label == "flood"} == {"noisy"}
    others = [ask.at for ask in flooded if ask.label != "flood"]
    assert others == [ask.at for ask in quiet]


def test_streams_are_shared_between_protocols() -> None:
    plan = plan_of(Phase("full", 1.0, streams=5))
    assert [plan.streams_of(plan.phases[0], each) for each in ("http", "grpc")] == [3, 2]


def test_each_adapter_is_asked_cold_and_then_warm_before_the_next_one() -> None:
    plan = plan_of(Phase("pairs", 1.0, streams=1, asking="cold pairs"))
    asks = list(islice(plan.successive(plan.phases[0], "http"), 32))

    assert [ask.label for ask in asks] == ["cold", "warm"] * 16
    assert all(
        cold.adapter == warm.adapter for cold, warm in zip(asks[::2], asks[1::2], strict=True)
    )
    assert len({ask.adapter for ask in asks[:16]}) == 8


def test_clients_leave_and_linger_in_their_shares() -> None:
    asks = arrivals(plan_of(Phase("storm", 1.0, rate=1.0, leaving=0.5, lingering=0.25)))
    clients = Counter(ask.client for ask in asks)
    assert clients["leaves"] / len(asks) == pytest.approx(0.5, abs=0.06)
    assert clients["lingers"] / len(asks) == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_phases_of_a_scenario_take_the_whole_of_its_time(scenario: Scenario) -> None:
    assert sum(phase.share for phase in scenario.phases) == pytest.approx(1.0)
    assert len({phase.name for phase in scenario.phases}) == len(scenario.phases)
