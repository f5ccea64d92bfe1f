"""Sheets for people: blind, filled, read back."""

import asyncio
import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.criteria import criteria_of
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.metrics import rated
from loragate.trainer.evaluation.report import render_report
from loragate.trainer.evaluation.requirements import Requirement, check_requirements
from loragate.trainer.evaluation.rubric import read_sheets, with_ratings, write_sheet
from loragate.trainer.evaluation.spreadsheet import read_table
from loragate.trainer.settings import CriterionSettings, EvaluationSettings
from support.training.evaluations import evaluation_of
from support.training.finished_runs import examples


@pytest.fixture(scope="module")
def evaluation(base, adapter) -> Evaluation:
    settings = EvaluationSettings(counterfactual_rows=0, samples=4, resamples=100)
    return asyncio.run(
        evaluation_of(base, adapter, examples(), lambda model, _: f"{model} says", settings)
    )


def answered(evaluation: Evaluation, text: str, samples: int) -> Evaluation:
    """As if every system had said the same."""
    changed = [
        replace(each, answers=dict.fromkeys(each.answers, text)) for each in evaluation.samples
    ]
    return replace(evaluation, samples=tuple(changed[:samples]))


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
    alpha = ratings.agreement["tone"].alpha
    assert alpha is not None
    assert 0.5 < alpha < 1
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
    other = replace(evaluation, about=replace(evaluation.about, title="another run"))

    with pytest.raises(EvaluationError, match="no answer of this evaluation"):
        read_sheets(other, [tmp_path / "rubric.csv"])


def test_empty_sheet_is_refused(evaluation: Evaluation, tmp_path: Path):
    write_sheet(evaluation, tmp_path / "rubric.csv")

    with pytest.raises(EvaluationError, match="fill the numbers"):
        read_sheets(evaluation, [tmp_path / "rubric.csv"])


def test_two_raters_give_a_difference_between_new_and_base_with_its_doubt(
    evaluation: Evaluation, tmp_path: Path
):
    write_sheet(evaluation, tmp_path / "rubric.csv")
    ann = fill(tmp_path / "rubric.csv", "ann", {"base": 2, "new": 5})
    bob = fill(tmp_path / "rubric.csv", "bob", {"base": 1, "new": 5})

    found = read_sheets(evaluation, [ann, bob]).differences["base"]["tone"]

    assert found.estimate == 3.5
    assert found.low < 3.5 < found.high <= 4


def test_requirement_on_ratings_waits_for_people_and_is_then_decided_by_them(
    evaluation: Evaluation, tmp_path: Path
):
    more = rated(evaluation.criteria)
    wanted = Requirement.parse("rated_tone - base >= 1", more)
    waiting = check_requirements([wanted], evaluation.new.metrics, evaluation.differences, more)
    write_sheet(evaluation, tmp_path / "rubric.csv")
    ann = fill(tmp_path / "rubric.csv", "ann", {"base": 2, "new": 5})

    decided = with_ratings(replace(evaluation, requirements=waiting), [ann])

    assert not waiting.holds
    assert "--rubric" in waiting.results[0].sentence
    assert decided.requirements.holds
    assert "Rated tone against the base is +3.00" in decided.requirements.results[0].sentence


def test_criteria_scales_and_anchors_are_those_of_the_run_file(
    evaluation: Evaluation, tmp_path: Path
):
    rubric = {
        "brand_voice": CriterionSettings(),
        "joy": CriterionSettings(
            question="Is it fun?", low=0, high=10, anchors={"0": "dull", "10": "a riot"}
        ),
    }
    found = replace(evaluation, criteria=criteria_of(rubric))
    write_sheet(found, tmp_path / "rubric.csv")

    with (tmp_path / "rubric.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))

    assert "brand_voice (Does it sound like us?): 1 like somebody else" in rows[0]["scale"]
    assert "joy (Is it fun?): 0 dull" in rows[0]["scale"]
    filled = (tmp_path / "rubric.csv").read_text("utf-8-sig").replace('a riot",,,', 'a riot",4,10,')
    (tmp_path / "ann.csv").write_text(filled, "utf-8")
    ratings = read_sheets(found, [tmp_path / "ann.csv"])
    assert ratings.of("new")["joy"].estimate == 10
    assert "Brand voice" in render_report(replace(found, ratings=ratings))


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("item", CriterionSettings(), "the name 'item' is taken"),
        ("My Tone", CriterionSettings(), "is no name here"),
        ("joy", CriterionSettings(anchors={"1": "dull"}), "do not say what 5 means"),
        ("tone", CriterionSettings(low=5, high=1), "the scale goes from 5 to 1"),
        ("tone", CriterionSettings(anchors={"6": "best"}), "'6' is no number from 1 to 5"),
    ],
)
def test_criterion_that_makes_no_sense_is_refused_by_its_table(
    name: str, settings: CriterionSettings, reason: str
):
    with pytest.raises(EvaluationError, match=rf"\[evaluation.rubric.{name}\].*{reason}"):
        criteria_of({name: settings})


