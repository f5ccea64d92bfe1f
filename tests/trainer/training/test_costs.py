"""What a run will take, and what it took."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from loragate.trainer.cost import (
    Estimate,
    MethodEstimate,
    RequestCost,
    check_estimate,
    cost_tables,
    estimate,
)
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import duration
from support.training.tiny_runs import TinyRuns, make_home

PRICES: dict[str, object] = {
    "machine_per_hour": 3600.0,  # a second costs one
    "million_prompt_tokens": 1e6,  # and so does a token
    "million_answer_tokens": 2e6,
    "requests_per_month": 10,
    "few_shot_examples": 2,
    "retrieval_tokens": 100,
    "currency": "EUR",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    root = tmp_path_factory.mktemp("costs")
    return TinyRuns(root, *make_home(root))


@pytest.fixture(scope="module")
def estimated(runs: TinyRuns) -> Estimate:
    """Of the run's own method alone; the others take the same path."""
    settings = runs.run_file(training={"max_steps": 40}, cost=PRICES)
    return estimate(runs.run(settings, "estimated"), runs.splits, methods=())


def priced() -> Estimate:
    lora = MethodEstimate("lora", 10, 1000, 100.0, 10.0, 12.0, 2**30, 12.0)
    full = MethodEstimate("full", problem="training would take about 60.0 GiB of memory")
    requests = (
        RequestCost("the adapter", 20.0, 5.0, 0.5, 50.0),
        RequestCost("8 examples in the prompt", 220.0, 5.0, 2.5, 250.0),
        RequestCost("retrieval of 1500 tokens", 1520.0, 5.0, 15.0, 1500.0),
    )
    return Estimate("lora", (lora, full), requests, "EUR", 6)


def test_estimate_counts_the_steps_and_tokens_of_the_run_that_will_be(
    runs: TinyRuns, estimated: Estimate
):
    schedule = runs.plan(runs.run_file(training={"max_steps": 40})).schedule

    assert (estimated.own.steps, estimated.own.tokens) == (40, schedule.tokens[-1])
    assert estimated.own.seconds > estimated.own.training_seconds > 0
    assert estimated.own.memory_bytes > 100 * 2**20
    assert estimated.own.money == pytest.approx(estimated.own.seconds)


def test_estimate_is_near_what_the_run_then_takes(runs: TinyRuns, estimated: Estimate):
    # Steps of milliseconds on a machine that others use: only the order of magnitude is sure here;
    # the example of the demo is where the estimate has to be within a fifth.
    _, result = runs.train(runs.run_file(training={"max_steps": 40}), "real")

    check = check_estimate(estimated, result)

    assert 0.1 < check.estimated_seconds / check.actual_seconds < 10


def test_request_costs_follow_tokens_and_prices(runs: TinyRuns, estimated: Estimate):
    adapter, few_shot, retrieval = estimated.requests
    rows = runs.plan(runs.run_file()).training

    whole = rows.tokens / len(rows.rows)
    assert adapter.prompt_tokens + adapter.answer_tokens == pytest.approx(whole)
    assert few_shot.prompt_tokens - adapter.prompt_tokens == pytest.approx(2 * whole)
    assert retrieval.prompt_tokens - adapter.prompt_tokens == pytest.approx(100)
    assert adapter.money == pytest.approx(adapter.prompt_tokens + 2 * adapter.answer_tokens)
    assert adapter.per_month == pytest.approx(10 * adapter.money)
    saved = few_shot.money - adapter.money
    assert estimated.pays_off_after == round(estimated.own.money / saved)


def test_estimate_is_kept_with_the_run(estimated: Estimate, tmp_path: Path):
    run = RunFolder(tmp_path)
    assert Estimate.read(run) is None

    estimated.write(run)

    assert Estimate.read(run) == estimated


def test_check_of_a_run_that_stopped_early_compares_the_steps_it_took(
    runs: TinyRuns, tmp_path: Path
):
    _, result = runs.train(runs.run_file(training={"max_steps": 4}), "early")
    half = priced()
    doubled = MethodEstimate(
        "lora",
        tokens=2 * result.training_tokens,
        training_seconds=2.2 * result.training_seconds,
    )

    check = check_estimate(replace(half, methods=(doubled,)), result)

    assert check.error == pytest.approx(0.1)
    assert check.sentence.endswith("10 % too long.")


def test_tables_show_every_method_and_way_and_the_reason_where_one_cannot_be_tried():
    written = StringIO()

    Console(file=written, width=160).print(cost_tables(priced()))

    text = written.getvalue()
    assert "lora ←" in text
    assert "cannot be tried: training would take about 60.0 GiB" in text
    assert "8 examples in the prompt" in text
    assert "11.0 times as long" in text
    assert "after 6 requests" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str):
    assert duration(seconds) == text
