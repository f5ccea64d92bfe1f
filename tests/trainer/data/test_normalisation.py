"""Text put right, and text left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.trainer.data.cleaning import normalise_text


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
    ],
)
def test_what_was_meant_so_stays(text: str):
    assert normalise_text(text) == text


@given(st.text(alphabet="abcäöß. ", max_size=80))
def test_mending_twice_is_mending_once(text: str):
    once = normalise_text(text)
    assert normalise_text(once) == once
