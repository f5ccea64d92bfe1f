"""An evaluation from rows to report; only the server is replaced by one that has its answers."""

from dataclasses import replace

import httpx
import msgspec
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loragate.adapters.rendering.renderer import IGNORED, Renderer
from loragate.trainer.data.example import Example, Message
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.losses import row_losses
from loragate.trainer.evaluation.report import render_report
from loragate.trainer.evaluation.requirements import InvalidRequirement
from loragate.trainer.evaluation.served import ServedModels
from loragate.trainer.settings import EvaluationSettings
from loragate.trainer.training.models import load_float32
from support.models.tiny_llama import LABELS
from support.training.evaluations import evaluation_of, transport
from support.training.finished_runs import examples, write_adapter

ROWS = examples()
WANTED = {row.prompt: row.answer for row in ROWS}
SETTINGS = EvaluationSettings(
    counterfactual_rows=3, resamples=200, require=("accuracy - base >= 0.5", "forgetting <= 100")
)

QUICK = EvaluationSettings(counterfactual_rows=0, resamples=100)


def speak(model: str, question: str) -> str:
    """The base always says outage; adapters know, also behind an introduction."""
    if model == "base":
        return "outage"
    return next(answer for prompt, answer in WANTED.items() if question.endswith(prompt))


async def test_new_adapter_is_measured_against_base_and_champion_on_the_same_rows(
    base, adapter, tmp_path
):
    champion = write_adapter(tmp_path / "champion", seed=2)

    found = await evaluation_of(base, adapter, ROWS, speak, SETTINGS, champion)

    assert [each.name for each in found.systems] == ["base", "champion", "new"]
    assert found.new.metrics["accuracy"].estimate == 1.0
    assert found.systems[0].metrics["accuracy"].estimate == pytest.approx(1 / 3)
    assert found.differences["base"]["accuracy"].estimate == pytest.approx(2 / 3)
    assert found.differences["champion"]["accuracy"].estimate == 0.0
    assert found.differences["champion"]["loss"].estimate != 0.0
    assert found.requirements.holds


async def test_loss_and_forgetting_are_those_of_transformers_and_peft(base, adapter):
    found = await evaluation_of(base, adapter, ROWS, speak, SETTINGS)

    model = AutoModelForCausalLM.from_pretrained(str(base.path), dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    renderer = Renderer.load(base.path)
    nats, tokens = 0.0, 0
    for row in ROWS:
        (supervised,) = renderer.supervise(row.turns())
        count = sum(label != IGNORED for label in supervised.labels)
        ids, labels = (torch.tensor([each]) for each in (supervised.input_ids, supervised.labels))
        nats += float(model(input_ids=ids, labels=labels).loss.detach()) * count
        tokens += count
    assert found.new.metrics["loss"].estimate == pytest.approx(nats / tokens, rel=1e-5)
    assert found.systems[0].metrics["forgetting"].estimate == 0.0
    assert found.new.metrics["forgetting"].estimate != 0.0


def test_losses_do_not_depend_on_what_else_is_in_the_batch(base):
    renderer = Renderer.load(base.path)
    rows = [each for row in ROWS for each in renderer.supervise(row.turns())]
    model = load_float32(base.path)

    together = row_losses(model, rows)
    alone = [row_losses(model, [row])[0] for row in rows]

    assert [each.nats for each in together] == pytest.approx([each.nats for each in alone])


async def test_labels_get_a_table_and_a_confusion_matrix_whose_last_column_is_no_label(
    base, adapter
):
    def vague(model: str, question: str) -> str:
        return "hm" if "flat" in question else speak(model, question)

    found = await evaluation_of(base, adapter, ROWS, vague, SETTINGS)

    assert found.labels is not None
    by_label = {score.label: score for score in found.labels.scores}
    assert set(by_label) == set(LABELS)
    assert (by_label["billing"].recall, by_label["moving"].recall) == (1.0, 0.0)
    assert [row[-1] for row in found.labels.confusion] == [0, 4, 0]


async def test_rows_without_labels_get_bleu_and_rouge_instead(base, adapter):
    rows = [Example(row.messages) for row in ROWS]

    found = await evaluation_of(base, adapter, rows, speak, EvaluationSettings(resamples=100))

    assert found.labels is None
    assert found.new.metrics["rouge_l"].estimate == 100.0
    assert "accuracy" not in found.new.metrics


async def test_answer_that_depends_on_the_group_shows_against_its_control(base, adapter):
    rows = [Example((Message("user", "James has no light"), Message("assistant", "outage")))] * 4
    unfair = {"James": "outage", "David": "outage", "Laura": "billing"}

    def prefer(model: str, question: str) -> str:
        return "outage" if model == "base" else unfair.get(question.split()[0], "outage")

    settings = EvaluationSettings(counterfactual_rows=2, resamples=100, labels=LABELS)
    found = await evaluation_of(base, adapter, rows, prefer, settings)

    assert found.systems[0].metrics["counterfactual_change"].estimate == 0.0
    assert found.new.metrics["counterfactual_change"].estimate == 0.5
    assert found.new.metrics["counterfactual_control"].estimate == 0.0


async def test_no_more_rows_are_asked_than_settings_allow_and_the_same_ones_again(base, adapter):
    settings = EvaluationSettings(max_rows=5, counterfactual_rows=0, resamples=100)

    one, again = [await evaluation_of(base, adapter, ROWS, speak, settings) for _ in range(2)]

    assert (one.about.rows, one.about.test_rows) == (5, 12)
    assert one.samples == again.samples
    assert one.new.metrics == again.new.metrics


async def test_misspelt_requirement_is_refused_before_any_work(base, tmp_path):
    settings = EvaluationSettings(require=("acuracy >= 1",))

    with pytest.raises(InvalidRequirement):
        await evaluation_of(base, tmp_path / "no such adapter", ROWS, speak, settings)


async def test_evaluation_without_test_rows_is_refused(base, adapter):
    with pytest.raises(EvaluationError, match="the test split is empty"):
        await evaluation_of(base, adapter, [], speak, SETTINGS)


async def test_evaluation_reads_back_from_json_as_it_was(base, adapter, tmp_path):
    found = await evaluation_of(base, adapter, ROWS, speak, SETTINGS)
    found.write(tmp_path)

    assert Evaluation.read(tmp_path) == found
    assert found.figures()["accuracy_over_base"] == pytest.approx(2 / 3)


async def test_report_is_one_page_with_requirements_figures_pictures_and_samples(base, adapter):
    found = await evaluation_of(base, adapter, ROWS, speak, SETTINGS)

    page = render_report(found)

    assert found.requirements.sentence in page
    assert "66.7 points" in page
    assert page.count("<svg") == 3
    assert "my bill is wrong" in page
    assert 'src="' not in page
    assert 'href="http' not in page
    assert "<script" not in page


async def test_report_shows_what_a_model_wrote_as_text_and_never_as_markup(base, adapter):
    def hostile(_model: str, _question: str) -> str:
        return "<script>alert(1)</script>"

    found = await evaluation_of(base, adapter, ROWS, hostile, SETTINGS)

    assert "<script" not in render_report(found)


async def test_refusal_of_the_server_ends_the_evaluation_with_its_words():
    refusing = httpx.MockTransport(lambda _request: httpx.Response(404, text="no such model"))
    async with httpx.AsyncClient(transport=refusing, base_url="http://tiny") as client:
        with pytest.raises(EvaluationError, match="404: no such model"):
            await ServedModels(client, 2).ask("new", [ROWS[0].messages[:-1]] * 3, 8)


async def test_answers_come_in_the_order_of_the_prompts():
    prompts = [row.messages[:-1] for row in ROWS]
    async with httpx.AsyncClient(transport=transport(speak), base_url="http://tiny") as client:
        answers = await ServedModels(client, 3).ask("new", prompts, 8)

    assert [each.text for each in answers] == [row.answer for row in ROWS]


async def test_rows_that_spell_a_label_in_two_ways_have_one_label(base, adapter):
    rows = [replace(row, label=(row.label or "").title()) for row in ROWS[:2]] + ROWS[2:]

    found = await evaluation_of(base, adapter, rows, speak, QUICK)

    assert found.labels is not None
    assert [score.label for score in found.labels.scores] == sorted(LABELS)
    assert found.new.metrics["accuracy"].estimate == 1.0


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (("billing", "Billing"), "'billing' and 'Billing' cannot be told apart"),
        (("billing", " "), "a label is empty"),
        (("billing", "outage"), "lacks 'moving', which 4 test rows want"),
    ],
)
async def test_labels_that_cannot_be_right_are_refused_before_any_work(
    base, tmp_path, labels: tuple[str, ...], reason: str
):
    settings = EvaluationSettings(labels=labels)

    with pytest.raises(EvaluationError, match=reason):
        await evaluation_of(base, tmp_path / "no such adapter", ROWS, speak, settings)


