from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.adapters.rendering import writing
from loragate.adapters.rendering.renderer import Renderer, RenderingError
from loragate.adapters.rendering.templates import Templates
from support.models.tokenizers import TURNS, byte_tokenizer

WITH_BOS = "{{ bos_token }}" + TURNS
WITH_TOOLS = "{% if tools %}TOOLS {{ tools[0].function.name }}{% endif %}" + TURNS
# Shows the last turn alone in full: earlier ones change when another follows.
FORGETFUL = "{{ messages[-1].content }}<|end|>"
CHAT = [{"role": "user", "content": "héllo"}]
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("template", [TURNS, WITH_BOS])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_prompt_is_what_the_tokenizer_itself_would_make_of_it(
    template: str, add_generation_prompt: bool
) -> None:
    own = byte_tokenizer(template)
    expected = own.apply_chat_template(
        CHAT, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    rendered = Renderer(own).render(CHAT, add_generation_prompt=add_generation_prompt)
    assert list(rendered) == expected


def test_a_directory_s_tokenizer_renders_like_the_one_that_was_saved(tmp_path: Path) -> None:
    own = byte_tokenizer()
    own.save_pretrained(tmp_path)
    assert Renderer.load(tmp_path).render(CHAT) == Renderer(own).render(CHAT)
    other = Renderer.load(tmp_path, "{{ messages[0].content }}")
    assert other.decode(other.render(CHAT)) == "héllo"


def test_a_text_begins_once_even_where_tokenizer_and_template_both_begin_it() -> None:
    renderer = Renderer(byte_tokenizer(WITH_BOS, adds_bos=True))
    ids = renderer.render(CHAT)
    assert renderer.decode(ids).count("<|bos|>") == 1
    text = renderer.encode("a", add_special_tokens=True)
    assert renderer.decode(text) == "<|bos|>a"


def test_a_template_that_leaves_the_beginning_out_can_have_it_added() -> None:
    renderer = Renderer(byte_tokenizer(adds_bos=True))
    assert "<|bos|>" not in renderer.decode(renderer.render(CHAT))
    assert renderer.decode(renderer.render(CHAT, add_special_tokens=True)).startswith("<|bos|>")


def test_a_final_message_can_be_continued() -> None:
    messages = [*CHAT, {"role": "assistant", "content": "I thi"}]
    renderer = Renderer(byte_tokenizer())
    ids = renderer.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert renderer.decode(ids).endswith("<|turn|>assistant\nI thi")


def test_a_call_s_template_goes_before_the_model_s() -> None:
    renderer = Renderer(byte_tokenizer())
    ids = renderer.render(CHAT, chat_template="Q {{ messages[0].content }}")
    assert renderer.decode(ids) == "Q héllo"


def test_variables_reach_the_template_but_cannot_take_the_rendering_s_own_names() -> None:
    renderer = Renderer(byte_tokenizer("{{ tone }} {{ documents[0].text }}"))
    variables = {"tone": "dry", "documents": [{"text": "d"}]}
    assert renderer.decode(renderer.render(CHAT, template_kwargs=variables)) == "dry d"
    for name in ("tokenize", "conversation", "tools", "chat_template", "return_dict", "messages"):
        with pytest.raises(RenderingError):
            renderer.render(CHAT, template_kwargs={name: True})


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('refused') }}",
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{% if %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ 'x' + 1 }}",
    ],
)
def test_a_template_that_fails_is_a_rendering_error(template: str) -> None:
    with pytest.raises(RenderingError, match="refuses these messages"):
        Renderer(byte_tokenizer(template)).render(CHAT)


def test_text_that_no_tokenizer_can_take_is_a_rendering_error() -> None:
    with pytest.raises(RenderingError):
        Renderer(byte_tokenizer()).render([{"role": "user", "content": "\ud800"}])


def test_a_model_without_a_template_says_what_to_do_instead() -> None:
    with pytest.raises(RenderingError, match=r"engine\.chat_template"):
        Renderer(byte_tokenizer(None)).render(CHAT)


def test_tools_go_where_the_template_has_a_place_for_them() -> None:
    renderer = Renderer(byte_tokenizer(WITH_TOOLS))
    text = renderer.decode(renderer.render(CHAT, tools=[TOOL]))
    assert text.startswith("TOOLS get_time<|turn|>user")
    assert "<tools>" not in text


