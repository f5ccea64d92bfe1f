"""Sheets for people: blind, filled, read back."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.report import render_report
from loragate.trainer.evaluation.rubric import krippendorff_alpha, read_sheets, write_sheet
from loragate.trainer.settings import EvaluationSettings
from support.training.evaluations import evaluation_of
from support.training.finished_runs import examples


@pytest.fixture
async def evaluation(base, adapter) -> Evaluation:
    settings = EvaluationSettings(counterfactual_rows=0, samples=4, resamples=100)
    return await evaluation_of(
        base, adapter, examples(), lambda model, _question: f"{model} says", settings
    )


def fill(sheet: Path, name: str, scores: dict[str, int]) -> Path:
    """A copy in which each answer has the score of whoever wrote it, for all criteria."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    filled = sheet.with_name(f"{name}.csv")
    with filled.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        for row in rows:
            score = str(scores[row["answer"].split()[0]])
            writer.writerow(row | dict.fromkeys(("accuracy", "helpfulness", "tone"), score))
    return filled


def test_sheet_has_every_answer_and_does_not_say_whose(evaluation: Evaluation, tmp_path: Path):
    assert write_sheet(evaluation, tmp_path / "rubric.csv") == 8

    with (tmp_path / "rubric.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["item"] for row in rows}) == 8
    assert not {"system", "model"} & rows[0].keys()
    order = [row["answer"].split()[0] for row in rows]
    assert order != sorted(order)


def test_filled_sheets_come_back_by_contender_with_agreement(
    evaluation: Evaluation, tmp_path: Path
):
    write_sheet(evaluation, tmp_path / "rubric.csv")
    ann = fill(tmp_path / "rubric.csv", "ann", {"base": 2, "new": 5})
    bob = fill(tmp_path / "rubric.csv", "bob", {"base": 1, "new": 4})

    ratings = read_sheets(evaluation, [ann, bob])

    means = {each.name: each.scores["tone"].estimate for each in ratings.systems}
    assert means == {"base": 1.5, "new": 4.5}
    assert ratings.raters == ("ann", "bob")
    assert 0.7 < ratings.agreement["tone"] < 1
    page = render_report(replace(evaluation, ratings=ratings))
    assert "What people say" in page
    assert "4.50" in page


@pytest.mark.parametrize("score", ["6", "good", "0", "2.5"])
def test_score_off_the_scale_is_refused_with_its_row(
    evaluation: Evaluation, tmp_path: Path, score: str
):
    write_sheet(evaluation, tmp_path / "rubric.csv")
    text = (tmp_path / "rubric.csv").read_text("utf-8-sig").splitlines()
    text[1] = text[1].removesuffix(",,,,") + f",{score},,,"
    (tmp_path / "rubric.csv").write_text("\n".join(text))

    with pytest.raises(EvaluationError, match=r"row 2: accuracy is .* from 1 to 5"):
        read_sheets(evaluation, [tmp_path / "rubric.csv"])


def test_sheet_of_another_evaluation_is_refused(evaluation: Evaluation, tmp_path: Path):
    write_sheet(evaluation, tmp_path / "rubric.csv")
    other = replace(evaluation, about=replace(evaluation.about, finished_at="another day"))

    with pytest.raises(EvaluationError, match="no answer of this evaluation"):
        read_sheets(other, [tmp_path / "rubric.csv"])


def test_empty_sheet_is_refused(evaluation: Evaluation, tmp_path: Path):
    write_sheet(evaluation, tmp_path / "rubric.csv")

    with pytest.raises(EvaluationError, match="fill the numbers"):
        read_sheets(evaluation, [tmp_path / "rubric.csv"])


@pytest.mark.parametrize(
    ("units", "alpha"),
    [
        ([(1, 1), (3, 3), (5, 5)], 1.0),
        ([(4, 4), (4, 4)], 1.0),
        # By hand: observed 2/4 * 1, expected over 1, 2, 3, 3: 22/12; 1 - 0.5/1.8333.
        ([(1, 2), (3, 3)], 1 - 0.5 / (22 / 12)),
        ([(1, 5), (5, 1)], -0.5),
    ],
)
def test_alpha_is_krippendorffs(units: list[tuple[int, ...]], alpha: float):
    assert krippendorff_alpha(units) == pytest.approx(alpha)
