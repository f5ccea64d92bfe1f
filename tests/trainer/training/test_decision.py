"""Which way to take: quality and cost side by side, before a run and after it."""

import asyncio
import html
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from loragate.trainer.cost import Estimate, MethodEstimate, RequestCost
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.report import render_report
from loragate.trainer.pipeline.decision import Decision, Option, decide, trainings
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.settings import EvaluationSettings
from support.models.tiny_llama import write_base
from support.training.evaluations import evaluation_of
from support.training.finished_runs import examples, write_adapter, write_run

PRICES = """
[evaluation]
contenders = ["retrieval", "tfidf"]
[cost]
currency = "EUR"
machine_per_hour = 3600.0
million_prompt_tokens = 1e6
million_answer_tokens = 1e6
requests_per_month = 10
"""


def estimated(chosen: str = "lora") -> Estimate:
    lora = MethodEstimate("lora", 10, 1000, 100.0, 10.0, 12.0, 2**30, 12.0)
    full = MethodEstimate("full", 10, 1000, 20.0, 50.0, 90.0, 2**32, 90.0)
    requests = (
        RequestCost("the adapter", 20.0, 5.0, 25.0, 250.0),
        RequestCost("8 examples in the prompt", 220.0, 5.0, 225.0, 2250.0),
        RequestCost("retrieval of 1500 tokens", 1520.0, 5.0, 1525.0, 15250.0),
    )
    return Estimate(chosen, (lora, full), requests, "EUR", 6)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    root = tmp_path_factory.mktemp("decision")
    base, adapter = write_base(root / "tiny"), write_adapter(root / "adapter")
    answers = {row.prompt: row.answer for row in examples()}
    settings = EvaluationSettings(counterfactual_rows=0, resamples=100, require=())
    return asyncio.run(
        evaluation_of(
            base, adapter, examples(),
            lambda model, asked: "outage" if model == "base" else answers[asked],
            settings, train=examples(),
        )
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path, write_base(tmp_path / "tiny"), PRICES)


def by_way(decision: Decision) -> dict[str, Option]:
    return {each.way.split(",")[-1].strip(): each for each in decision.options}


def test_before_an_evaluation_the_table_says_how_to_get_the_quality(run: RunFolder):
    decision = decide(run, estimated(), run.resolved())

    found = by_way(decision)
    assert not any(each.is_measured for each in decision.options)
    assert found["asked plainly"].quality == "after `loragate train`"
    assert found["4 examples in the prompt"].quality == "name 'examples' in [evaluation] contenders"
    assert "[method] name = 'full'" in decision.options[-1].quality
    assert found["4 rows retrieved"].month_money == pytest.approx(15250)
    assert (decision.options[-1].training, decision.options[-1].training_money) == (
        "1 min 30 s",
        90,
    )
    assert "ask for this table again" in decision.sentence


def test_after_an_evaluation_quality_and_cost_stand_side_by_side(
    run: RunFolder, evaluation: Evaluation
):
    evaluation.write(run.evaluation)

    decision = decide(run, estimated(), run.resolved())

    found = by_way(decision)
    adapter = found["an adapter (lora)"]
    assert adapter.quality.startswith("100.0 % (")
    assert found["asked plainly"].quality.startswith("33.3 % (")
    assert found["logistic regression"].is_measured
    assert found["logistic regression"].request_money == 0
    assert (adapter.training, adapter.training_money) == ("3 s", 3.0)  # which the run took
    assert decision.metric == "Accuracy"
    written = StringIO()
    Console(file=written, width=200).print(decision.table())
    page = decision.write(run).read_text()
    for text in ("100.0 % (", "full fine-tuning: all weights learnt", "about a second"):
        assert text in written.getvalue()
        assert text in html.unescape(page)
    assert not list(run.others())  # the page is the run's own
    assert "src=" not in page


def test_the_figures_of_a_full_training_are_those_of_full_fine_tuning(
    run: RunFolder, evaluation: Evaluation
):
    evaluation.write(run.evaluation)

    decision = decide(run, estimated("full"), run.resolved())

    assert decision.options[-1].quality.startswith("100.0 % (")
    assert decision.options[-2].quality == "train a run with [method] name = 'lora'"


def test_the_report_says_what_training_took_and_what_other_ways_would_take(
    run: RunFolder, evaluation: Evaluation
):
    estimated().write(run)

    found = tuple(trainings(run))
    page = render_report(evaluation, found)

    assert found == (
        ("new", "lora", "3 s, EUR 3.00"),
        ("", "full fine-tuning: all weights learnt", "1 min 30 s, EUR 90.00"),
    )
    assert "3 s, EUR 3.00" in page
    assert "1 min 30 s, EUR 90.00" in page