def test_tools_go_into_the_system_message_where_the_template_has_no_place() -> None:
    renderer = Renderer(byte_tokenizer())
    text = renderer.decode(renderer.render(CHAT, tools=[TOOL]))
    assert text.startswith("<|turn|>system\nYou may call")
    assert '"name": "get_time"' in text
    own = [{"role": "system", "content": "Be brief."}, *CHAT]
    text = renderer.decode(renderer.render(own, tools=[TOOL]))
    assert text.startswith("<|turn|>system\nBe brief.\n\nYou may call")
    assert text.count("<|turn|>system") == 1


def test_earlier_calls_and_their_results_are_written_out_where_there_is_no_place_for_them() -> None:
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"zone": "UTC"}}}
    messages = [
        *CHAT,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "12:00"},
    ]
    renderer = Renderer(byte_tokenizer())
    text = renderer.decode(renderer.render(messages, tools=[TOOL]))
    assert '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>' in text
    assert "<|turn|>user\n<tool_response>\n12:00\n</tool_response>" in text


CALL = {"type": "function", "function": {"name": "get_time", "arguments": {"zone": "UTC"}}}
CALLED = [
    *CHAT,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00"},
]
OFFERED_ALONE = (  # shows calls where tools are offered, and then alone
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content if m.role != 'tool' }}"
    "{% if tools %}{{ m.tool_calls }}{{ m.content }}{% endif %}<|end|>{% endfor %}"
)


@pytest.mark.parametrize("template", [TURNS, WITH_TOOLS, OFFERED_ALONE])
def test_earlier_calls_and_results_are_written_out_where_no_tools_are_offered_this_time(
    template: str,
) -> None:
    renderer = Renderer(byte_tokenizer(template))
    text = renderer.decode(renderer.render(CALLED))
    assert '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>' in text
    assert "<|turn|>user\n<tool_response>\n12:00\n</tool_response>" in text


def test_a_template_that_has_a_place_for_calls_writes_them_itself() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}"
        "{% for call in m.tool_calls or [] %}CALL {{ call.function.name }} {% endfor %}{% endfor %}"
    )
    renderer = Renderer(byte_tokenizer(template))
    assert renderer.decode(renderer.render(CALLED)) == "hélloCALL get_time 12:00"


def test_several_results_written_out_are_one_turn() -> None:
    renderer = Renderer(byte_tokenizer())
    text = renderer.decode(renderer.render([*CALLED, {"role": "tool", "content": "13:00"}]))
    assert text.count("<|turn|>user") == 2
    assert "12:00\n</tool_response>\n<tool_response>\n13:00" in text


def test_a_developer_is_the_system_to_a_template_that_does_not_know_the_role() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *CHAT]
    text = Renderer(byte_tokenizer()).render(messages)
    assert text == Renderer(byte_tokenizer()).render([{**messages[0], "role": "system"}, *CHAT])
    knows = Renderer(byte_tokenizer("{% if messages[0].role == 'developer' %}D{% endif %}" + TURNS))
    assert knows.decode(knows.render(messages)).startswith("D<|turn|>developer\n")


def test_equal_templates_have_equal_hashes() -> None:
    assert Renderer(byte_tokenizer()).template_hash() == Renderer(byte_tokenizer()).template_hash()
    assert (
        Renderer(byte_tokenizer()).template_hash()
        != Renderer(byte_tokenizer(WITH_BOS)).template_hash()
    )


# As templates of models that see pictures read contents: one drops text, the other raises.
PARTS_ALONE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
PARTS_OR_ERROR = PARTS_ALONE.replace("{% for part in m.content %}", "{{ m.content[0].text + '' }}")


@pytest.mark.parametrize("template", [PARTS_ALONE, PARTS_OR_ERROR])
def test_a_template_that_reads_parts_gets_text_as_a_part(template: str) -> None:
    if template == PARTS_OR_ERROR:
        end = "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
        template = template.replace(end, "")
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    renderer = Renderer(byte_tokenizer(template))
    text = renderer.decode(renderer.render(messages))
    plain = Renderer(byte_tokenizer())
    assert text == plain.decode(plain.render(messages))
    (row,) = renderer.supervise([*messages, {"role": "assistant", "content": "hi"}])
    assert renderer.decode([label for label in row.labels if label != -100]) == "hi<|end|>"


