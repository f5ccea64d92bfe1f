"""Language models that judge answers, over a real endpoint."""

import asyncio
import html
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.criteria import USUAL, criteria_of
from loragate.trainer.evaluation.evaluation import Evaluation, RatedAnswer, Ratings, Sample
from loragate.trainer.evaluation.judge_client import VerdictFile
from loragate.trainer.evaluation.judge_trust import judge_sentences
from loragate.trainer.evaluation.judges import (
    Judge,
    judges_of,
    key_of,
    pair_question,
    score_question,
)
from loragate.trainer.evaluation.judging import with_judgements
from loragate.trainer.evaluation.measures import Measures
from loragate.trainer.evaluation.report import render_report
from loragate.trainer.run.file import convert_run_file, for_others
from loragate.trainer.settings import EvaluationSettings, JudgeSettings
from support.training.evaluations import evaluation_of
from support.training.finished_runs import examples
from support.training.judge_server import JudgeServer, Reply, judge_server, said

SCORES = {"good": 5, "fair": 3, "bad": 1}


@pytest.fixture(scope="module")
def evaluation(base, adapter) -> Evaluation:
    """Six rows: the base answers badly, the new adapter well."""
    settings = EvaluationSettings(counterfactual_rows=0, samples=2, resamples=200)
    found = asyncio.run(evaluation_of(base, adapter, examples()[:6], lambda *_: "outage", settings))
    answers = [
        Sample(f"user: question {n}", "yes", {"base": f"bad {n}", "new": f"good {n}"})
        for n in range(6)
    ]
    return replace(found, answers=tuple(answers))


def content(body: dict[str, Any]) -> dict[str, str]:
    return json.loads(body["messages"][-1]["content"])


def fair(body: dict[str, Any]) -> Reply:
    """Judges by an answer's first word, whatever its place."""
    asked = content(body)
    if "answer" in asked:
        score = SCORES[asked["answer"].split()[0]]
        return said({"reason": "so", **dict.fromkeys((each.name for each in USUAL), score)})
    scores = [SCORES[asked[name].split()[0]] for name in ("first", "second")]
    better = "first" if scores[0] > scores[1] else "second" if scores[1] > scores[0] else "neither"
    return said({"reason": "so", "better": better})


def judge_of(server: JudgeServer | str, **settings: Any) -> Judge:
    url = server if isinstance(server, str) else server.url
    [judge] = judges_of({"gpt": JudgeSettings(url=url, model="m", **settings)}, USUAL, {})
    return judge


