"""Text put right, and text left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.trainer.data.cleaning import mends_of, normalise_text
from loragate.trainer.data.settings import DEFAULT_MENDS


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("The cafÃ© isnâ€™t open", "The café isn\u2019t open"),
        ("schÃ¶n", "schön"),
        ("e\u0301", "é"),
        ("a\u200bb\ufeff c\u00ad", "ab c"),
        ("\u202aright\u202c", "right"),
        ("ring\x07 me\x00", "ring me"),
        ("  a\u00a0 b\t c  \r\n\r\n\r\n\r\nd ", "a b c\n\nd"),
    ],
)
def test_broken_text_is_normalised(raw: str, normalised: str):
    assert normalise_text(raw) == normalised


@pytest.mark.parametrize(
    "text",
    [
        "it\u2019s \u201cfine\u201d",
        "a &lt; b &amp; c",
        "Code:\ndef f(x):\n    return  x",
        "👩\u200d🔬 at work",
        "日本語のテキスト",
        "ﬁne with me",
        "您好！包裹已发出，预计明天（周三）到达。下月１日，￥１２８。",
        "    for x in xs:\n        total += x\n    return total",
        "    return total",
        "def total(xs):\n    total = 0\n",
        "class A:\n    a = 1\n\n\nclass B:\n    b = 2\n",
        "Sort this table:\na\t3\nb\t1",
        "b\t1",
        "name   age\nAnna   31\nBo     7",
    ],
)
def test_what_was_meant_so_stays(text: str):
    assert normalise_text(text) == text


@given(st.text(alphabet="abcäöß. ", max_size=80))
def test_mending_twice_is_mending_once(text: str):
    once = normalise_text(text)
    assert normalise_text(once) == once


def test_every_mend_can_be_left_out_and_is_named():
    raw = "The cafÃ© \u200bis\x07  e\u0301"
    mended = normalise_text(raw)
    assert mended == "The café is é"
    assert mends_of(raw, mended, DEFAULT_MENDS) == list(DEFAULT_MENDS)
    assert normalise_text(raw, ()) == raw
    assert "Ã©" in normalise_text(raw, ("invisible", "control"))


def test_full_width_signs_become_ascii_only_where_that_is_asked_for():
    assert normalise_text("（１）", ("width",)) == "(1)"