@pytest.mark.parametrize(
    "refusal", ["{{ raise_exception('no system here') }}", "{% set ignored = true %}"]
)
def test_a_system_message_that_a_template_does_not_take_goes_into_the_first_question(
    refusal: str,
) -> None:
    template = TURNS.replace(
        "<|turn|>", "{% if message.role == 'system' %}" + refusal + "{% else %}<|turn|>", 1
    ).replace("<|end|>{% endfor %}", "<|end|>{% endif %}{% endfor %}")
    renderer = Renderer(byte_tokenizer(template))
    text = renderer.decode(renderer.render([{"role": "system", "content": "Be brief."}, *CHAT]))
    assert text == "<|turn|>user\nBe brief.\n\nhéllo<|end|><|turn|>assistant\n"


# ---- supervision


def test_a_turn_whose_text_a_template_leaves_out_is_refused_for_training() -> None:
    silent = Renderer(byte_tokenizer("{% for m in messages %}{{ m.role }}<|end|>{% endfor %}"))
    with pytest.raises(RenderingError, match="does not write what turn 2"):
        silent.supervise([*CHAT, {"role": "assistant", "content": "yes indeed"}])


def test_an_answer_that_begins_as_its_prompt_ends_is_learnt_behind_the_prompt() -> None:
    tokenizer = byte_tokenizer(more=["ĊĊ", "ĊĊĊ"])
    tokenizer.add_tokens(["\n\n\n"])
    renderer = Renderer(tokenizer)
    (row,) = renderer.supervise([*CHAT, {"role": "assistant", "content": "\n\ndef"}])
    prompt = renderer.render(CHAT)
    assert row.input_ids[: len(prompt)] == prompt
    assert renderer.decode(row.input_ids[len(prompt) :]) == "\n\ndef<|end|>"


RENDERER = Renderer(byte_tokenizer(WITH_BOS))
words = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<|>"), max_size=20)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4), st.none() | words)
def test_the_loss_sees_each_answer_and_its_end_and_nothing_else(
    exchanges: list[tuple[str, str]], system: str | None
) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in exchanges:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    (supervised,) = RENDERER.supervise(messages)
    assert supervised.input_ids == RENDERER.render(messages, add_generation_prompt=False)
    assert len(supervised.labels) == len(supervised.input_ids)
    learnt = [label for label in supervised.labels if label != -100]
    assert RENDERER.decode(learnt) == "".join(f"{answer}<|end|>" for _, answer in exchanges)
    for token, label in zip(supervised.input_ids, supervised.labels, strict=True):
        assert label in (-100, token)


def test_what_is_trained_begins_as_what_is_served() -> None:
    messages = [*CHAT, {"role": "assistant", "content": "hi"}]
    (supervised,) = RENDERER.supervise(messages)
    prompt = RENDERER.render(CHAT)
    assert supervised.input_ids[: len(prompt)] == prompt
    assert set(supervised.labels[: len(prompt)]) == {-100}
    assert supervised.labels[len(prompt)] != -100


def test_a_conversation_without_an_answer_teaches_nothing() -> None:
    assert RENDERER.supervise(CHAT) == ()


def test_a_template_that_rewrites_earlier_turns_is_refused_for_training() -> None:
    messages = [
        *CHAT,
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    with pytest.raises(RenderingError, match="cannot be told apart"):
        Renderer(byte_tokenizer(FORGETFUL)).supervise(messages)


def test_all_ways_of_a_strangers_template_have_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    drops_all = "nothing of it"
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    renderer = Renderer(byte_tokenizer())
    with Templates() as templates:
        text = renderer.render(chat, chat_template=drops_all, templates=templates)
        assert renderer.decode(text) == drops_all
        monkeypatch.setattr(writing, "_MOST_SECONDS", 0.0)
        with pytest.raises(RenderingError, match="it takes too long"):
            renderer.render(chat, chat_template=drops_all, templates=templates)
