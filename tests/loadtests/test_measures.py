"""Figures from samples whose figures are known."""

import numpy as np
import pytest

from loadtests.measures import (
    goodput,
    knee,
    missed,
    percentiles,
    slope_per_hour,
    stale,
    steps,
    swap_stall,
    tokens_per_second,
)
from loadtests.records import PhaseStart, Swap
from support.load_tests.run_records import answer, run_of


def test_times_are_reckoned_from_the_intended_moment_however_late_the_request_was_sent() -> None:
    late = answer(intended=1.0, frames=(0.9, 1.0), sent=1.8)
    assert late.ttft_seconds == pytest.approx(0.9)
    assert late.e2e_seconds == pytest.approx(1.0)


def test_time_per_output_token_counts_tokens_and_not_frames() -> None:
    three_at_once = answer(frames=(0.1, 0.4), tokens=[1, 3])
    assert three_at_once.tpot_seconds == pytest.approx(0.1)
    assert three_at_once.gaps_seconds == pytest.approx([0.3])


def test_answer_of_one_frame_has_no_time_per_output_token() -> None:
    assert answer(frames=(0.1,)).tpot_seconds is None


def test_intervals_of_percentiles_hold_the_true_value_in_about_95_of_100_cases() -> None:
    draw = np.random.default_rng(7)
    true_p50, true_p95 = np.log(2), np.log(20)
    hits50 = hits95 = 0
    for _ in range(400):
        found = percentiles(draw.exponential(size=200).tolist())
        assert found is not None
        hits50 += found.p50_interval[0] <= true_p50 <= found.p50_interval[1]
        hits95 += found.p95_interval[0] <= true_p95 <= found.p95_interval[1]
    assert 0.92 < hits50 / 400 <= 1.0
    assert 0.90 < hits95 / 400 <= 1.0


def test_objectives_that_an_answer_missed_are_named() -> None:
    objectives = {"ttft_ms": 50.0, "tpot_ms": 150.0, "e2e_ms": 200.0}
    assert missed(answer(), objectives) == ["ttft_ms", "e2e_ms"]


def test_goodput_counts_refusals_against_it_and_leaves_out_clients_that_left() -> None:
    samples = [
        answer(),
        answer(frames=(5.0, 5.1)),
        answer(outcome="refused"),
        answer(outcome="left", client="leaves"),
    ]
    assert goodput(samples, {"ttft_ms": 1000.0}) == pytest.approx(1 / 3)


def test_tokens_count_when_they_arrive_and_not_when_they_were_asked_for() -> None:
    over_the_edge = answer(intended=9.8, frames=(0.1, 0.3))
    assert tokens_per_second([over_the_edge], 0.0, 10.0) == pytest.approx(0.1)


def test_knee_is_the_last_step_before_the_first_that_falls_short() -> None:
    phases = [PhaseStart(f"x{rate}", rate * 10.0, 10.0, float(rate)) for rate in range(4)]
    late = (9.0, 9.1)
    samples = [
        answer(0.0, phase="x0"),
        answer(10.0, phase="x1"),
        answer(20.0, late, phase="x2"),
        answer(30.0, phase="x3"),
    ]
    run = run_of(*phases, *samples, ttft_ms=1000.0)

    bend = knee(steps(run), 0.9)
    assert bend is not None
    assert bend.phase.name == "x1"
    assert knee(steps(run_of(*samples[2:3], *phases[2:3], ttft_ms=1.0)), 0.9) is None


def test_swap_stall_is_the_longest_gap_that_touches_a_move() -> None:
    swap = Swap("acme/support", "v2", asked=1.0, served=1.5)
    run = run_of(
        swap,
        answer(0.9, (0.0, 0.3, 0.4)),
        answer(5.0, (0.0, 0.7)),
    )
    stall = swap_stall(run)
    assert stall is not None
    assert stall.during_seconds == pytest.approx(0.3)
    assert stall.otherwise_seconds == pytest.approx(0.7)


def test_answer_of_a_replaced_version_is_stale_only_once_the_move_is_over() -> None:
    swap = Swap("acme/support", "v2", asked=1.0, served=2.0)
    old = [answer(at, served_by="acme/support@v1") for at in (1.5, 2.5, 4.0)]
    run = run_of(swap, *old, answer(4.5, served_by="acme/support@v2"))
    assert [sample.intended for sample in stale(run, grace_seconds=1.0)] == [4.0]


def test_slope_is_by_the_hour() -> None:
    assert slope_per_hour([0.0, 1800.0, 3600.0], [10.0, 15.0, 20.0]) == pytest.approx(10.0)
