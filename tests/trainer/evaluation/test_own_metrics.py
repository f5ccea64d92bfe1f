"""Metrics of one's own."""

import json
import sys
from pathlib import Path

import pytest

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.own_metrics import own_metrics
from loragate.trainer.evaluation.report import render_report
from loragate.trainer.evaluation.scores import Answer
from loragate.trainer.settings import EvaluationSettings, OwnMetricSettings
from support.training.evaluations import evaluation_of
from support.training.examples import example
from support.training.finished_runs import examples

ROWS = [example("order?", "No. 12"), example("when?", "at 9")]


def value_of(settings: OwnMetricSettings, root: Path, *answers: str) -> float:
    [metric] = own_metrics({"mine": settings}, root)
    return metric.statistic(ROWS, [Answer(text, True, 1) for text in answers]).value


def test_pattern_counts_the_answers_that_have_it(tmp_path: Path):
    assert value_of(OwnMetricSettings(pattern=r"\bNo\. \d+"), tmp_path, "No. 7", "7") == 0.5


def test_schema_counts_the_answers_that_follow_it(tmp_path: Path):
    (tmp_path / "s.json").write_text(json.dumps({"type": "object", "required": ["id"]}))
    settings = OwnMetricSettings(schema=str(tmp_path / "s.json"))

    assert value_of(settings, tmp_path, '{"id": 1}', "[]") == 0.5
    assert value_of(settings, tmp_path, "no JSON", "{}") == 0


def test_function_is_called_with_prompt_wanted_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_own_metric.py").write_text(
        "def score(prompt, wanted, answer):\n"
        "    return len(prompt) + len(wanted) + len(answer)\n"
        "def broken(prompt, wanted, answer):\n"
        "    raise KeyError('x')\n"
        "def nothing(prompt, wanted, answer):\n"
        "    return float('nan')\n"
    )

    assert value_of(OwnMetricSettings(function="my_own_metric:score"), tmp_path, "a", "a") == 7
    for name, reason in (("broken", "asked 'order.*KeyError"), ("nothing", "nan is no number")):
        with pytest.raises(EvaluationError, match=reason):
            value_of(OwnMetricSettings(function=f"my_own_metric:{name}"), tmp_path, "a", "b")


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("mine", OwnMetricSettings(), "give one of"),
        ("mine", OwnMetricSettings(pattern="a", function="b:c"), "give one of"),
        ("mine", OwnMetricSettings(pattern="("), "is no pattern"),
        ("mine", OwnMetricSettings(function="no_such_module_here:f"), "cannot be imported"),
        ("mine", OwnMetricSettings(function="json"), "module:function"),
        ("mine", OwnMetricSettings(schema="/no/such/file"), "cannot be used"),
        ("accuracy", OwnMetricSettings(pattern="a"), "is taken"),
        ("rated_tone", OwnMetricSettings(pattern="a"), "those of ratings"),
        ("Mine", OwnMetricSettings(pattern="a"), "is no name"),
    ],
)
def test_metric_that_cannot_work_is_refused_by_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: OwnMetricSettings,
    reason: str,
):  # fmt: skip
    monkeypatch.setattr(sys, "path", list(sys.path))

    with pytest.raises(EvaluationError, match=rf"evaluation.metrics.{name}.*{reason}"):
        own_metrics({name: settings}, tmp_path)


async def test_own_metric_is_in_the_report_and_can_be_required(base, adapter):
    settings = EvaluationSettings(
        counterfactual_rows=0,
        resamples=100,
        metrics={"polite_end": OwnMetricSettings(pattern="please$")},
        require=("polite_end - base >= 0.5",),
    )

    found = await evaluation_of(
        base,
        adapter,
        examples()[:3],
        lambda model, _: "" if model == "base" else "please",
        settings,
    )

    assert found.requirements.holds
    assert "Polite end" in render_report(found)