def test_equal_answers_are_judged_once_and_count_for_both(evaluation: Evaluation, tmp_path: Path):
    found = answered(evaluation, "the same", 3)

    assert write_sheet(found, tmp_path / "rubric.csv") == 3

    text = (tmp_path / "rubric.csv").read_text("utf-8-sig")
    (tmp_path / "ann.csv").write_text(text.replace(",,,,", ",3,3,3,"), "utf-8")
    ratings = read_sheets(found, [tmp_path / "ann.csv"])
    assert ratings.of("base") == ratings.of("new") != {}
    assert ratings.differences["base"]["tone"].estimate == 0


def test_filled_sheet_is_never_written_over(evaluation: Evaluation, tmp_path: Path):
    write_sheet(evaluation, tmp_path / "rubric.csv")
    write_sheet(evaluation, tmp_path / "rubric.csv")  # nothing is filled in, so nothing is lost
    filled = fill(tmp_path / "rubric.csv", "rubric", {"base": 2, "new": 5})
    before = filled.read_bytes()

    with pytest.raises(EvaluationError, match="filled in in 8 rows"):
        write_sheet(evaluation, filled)

    assert filled.read_bytes() == before


@pytest.mark.parametrize("change", ["semicolons", "code page", "decimals", "empty rows"])
def test_sheet_that_went_through_a_spreadsheet_is_read(
    evaluation: Evaluation, tmp_path: Path, change: str
):
    write_sheet(evaluation, tmp_path / "rubric.csv")
    ann = fill(tmp_path / "rubric.csv", "ann", {"base": 2, "new": 5})
    rows = list(csv.reader(ann.read_text("utf-8-sig").splitlines()))
    if change == "decimals":
        rows = [[f"{cell},0" if cell in ("2", "5") else cell for cell in row] for row in rows]
    if change == "empty rows":
        rows += [[""] * len(rows[0])] * 2
    encoding = "cp1252" if change == "code page" else "utf-8"
    with ann.open("w", encoding=encoding, errors="replace", newline="") as file:
        csv.writer(file, delimiter=";" if change == "semicolons" else ",").writerows(rows)

    ratings = read_sheets(evaluation, [ann])

    assert ratings.of("new")["tone"].estimate == 5


def test_ids_are_no_numbers_dates_or_words(evaluation: Evaluation, tmp_path: Path):
    write_sheet(evaluation, tmp_path / "rubric.csv")

    for line in (tmp_path / "rubric.csv").read_text("utf-8-sig").splitlines()[1:]:
        assert re.fullmatch(r"[bcdfghjklmnpqrstvwxz]{12}", line.split(",")[0])


def test_hostile_answer_does_nothing_in_the_sheet(evaluation: Evaluation, tmp_path: Path):
    hostile = "=HYPERLINK(\"http://evil\")\n=cmd|' /C calc'!A0;@SUM(1)"
    found = answered(evaluation, hostile, 1)
    write_sheet(found, tmp_path / "rubric.csv")

    [row] = read_table(tmp_path / "rubric.csv", "item")
    text = (tmp_path / "rubric.csv").read_text("utf-8-sig")

    assert row.cells["answer"] == hostile
    assert not re.search(r'(^|[,;\n])"?[=@]', text)


def test_the_same_sheet_twice_is_refused(evaluation: Evaluation, tmp_path: Path):
    write_sheet(evaluation, tmp_path / "rubric.csv")

    with pytest.raises(EvaluationError, match="given twice"):
        read_sheets(evaluation, [tmp_path / "rubric.csv", tmp_path / "." / "rubric.csv"])
