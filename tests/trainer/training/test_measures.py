"""What a run is to be measured by, checked before it learns anything."""

import json
from pathlib import Path

import pytest

from loragate.adapters.errors import LoragateError
from loragate.trainer.pipeline.checks import require_sound
from loragate.trainer.pipeline.test_sets import more_tests, sources_of
from support.training.examples import write_jsonl
from support.training.tiny_runs import TinyRuns, loaded

ROWS = [{"prompt": f"What is plant {n}?", "completion": "tree"} for n in range(3)]

WRONG: list[tuple[dict[str, object], str]] = [
    ({"require": ["acuracy >= 0.5"]}, "'acuracy >= 0.5' .*names no metric"),
    ({"require": ["reads_well >= 0.5"]}, "names no metric"),
    ({"metrics": {"reads_well": {"function": "no_module_here:f"}}}, "cannot be imported"),
    ({"metrics": {"as_schema": {"schema": "no.json"}}}, "schema: .*no.json cannot be used"),
    ({"metrics": {"loss": {"pattern": "a"}}}, r"evaluation.metrics.loss\]: the name 'loss' is"),
    ({"rubric": {"legal": {"question": "Safe?"}}}, "anchors do not say what 1 and 5 mean"),
    ({"rubric": {"tone": {"low": 0}}}, "anchors do not say what 0 and 5 mean"),
    ({"rubric": {"legal": {"anchors": {"1": "no"}}}}, "do not say what 5 means"),
    ({"rubric": {"item": {}}}, r"evaluation.rubric.item\]: the name 'item' is taken"),
    ({"require": ["loss on nowhere <= 1"]}, "'loss on nowhere <= 1' .*there are far, german"),
    ({"benchmarks": {"german": "no.jsonl"}}, "no.jsonl"),
    ({"benchmarks": {"far": "german.jsonl"}}, r"evaluation.benchmarks.far\]: .* taken"),
    ({"benchmarks": {"german": "empty.jsonl"}}, "no row to use in .*empty.jsonl"),
]


@pytest.mark.parametrize(("evaluation", "reason"), WRONG)
def test_what_cannot_be_measured_is_named_before_the_training(
    runs: TinyRuns, evaluation: dict[str, object], reason: str
):
    write_jsonl(runs.root / "german.jsonl", ROWS)
    (runs.root / "empty.jsonl").write_text("")
    tables = {"benchmarks": {"german": "german.jsonl"}, **evaluation}

    with pytest.raises(LoragateError, match=reason):
        require_sound(loaded(runs, runs.run_file(evaluation=tables)), publishes=True)


def test_requirements_on_own_metrics_ratings_and_benchmarks_are_sound(runs: TinyRuns):
    write_jsonl(runs.root / "german.jsonl", ROWS)
    (runs.root / "answer.json").write_text(json.dumps({"type": "object"}))
    evaluation: dict[str, object] = {
        "benchmarks": {"german": "german.jsonl"},
        "metrics": {"as_schema": {"schema": "answer.json"}},
        "rubric": {"brand_voice": {}},
        "require": ["as_schema on german >= 0.5", "rated_brand_voice >= 4", "loss on far <= 9"],
    }

    require_sound(loaded(runs, runs.run_file(evaluation=evaluation)), publishes=False)


def test_a_benchmark_is_a_test_set_of_its_name_without_rows_that_were_trained_on(
    runs: TinyRuns, tmp_path: Path
):
    write_jsonl(runs.root / "questions.jsonl", ROWS)
    evaluation: dict[str, object] = {"benchmarks": {"plants": "questions.jsonl"}}
    run = loaded(runs, runs.run_file(evaluation=evaluation, data={"system_prompt": "Be short."}))

    [source] = sources_of(run)
    found = more_tests(run, [source], lambda row: "plant 1" in row.prompt)

    assert (source.name, source.title) == ("plants", "benchmark plants")
    assert [row.messages[1].content for row in found["plants"]] == [
        "What is plant 0?",
        "What is plant 2?",
    ]
    assert {row.messages[0].content for row in found["plants"]} == {"Be short."}
