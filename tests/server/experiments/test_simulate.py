"""The statistics on made-up traffic, with seeds: a smaller version of the documented tables."""

import math
from pathlib import Path

import pytest

from bench.simulate import (
    BEGIN,
    END,
    Null,
    Truth,
    nulls,
    truths,
    units_to_verdict,
    write,
    wrong_rate,
)

RUNS, UNITS = 150, 400
SOUND = [null for null in nulls() if null.alpha is not None]


def largest_by_chance(alpha: float) -> float:
    """What so many runs exceed about once in a thousand times, if the true rate is alpha."""
    return alpha + 3.1 * math.sqrt(alpha * (1 - alpha) / RUNS)


@pytest.mark.parametrize("null", SOUND, ids=lambda null: f"{null.name}: {null.wrong}")
def test_wrong_verdicts_stay_within_alpha_with_a_look_at_every_sample(null: Null):
    assert null.alpha is not None
    assert wrong_rate(null, RUNS, UNITS) <= largest_by_chance(null.alpha)


def test_what_is_done_against_peeking_and_for_units_is_needed():
    by_name = {null.name: null for null in nulls()}
    peeking = by_name["same tokens/s, with a t-test at p < 0.05"]
    naive = by_name["rating, 10 from each user, each counted by itself"]

    assert wrong_rate(peeking, RUNS, UNITS) > largest_by_chance(0.05)
    assert wrong_rate(naive, RUNS, UNITS) > largest_by_chance(0.05)


@pytest.mark.parametrize(
    "truth",
    [truth for truth in truths() if truth.truth in ("20 % fewer", "1 lower", "10 %", "1.6x")],
    ids=lambda truth: f"{truth.gate} {truth.truth}",
)
def test_large_differences_are_found_soon(truth: Truth):
    median, _, right = units_to_verdict(truth, runs=10)

    assert median < 400
    assert right == 1.0


def test_tables_are_written_between_the_marks(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    write(page, "new")

    assert page.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="add them"):
        write(page, "new")
