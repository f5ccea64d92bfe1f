"""How far a judge can be trusted: its agreement with people, and its liking for a place."""

from __future__ import annotations

from collections.abc import Iterator

from loragate.trainer.evaluation.agreement import Agreement, agreement
from loragate.trainer.evaluation.evaluation import Evaluation, JudgeReport


def agreement_with_people(evaluation: Evaluation, judge: JudgeReport) -> dict[str, Agreement]:
    """By criterion how far the judge agrees with the people whose sheets were read: the ordinal
    alpha of its number and their median, of each answer that both have seen. Empty where there are
    none such.
    """
    if evaluation.ratings is None:
        return {}
    scores = {(each.row, each.system): each.scores for each in judge.answers}
    units: dict[str, list[tuple[float, float]]] = {}
    for rated in evaluation.ratings.medians:
        # Equal answers have equal verdicts.
        found = scores.get((rated.sample, rated.systems[0]), {})
        if rated.criterion in found:
            units.setdefault(rated.criterion, []).append((rated.median, found[rated.criterion]))
    about = evaluation.about
    return {
        criterion: agreement(each, about.confidence, about.resamples, about.seed)
        for criterion, each in units.items()
    }


def judge_sentences(evaluation: Evaluation, judge: JudgeReport) -> Iterator[str]:
    """What to know of a judge's figures before believing them."""
    if judge.problem:
        yield judge.problem[0].upper() + judge.problem[1:]
        return
    yield f"{judge.name} ({judge.model}) judged {judge.rows} rows, with {judge.calls} new calls."
    if judge.asked < judge.wanted:
        yield (
            f"Its budget of calls (max_calls) left {judge.wanted - judge.asked} of "
            f"{judge.wanted} rows out."
        )
    if judge.rows < judge.asked:
        yield (
            f"{judge.asked - judge.rows} of {judge.asked} rows are left out, since a verdict could "
            "not be read."
        )
    for pairs in judge.pairs:
        rest = pairs.rows - pairs.wins - pairs.losses
        yield (
            f"New against {pairs.system}: better in {pairs.wins} rows, worse in {pairs.losses}, "
            f"neither in {rest} (of them {pairs.equal} with equal answers)."
        )
    yield from _position(judge)
    yield from _people(evaluation, judge)


def _position(judge: JudgeReport) -> Iterator[str]:
    decided = sum(each.decided for each in judge.pairs)
    if not decided:
        return
    first = sum(each.first for each in judge.pairs)
    flipped = sum(each.flipped for each in judge.pairs)
    asked = sum(each.rows - each.equal for each in judge.pairs)
    yield (
        f"Its liking for a place: the answer that stood first won {100 * first / decided:.0f} % of "
        f"the calls with a winner (50 % without such a liking), and {flipped} of {asked} pairs "
        "changed their winner with the order, which counts as neither."
    )


def _people(evaluation: Evaluation, judge: JudgeReport) -> Iterator[str]:
    found = agreement_with_people(evaluation, judge)
    if not found:
        yield (
            "Not compared with people, so nobody knows what its numbers are worth: write a sheet "
            "with `loragate evaluate RUN --rubric`, and read it back with --ratings."
        )
        return
    ratings = evaluation.ratings
    for criterion, with_people in found.items():
        among = ratings.agreement.get(criterion) if ratings else None
        beside = f"; people among themselves {among.sentence}" if among else ""
        yield (
            f"Agreement with people on {criterion} (ordinal alpha, {with_people.units} answers): "
            f"{with_people.sentence}{beside}."
        )
