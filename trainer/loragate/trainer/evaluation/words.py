"""The words of a text in any script, and which tokens BLEU should count for a language.

Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) count
by the character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final, Literal

BleuTokens = Literal["13a", "intl", "zh", "char"]

_HAN: Final = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_OTHER_SPACELESS: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0xFF66, 0xFF9F),
)
_LATIN_UP_TO: Final = 0x036F
_MORE_LATIN: Final = ((0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF), (0xFF21, 0xFF5A))
_MUCH: Final = 0.3  # of a text's letters


class _Spacing(dict[int, str]):
    """For `str.translate`: what is no letter, mark or digit becomes a space, and a character of a
    script without spaces gets one on either side.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if kind == "Cf":  # joiners, which are seen by nobody
            found = ""
        elif kind[0] not in "LMN":
            found = " "
        elif _is_in(code, _HAN) or _is_in(code, _OTHER_SPACELESS):
            found = f" {character} "
        else:
            found = character
        self[code] = found
        return found


_SPACING: Final = _Spacing()


def words(text: str) -> list[str]:
    """The words in lower case, without punctuation.

    Of ASCII text these are the words that rouge-score counts.
    """
    return unicodedata.normalize("NFC", text.lower()).translate(_SPACING).split()


def bleu_tokens(texts: Iterable[str]) -> BleuTokens:
    """The name of sacrebleu's tokeniser for the script in which most of these texts are written."""
    letters = han = spaceless = foreign = 0
    for text in texts:
        for character in text:
            if not character.isalpha():
                continue
            code = ord(character)
            letters += 1
            han += _is_in(code, _HAN)
            spaceless += _is_in(code, _OTHER_SPACELESS)
            foreign += code > _LATIN_UP_TO and not _is_in(code, _MORE_LATIN)
    if spaceless > _MUCH / 3 * letters:  # Japanese is also written in Han
        return "char"
    if han > _MUCH * letters:
        return "zh"
    return "intl" if foreign > _MUCH * letters else "13a"


def _is_in(code: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(low <= code <= high for low, high in ranges)
