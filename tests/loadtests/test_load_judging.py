"""When a run may be reported, and when it passes."""

from pathlib import Path

import pytest

from loadtests.judging import MET, MISSED, REFUSED, ObjectivesError, judge, read_objectives
from loadtests.records import PhaseStart, Run, ServerTick, Stop, Swap, gather
from loadtests.scenarios import SCENARIOS
from support.load_tests.run_records import LIMITS, answer, run_of

OBJECTIVES = Path(__file__).parents[2] / "loadtests" / "objectives.toml"


def only_refusal(run: Run) -> str:
    verdict = judge(run)
    assert verdict.exit_code == REFUSED
    (reason,) = verdict.refusals
    return reason


def test_run_that_meets_its_objectives_passes_and_one_that_misses_one_does_not() -> None:
    good = run_of(answer(), least_goodput=1.0, most_failed=0, ttft_ms=200)
    assert judge(good).exit_code == MET
    late = run_of(answer(), least_goodput=1.0, most_failed=0, ttft_ms=50)
    assert judge(late).exit_code == MISSED


def test_no_report_where_the_client_used_up_its_core() -> None:
    assert "97% of a core" in only_refusal(run_of(answer(), cpu=0.97))


def test_no_report_where_the_clients_loop_woke_up_late() -> None:
    assert "late by 40.0 ms" in only_refusal(run_of(answer(), lag=0.04))


def test_lateness_is_judged_beside_the_gaps_that_were_measured() -> None:
    slow_stream = answer(frames=(1.0, 2.0, 3.0))
    assert judge(run_of(slow_stream, lag=0.04)).refusals == []


def test_no_report_where_the_client_once_stood_still() -> None:
    run = run_of(answer())
    run.client[3].lags_seconds[0] = 3.0
    assert "stood still for 3000 ms" in only_refusal(run)


def test_no_report_of_a_run_that_was_broken_off() -> None:
    run = run_of(answer())
    run.is_complete = False
    assert "broken off" in only_refusal(run)


def test_no_report_of_nothing() -> None:
    assert "No request" in only_refusal(run_of())


@pytest.mark.parametrize(
    ("outcome", "exit_code"),
    [("ok", MET), ("refused", MET), ("left", MET), ("failed", MISSED), ("unreachable", MISSED)],
)
def test_only_what_was_not_answered_or_properly_refused_is_a_failure(
    outcome: str, exit_code: int
) -> None:
    assert judge(run_of(answer(outcome=outcome), most_failed=0)).exit_code == exit_code


def test_answer_of_a_replaced_version_misses_the_objective() -> None:
    swap = Swap("acme/support", "v2", asked=0.0, served=0.1)
    old = answer(5.0, served_by="acme/support@v1")
    assert judge(run_of(swap, old, most_stale=0)).exit_code == MISSED
    new = answer(5.0, served_by="acme/support@v2")
    assert judge(run_of(swap, new, most_stale=0)).exit_code == MET


def test_alias_that_never_moved_misses_the_objective() -> None:
    moved = Swap("acme/support", "v2", asked=1.0, served=1.2)
    stuck = Swap("acme/support", "v1", asked=6.0, served=None)
    assert judge(run_of(answer(), moved, least_swaps=1)).exit_code == MET
    assert judge(run_of(answer(), moved, stuck, least_swaps=1)).exit_code == MISSED


def test_request_lost_in_a_drain_misses_the_objective_and_one_that_came_after_does_not() -> None:
    stop = Stop(at=5.0, exited=6.0, ready=[(5.5, 503)], live=[(5.5, 200)])
    before = answer(4.9, frames=(0.2, 0.4))
    turned_away = answer(5.2, outcome="refused")
    limits = {"most_lost_in_drain": 0.0, "most_seconds_to_exit": 2.0}
    assert judge(run_of(before, turned_away, stop, **limits)).exit_code == MET

    lost = answer(4.9, frames=(0.2, 0.4), outcome="failed")
    assert judge(run_of(lost, stop, **limits)).exit_code == MISSED


@pytest.mark.parametrize(("ready", "live"), [([(6.5, 200)], []), ([(6.5, 503)], [(6.5, 503)])])
def test_probes_that_lie_during_a_drain_miss_the_objective(
    ready: list[tuple[float, int]], live: list[tuple[float, int]]
) -> None:
    stop = Stop(at=5.0, exited=7.0, ready=ready, live=live)
    assert judge(run_of(answer(), stop, most_seconds_to_exit=10)).exit_code == MISSED


def test_work_left_in_the_server_after_a_storm_misses_the_objective() -> None:
    busy = ServerTick(1.0, running=3, queued=0, adapter_loads=0, rss_bytes=None)
    idle = ServerTick(2.0, running=0, queued=0, adapter_loads=0, rss_bytes=None)
    assert judge(run_of(answer(), busy, idle, most_seconds_to_idle=5)).exit_code == MET
    assert judge(run_of(answer(), busy, most_seconds_to_idle=5)).exit_code == MISSED


def test_memory_that_creeps_misses_the_objective() -> None:
    def ticks(mib_an_hour: float) -> list[ServerTick]:
        return [
            ServerTick(at, 0, 0, 0, round((100 + mib_an_hour * at / 3600) * 2**20))
            for at in range(10)
        ]

    limit = {"most_growth_mib_per_hour": 50.0}
    assert judge(run_of(answer(), *ticks(10), **limit)).exit_code == MET
    assert judge(run_of(answer(), *ticks(500), **limit)).exit_code == MISSED


def test_others_under_a_flood_are_compared_with_the_quiet_before() -> None:
    phases = [PhaseStart("quiet", 0.0, 5.0, 1.0), PhaseStart("flooded", 5.0, 5.0, 11.0)]
    quiet = answer(1.0, phase="quiet")
    slow_flood = answer(6.0, (3.0, 3.1), phase="flooded", label="flood")
    same, slower = answer(6.0, phase="flooded"), answer(6.0, (0.5, 0.6), phase="flooded")
    limit = {"most_flooded_ratio": 2.0}
    assert judge(run_of(*phases, quiet, slow_flood, same, **limit)).exit_code == MET
    assert judge(run_of(*phases, quiet, slow_flood, slower, **limit)).exit_code == MISSED


def test_cold_requests_that_loaded_nothing_miss_the_objective() -> None:
    cold = [answer(at, label="cold") for at in (1.0, 2.0, 3.0)]

    def ticks(loads: float) -> list[ServerTick]:
        return [ServerTick(0.5, 0, 0, 0, None), ServerTick(9.0, 0, 0, loads, None)]

    assert judge(run_of(*cold, *ticks(3), least_cold_loads=0.9)).exit_code == MET
    assert judge(run_of(*cold, *ticks(0), least_cold_loads=0.9)).exit_code == MISSED


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_objectives_that_come_with_the_suite_can_be_read(scenario: str) -> None:
    assert read_objectives(OBJECTIVES, scenario).keys() >= LIMITS.keys()


def test_objective_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    wrong = tmp_path / "objectives.toml"
    wrong.write_text("[steady]\nleast_godput = 1\n")
    with pytest.raises(ObjectivesError, match="least_godput"):
        read_objectives(wrong, "steady")


def test_file_that_is_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="header"):
        gather([answer()])