def judged(
    evaluation: Evaluation,
    judge: Judge,
    file: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Evaluation:
    with Progress(disable=True) as progress:
        return asyncio.run(
            with_judgements(
                evaluation, [judge], environment or {}, VerdictFile(file), progress, 0.001
            )
        )


def test_a_judge_s_figures_stand_with_all_others_and_can_be_required(evaluation: Evaluation):
    with judge_server(fair) as server:
        judge = judge_of(server)
        found = judged(evaluation, judge)
        settings = EvaluationSettings(
            judges={"gpt": judge.settings},
            require=("gpt_tone - base >= 3.5", "gpt_preference - base >= 0.5", "gpt_tone >= 4.5"),
        )
        found = found.held_against(Measures.of(settings, Path()).requirements)

    assert found.new.metrics["gpt_tone"].estimate == 5
    assert found.systems[0].metrics["gpt_tone"].estimate == 1
    assert found.differences["base"]["gpt_preference"].estimate == 1
    assert found.differences["base"]["gpt_preference"].low < 1  # six rows leave doubt
    assert found.requirements.holds, found.requirements.sentence
    assert len(server.asked) == 6 * 2 + 6 * 2
    page = render_report(found)
    assert "Tone, by gpt" in page
    assert "Preference of gpt" in page


def test_each_question_is_asked_greedily_with_a_schema_anchors_and_both_orders(
    evaluation: Evaluation,
):
    with judge_server(fair) as server:
        judged(evaluation, judge_of(server, key_variable="KEY", instructions="For a bank."), None,
               {"KEY": "sk-1"})  # fmt: skip

    assert {body["temperature"] for body in server.asked} == {0}
    assert set(server.keys) == {"Bearer sk-1"}
    system = next(body for body in server.asked if "answer" in content(body))["messages"][0]
    assert "tone (Is it said as it should be to this person?): 1 offends" in system["content"]
    assert "For a bank." in system["content"]
    schema = server.asked[0]["response_format"]["json_schema"]
    assert schema["strict"] is True
    pairs = [content(body) for body in server.asked if "first" in content(body)]
    orders = {(each["first"], each["second"]) for each in pairs}
    assert orders == {(second, first) for first, second in orders}
    kinds = ["first" in content(body) for body in server.asked]
    assert kinds != sorted(kinds)  # shuffled


def test_a_liking_for_the_first_place_cancels_out_and_is_told(evaluation: Evaluation):
    def first(body: dict[str, Any]) -> Reply:
        return said({"better": "first"}) if "first" in content(body) else fair(body)

    with judge_server(first) as server:
        found = judged(evaluation, judge_of(server))

    assert found.differences["base"]["gpt_preference"].estimate == 0
    told = " ".join(judge_sentences(found, found.judges[0]))
    assert "stood first won 100 % of the calls" in told
    assert "6 of 6 pairs changed their winner with the order" in told


def test_what_was_asked_is_never_asked_again_after_a_kill_too(
    evaluation: Evaluation, tmp_path: Path
):
    file = tmp_path / "evaluation" / "verdicts.jsonl"
    with judge_server(fair) as server:
        first = judged(evaluation, judge_of(server), file)
        lines = file.read_bytes().split(b"\n")
        file.write_bytes(b"\n".join(lines[:-3]) + b"\n" + lines[-3][:40])  # cut off within a line
        server.asked.clear()
        again = judged(first, judge_of(server), file)
        assert len(server.asked) == 3
        server.asked.clear()
        third = judged(again, judge_of(server), file)

    assert server.asked == []
    assert third.new.metrics == first.new.metrics
    assert [each.calls for each in third.judges] == [0]


@pytest.mark.parametrize(
    "wrapped",
    [
        '<think>Hm {{"tone": 9}} no.</think>\n```json\n{}\n```',
        "Here it is: {}",
        "{}",
    ],
)
def test_an_endpoint_without_schemas_is_asked_without_and_its_text_is_read(
    evaluation: Evaluation, wrapped: str
):
    def plain(body: dict[str, Any]) -> Reply:
        if "response_format" in body:
            return 400, {"error": {"message": "unknown field response_format"}}
        if "max_tokens" in body:
            return 400, {"error": {"message": "use 'max_completion_tokens' instead"}}
        if "temperature" in body:
            return 422, {"error": {"message": "temperature is not supported"}}
        _, answer = fair(body)
        assert isinstance(answer, dict)
        return said(wrapped.format(answer["choices"][0]["message"]["content"]))

    with judge_server(plain) as server:
        found = judged(evaluation, judge_of(server))

    assert found.new.metrics["gpt_tone"].estimate == 5
    assert found.judges[0].rows == 6


def test_a_busy_judge_is_asked_again(evaluation: Evaluation):
    refused: list[object] = []

    def busy(body: dict[str, Any]) -> Reply:
        if len(refused) < 3:
            refused.append(body)
            return (429, "slow down") if len(refused) < 3 else (503, "starting")
        return fair(body)

    with judge_server(busy) as server:
        found = judged(evaluation, judge_of(server, concurrency=1))

    assert not found.judges[0].problem
    assert len(server.asked) == 24 + 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            lambda _: (401, "Incorrect API key provided: sk-secret"),
            "refuses \\(401.*comes from .*KEY",
        ),
        (lambda _: (404, "no such model"), "refuses \\(404: no such model\\); see"),
        (lambda _: (500, "broken"), "does not answer \\(500: broken\\), 4 times.*--judge"),
        (lambda _: (200, "<html>"), "no chat completion.*with /v1 at its end"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_told_and_the_rest_of_the_evaluation_stays(
    evaluation: Evaluation, reply: Callable[[dict[str, Any]], Reply], reason: str
):
    with judge_server(reply) as server:
        found = judged(evaluation, judge_of(server, key_variable="KEY"), None, {"KEY": "sk-secret"})

    problem = found.judges[0].problem
    assert re.search(reason, problem), problem
    assert "sk-secret" not in msgspec.json.encode(found).decode()
    assert found.new.metrics == evaluation.new.metrics
    assert problem[1:] in html.unescape(render_report(found))
    settings = EvaluationSettings(
        judges={"gpt": judge_of(server).settings}, require=("gpt_tone >= 1",)
    )
    required = Measures.of(settings, Path()).requirements
    assert not found.held_against(required).requirements.holds


def test_a_judge_that_is_away_or_too_slow_is_told(evaluation: Evaluation):
    away = judged(evaluation, judge_of("http://127.0.0.1:9/v1"))
    assert "does not answer" in away.judges[0].problem

    waiting = threading.Event()

    def slow(_body: dict[str, Any]) -> Reply:
        waiting.wait(5)
        return 200, "{}"

    with judge_server(slow) as server:
        found = judged(evaluation, judge_of(server, timeout_seconds=0.05))
        waiting.set()
    assert "no answer within 0.05 s" in found.judges[0].problem


def test_a_budget_of_calls_leaves_whole_rows_out_and_says_so(evaluation: Evaluation):
    with judge_server(fair) as server:
        found = judged(evaluation, judge_of(server, max_calls=11))
        assert len(server.asked) == 8  # two rows of four calls
        few = judged(evaluation, judge_of(server, max_calls=5))

    assert found.judges[0].rows == 2
    assert "left 4 of 6 rows out" in " ".join(judge_sentences(found, found.judges[0]))
    assert "raise max_calls" in few.judges[0].problem


def test_equal_answers_are_asked_about_once_and_compared_never(evaluation: Evaluation):
    same = [replace(each, answers={"base": "good", "new": "good"}) for each in evaluation.answers]
    with judge_server(fair) as server:
        found = judged(replace(evaluation, answers=tuple(same)), judge_of(server))

    assert len(server.asked) == 6
    assert found.differences["base"]["gpt_preference"].estimate == 0
    assert found.judges[0].pairs[0].equal == 6


def test_verdicts_that_cannot_be_read_leave_their_rows_out(evaluation: Evaluation):
    def off(body: dict[str, Any]) -> Reply:
        if content(body)["question"].endswith("3"):
            return said({"accuracy": 9, "helpfulness": 5, "tone": 5, "better": "both"})
        return fair(body)

    with judge_server(off) as server:
        found = judged(evaluation, judge_of(server))

    assert (found.judges[0].asked, found.judges[0].rows) == (6, 5)
    assert "1 of 6 rows are left out" in " ".join(judge_sentences(found, found.judges[0]))


def test_agreement_with_people_is_said_and_that_nobody_was_asked_too(evaluation: Evaluation):
    with judge_server(fair) as server:
        found = judged(evaluation, judge_of(server))
    assert "Not compared with people" in " ".join(judge_sentences(found, found.judges[0]))

    people = tuple(
        RatedAnswer(n, (system,), "tone", float(score))
        for n in range(6)
        for system, score in (("base", 2), ("new", 4))
    )
    rated = replace(found, ratings=Ratings(("ann",), 12, (), {}, {}, (), people))

    told = " ".join(judge_sentences(rated, rated.judges[0]))
    assert "Agreement with people on tone (ordinal alpha, 12 answers): 0." in told
    assert "Not compared" not in told


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"url": "127.0.0.1:8000"}, "url: .* is no address"),
        ({"url": "http://me:secret@host/v1"}, "has a password or a query"),
        ({"url": "https://host/v1?key=secret"}, "has a password or a query"),
        ({"key_variable": "sk-secret"}, "the key itself does not belong into a run file"),
        ({"criteria": ("charm",)}, "'charm' is none of the rubric's"),
        ({"model": ""}, "give the model's name"),
    ],
)
def test_a_judge_that_cannot_work_is_refused_by_its_table_and_no_secret_is_shown(
    settings: dict[str, Any], reason: str
):
    given_settings = JudgeSettings(**{"url": "http://host/v1", "model": "m", **settings})

    with pytest.raises(EvaluationError, match=rf"evaluation.judges.gpt\].*{reason}") as refused:
        judges_of({"gpt": given_settings}, USUAL, {})
    assert "secret" not in str(refused.value)


