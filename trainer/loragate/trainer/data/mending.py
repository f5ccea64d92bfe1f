"""Text as it was meant: mojibake, odd characters and stray whitespace are put right."""

import re
import unicodedata
from dataclasses import replace

from ftfy import TextFixerConfig, fix_text

from loragate.trainer.data.example import Example

# What people typed on purpose stays: HTML entities, curly quotes and ligatures are not "mended".
_FIXES = TextFixerConfig(
    unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, normalization="NFC"
)
# Soft hyphens, zero-width spaces and joiners between letters, byte order marks, bidi controls. The
# joiner U+200D and U+200C stay: emoji and several scripts are written with them.
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def mend(example: Example) -> Example:
    """The example with every text mended."""
    return replace(
        example,
        messages=tuple(
            replace(message, content=mend_text(message.content)) for message in example.messages
        ),
    )


def mend_text(text: str) -> str:
    fixed = _INVISIBLE.sub("", fix_text(text, _FIXES))
    fixed = "".join(char for char in fixed if char in "\n\t" or unicodedata.category(char) != "Cc")
    return tidy_whitespace(fixed)


def tidy_whitespace(text: str) -> str:
    """Single spaces, no spaces at the ends of lines, one empty line at most.

    Where lines are indented, as in code, the inner spaces mean something and stay.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    is_indented = any(line[:1] in (" ", "\t") and line.strip() for line in lines[1:])
    if is_indented:
        lines = [line.rstrip() for line in lines]
    else:
        lines = [_SPACES.sub(" ", line).strip() for line in lines]
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()
