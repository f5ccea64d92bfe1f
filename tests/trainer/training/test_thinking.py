"""Models that think before they answer: what is learnt of it, and what the contract says."""

from dataclasses import replace
from pathlib import Path

import pytest

from loragate.adapters.rendering.renderer import IGNORED, Renderer
from loragate.adapters.settings import read_settings
from loragate.trainer.data.example import Example, Message
from loragate.trainer.data.splits import SplitFolder, write_split_folder
from loragate.trainer.errors import RunFileError
from loragate.trainer.pipeline.pipeline import plan_training
from loragate.trainer.publishing.publishing import assemble
from loragate.trainer.training.encoding import Encoder
from loragate.trainer.training.plan import notes_of
from support.models.chat_families import FAMILIES, Family
from support.training.tiny_runs import TEMPLATE, TinyRuns, examples

# As Qwen3 does: with the switch off the prompt has the empty thought, else the answer has it.
SWITCHED = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% endif %}"
)
THOUGHT = Example(
    (
        Message("user", "Hi"),
        Message("assistant", "Hello", reasoning="They greet."),
        Message("user", "Which queue?"),
        Message("assistant", "billing", reasoning="It is about money."),
    )
)
INLINE = Example(
    tuple(
        replace(
            turn, content=f"<think>\n{turn.reasoning}\n</think>\n\n{turn.content}", reasoning=""
        )
        if turn.reasoning
        else turn
        for turn in THOUGHT.messages
    )
)
THINKERS = [
    family
    for family in FAMILIES
    if ((family.words and "<think>" in family.words) or family.name == "gpt-oss")
    and not family.variables
]


def learnt(renderer: Renderer, example: Example) -> list[str]:
    rows = Encoder(renderer, 100_000).rows_of(example)
    return [renderer.decode([each for each in row.labels if each != IGNORED]) for row in rows]


@pytest.mark.parametrize("family", THINKERS, ids=lambda family: family.title)
def test_reasoning_is_learnt_of_each_turn_where_a_template_has_a_place_for_it(
    family: Family,
) -> None:
    one, other = learnt(family.renderer(), THOUGHT)
    assert "They greet." in one
    assert one.index("They greet.") < one.index("Hello")
    assert "It is about money." in other
    assert "They greet." not in other
    assert other.endswith(f"billing{family.end}")


@pytest.mark.parametrize(
    "family", [each for each in THINKERS if each.name != "gpt-oss"], ids=lambda each: each.title
)
def test_reasoning_within_an_answer_is_learnt_as_if_it_stood_apart(family: Family) -> None:
    inline, apart = learnt(family.renderer(), INLINE), learnt(family.renderer(), THOUGHT)
    assert "".join(inline) == "".join(apart)


def test_reasoning_that_a_template_has_no_place_for_is_counted() -> None:
    for family in FAMILIES:
        encoded = Encoder(family.renderer(), 100_000).encode([THOUGHT], "train")
        is_told_not_to = ("enable_thinking", False) in family.variables
        keeps = family.name in {each.name for each in THINKERS} and not is_told_not_to
        inline = not keeps and any(
            "They greet." in family.renderer().decode(row.ids) for row in encoded.rows
        )
        assert bool(encoded.lost_reasoning) == (not keeps and not inline), family.title


def splits_of(runs: TinyRuns, *rows: Example) -> SplitFolder:
    parts = examples(20)
    return write_split_folder(
        runs.root / "thoughts",
        {"train": (*rows, *parts[:12]), "validation": parts[12:16], "test": parts[16:]},
        {},
    )


def with_switch(runs: TinyRuns, **model: object) -> dict[str, object]:
    (runs.root / "switched.jinja").write_text(SWITCHED)
    return {"chat_template": "switched.jinja", **model}


def test_where_no_row_thinks_the_prompt_says_so_in_training_and_in_the_contract(
    runs: TinyRuns,
) -> None:
    run = runs.run(runs.run_file(model=with_switch(runs), training={"max_steps": 1}))
    run.folder.run_file.write_text(run.settings.to_toml())
    plan = plan_training(run, runs.splits)
    row = plan.training.rows[0]
    start = next(n for n, label in enumerate(row.labels) if label != IGNORED)
    assert plan.renderer.decode(row.ids[:start]).endswith("assistant\n<think></think>")
    assert "<think>" not in plan.renderer.decode(row.ids[start:])
    assert plan.settings.model.chat_template_kwargs == {"enable_thinking": False}
    runs.train(plan.settings)
    manifest = (assemble(run.folder, runs.root / "out") / "manifest.json").read_text()
    assert '"chat_template_kwargs":{"enable_thinking":false}' in manifest


def test_where_rows_think_the_prompt_leaves_it_to_the_model(
    runs: TinyRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = runs.plan(runs.run_file(model=with_switch(runs)), splits_of(runs, THOUGHT))
    assert plan.settings.model.chat_template_kwargs == {}
    said = plan.renderer.decode([each for each in plan.training.rows[0].labels if each != IGNORED])
    assert said == "<think>They greet.</think>Hello<|end|>"
    (note,) = notes_of(plan, read_settings({}))
    assert "engine.reasoning_parser" in note
    assert not notes_of(plan, read_settings({"LORAGATE_ENGINE_REASONING_PARSER": "qwen3"}))


def test_the_reasoning_that_is_lost_is_told(runs: TinyRuns) -> None:
    plan = runs.plan(runs.run_file(), splits_of(runs, THOUGHT))
    assert plan.training.lost_reasoning == 1
    assert "the reasoning of 1 rows is not learnt" in notes_of(plan, read_settings({}))[0]


def test_a_template_without_the_switch_gets_no_variables(runs: TinyRuns) -> None:
    assert runs.plan(runs.run_file()).settings.model.chat_template_kwargs == {}


def test_variables_that_are_the_rendering_s_own_are_refused(runs: TinyRuns) -> None:
    with pytest.raises(RunFileError, match="chat_template_kwargs has 'tools'"):
        runs.run_file(model={"chat_template_kwargs": {"tools": []}})


def test_a_whole_model_has_the_run_s_template_and_stops_where_its_turns_end(
    runs: TinyRuns,
) -> None:
    template = TEMPLATE.replace("<|end|>", "<|bos|>")
    (runs.root / "own.jinja").write_text(template)
    settings = runs.plan(
        runs.run_file(
            model={"chat_template": "own.jinja"},
            method={"name": "full"},
            training={"max_steps": 1},
        )
    ).settings
    folder, result = runs.train(settings)
    model = Renderer.load(folder.adapter)
    assert model.template_hash() == Renderer(model.tokenizer, template).template_hash()
    (stop,) = result.stop_token_ids
    assert model.ends.own != stop
    assert model.ends.ids == {stop, model.ends.own}