def test_a_key_that_is_not_there_is_told_and_none_is_published():
    judge = judge_of("http://inside.example/v1", key_variable="JUDGE_KEY")
    with pytest.raises(EvaluationError, match="there is no JUDGE_KEY in the environment"):
        key_of(judge, {})
    tables = {"gpt": {"url": "http://inside.example/v1", "model": "m", "key_variable": "JUDGE_KEY"}}
    run = convert_run_file({"data": {"raw": ["a.csv"]}, "evaluation": {"judges": tables}})

    told = for_others(run).to_toml()

    assert "inside.example" not in told
    assert "JUDGE_KEY" not in told


@given(st.text(), st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none()))
def test_no_answer_of_a_judge_breaks_the_reading(text: str, values: dict[str, object]):
    judge = judge_of("http://host/v1")
    for question in (
        score_question(judge, "q", "w", "a"),
        pair_question(judge, "q", "w", ("a", "b")),
    ):
        for spoken in (text, json.dumps(values), f"{{{text} {json.dumps(values)}"):
            verdict = question.read(spoken)
            assert verdict is None or all(-1 <= each <= 5 for each in verdict.values())


def test_a_judge_s_metric_has_a_name_of_its_own():
    criteria = criteria_of({})
    with pytest.raises(EvaluationError, match="a metric 'gpt_tone' already"):
        judges_of({"gpt": JudgeSettings(url="http://h/v1", model="m")}, criteria,
                  {"gpt_tone": judge_of("http://h/v1").metrics["gpt_tone"]})  # fmt: skip