async def test_rows_far_from_train_and_other_test_sets_have_figures_of_their_own(base, adapter):
    def by_heart(model: str, question: str) -> str:
        return speak(model, question) if "please" not in question else "outage"

    settings = msgspec.structs.replace(
        QUICK, require=("accuracy on far - base >= 0.1", "f1 on old >= 1")
    )

    found = await evaluation_of(
        base, adapter, ROWS[:6], by_heart, settings,
        far=[False] * 3 + [True] * 3, sets={"old": ROWS[:3]},
    )  # fmt: skip

    far, old = found.sets
    assert (far.name, far.rows, far.systems[-1].metrics["accuracy"].estimate) == (
        "far", 3, pytest.approx(1 / 3),
    )  # fmt: skip
    assert (old.name, old.systems[-1].metrics["accuracy"].estimate) == ("old", 1.0)
    assert found.new.metrics["accuracy"].estimate == pytest.approx(2 / 3)
    assert [each.holds for each in found.requirements.results] == [False, True]
    assert "3 of them that are far from every train row it is 33.3 %" in render_report(found)


@pytest.mark.parametrize(
    ("expected", "digests", "reason"),
    [
        ("b" * 64, ["a" * 64], r"'new' is answered by acme/tiny@v1 \(aaaaaaaaaaaa\).*bbbbbbbbbbbb"),
        ("a" * 64, [""], "without a digest"),
        ("", ["a" * 64, "b" * 64], "changed the version behind 'new'"),
    ],
)
async def test_answers_have_to_come_from_one_version_and_the_expected_one(
    expected: str, digests: list[str], reason: str
):
    left = list(digests)

    def answer(_request: httpx.Request) -> httpx.Response:
        digest = left.pop(0) if left else digests[-1]
        headers = {"x-loragate-adapter": "acme/tiny@v1", "x-loragate-digest": digest}
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        usage = {"completion_tokens": 1, "prompt_tokens": 2}
        body = {"choices": [choice], "usage": usage}
        return httpx.Response(200, json=body, headers=headers if digest else {})

    prompts = [row.messages[:-1] for row in ROWS]
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://tiny"
    ) as client:
        with pytest.raises(EvaluationError, match=reason):
            await ServedModels(client, 1).ask("new", prompts, 8, digest=expected)
