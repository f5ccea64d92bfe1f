"""DSPy: programs over each of its adapters, which ask for texts of a form."""

import dspy
import pytest


class Judge(dspy.Signature):
    """Judge the text."""

    text: str = dspy.InputField()
    label: str = dspy.OutputField()
    score: int = dspy.OutputField()


@pytest.fixture
def lm(target):
    return dspy.LM(
        f"openai/{target.model}",
        api_base=target.base_url,
        api_key=target.key,
        cache=False,
        num_retries=0,
        max_tokens=2000,
    )


def test_a_plain_call(lm):
    [answer] = lm("hello")
    assert (answer if isinstance(answer, str) else answer["text"]) == "You said: hello"


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter, dspy.ChatAdapter])
def test_a_signature_is_filled(lm, adapter):
    with dspy.context(lm=lm, adapter=adapter()):
        made = dspy.ChainOfThought(Judge)(text="fine")
    assert (made.label, made.score) == ("1", 1)


async def test_a_program_streams(lm):
    listener = dspy.streaming.StreamListener(signature_field_name="label")
    program = dspy.streamify(dspy.Predict(Judge), stream_listeners=[listener])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        *_, last = [piece async for piece in program(text="fine")]
    assert last.score == 1


def test_responses(target):
    lm = dspy.LM(
        f"openai/{target.model}",
        model_type="responses",
        api_base=target.base_url,
        api_key=target.key,
        cache=False,
        num_retries=0,
    )
    [answer] = lm("hello")
    assert (answer if isinstance(answer, str) else answer["text"]) == "You said: hello"
