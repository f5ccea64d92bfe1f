"""Whether more rows would help: runs with a quarter, half and all of the training rows."""

import random
from collections.abc import Sequence

import pytest

from loragate.trainer.errors import RunFileError
from loragate.trainer.evaluation.statistics import Bootstrap, ratio
from loragate.trainer.pipeline.learning_curve import (
    CURVE,
    PICTURE,
    LearningCurve,
    Point,
    learning_curve,
)
from loragate.trainer.training.plan import part_of
from support.training.tiny_runs import TinyRuns, examples, loaded


def test_curve_has_a_point_for_each_share_and_keeps_what_is_trained(runs: TinyRuns) -> None:
    run = loaded(runs, runs.run_file(training={"epochs": 1, "max_steps": 4}))

    curve = learning_curve(run)

    rows = [point.rows for point in curve.points]
    assert [point.share for point in curve.points] == [0.25, 0.5, 1.0]
    assert rows[0] * 4 == pytest.approx(rows[2], abs=2)
    assert all(point.low <= point.loss <= point.high for point in curve.points)
    gain = curve.points[1].loss - curve.points[2].loss
    assert curve.gain.estimate == pytest.approx(gain, abs=1e-6)
    assert (run.folder.root / CURVE).is_file()
    assert (run.folder.root / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert learning_curve(run) == curve  # nothing is trained again
    run.folder.clear()  # all of it was made here, so it may be begun anew
    assert not (run.folder.root / CURVE).exists()


def test_whole_models_have_no_curve(runs: TinyRuns) -> None:
    with pytest.raises(RunFileError, match="compares adapters"):
        learning_curve(loaded(runs, runs.run_file(method={"name": "full"})))


def test_larger_share_has_the_smaller_in_it_and_new_rows_move_none() -> None:
    rows = list(dict.fromkeys(examples(60)))
    quarter, half = part_of(rows, 0.25), part_of(rows, 0.5)
    assert set(quarter) < set(half) < set(rows)
    assert list(part_of(rows, 1.0)) == rows
    assert len(part_of(rows[:3], 0.01)) == 1

    def places(of: Sequence[object]) -> set[object]:
        return set(of)

    more = part_of([*rows, *examples(10, seed=9)], 0.5)
    kept = places(half) & places(more)
    assert len(kept) >= len(half) - 10


def test_rows_that_change_nothing_but_by_chance_are_no_finding() -> None:
    chance = random.Random(1)
    tokens = [20] * 40
    half = [chance.gauss(30, 5) for _ in tokens]
    same = [nats + chance.gauss(0, 2) for nats in half]
    better = [nats - 6 + chance.gauss(0, 2) for nats in half]

    assert not curve_of(half, same, tokens).helps
    assert "cannot be told" in curve_of(half, same, tokens).sentence
    assert curve_of(half, better, tokens).sentence.startswith("More rows would help")
    assert curve_of(better, half, tokens).sentence.startswith("More rows hurt")


def curve_of(half: list[float], whole: list[float], tokens: list[int]) -> LearningCurve:
    one, other = ratio(half, tokens), ratio(whole, tokens)
    gain = Bootstrap(len(tokens), 0.95, 2000, 0).difference(one, other)
    quarter = Point(0.25, 10, one.value + 0.4, 0, 9)
    points = (quarter, Point(0.5, 20, one.value, 0, 9), Point(1, 40, other.value, 0, 9))
    return LearningCurve(points, gain, len(tokens))
