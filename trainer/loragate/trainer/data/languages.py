"""Which language a text is in, by a model that the package brings along (no download)."""

import re

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from loragate.trainer.data.example import DataError

UNSURE = "unsure"
# Probabilities by the model: "Internet down" is English with 0.06 and Danish with 0.07, a German
# sentence of ten words is German with 0.99 and English with less than 0.0001.
_SURE = 0.9
_RULED_OUT = 0.002
_FEWEST_LETTERS = 20
_NOT_WORDS = re.compile(r"[\W\d_]+")


class Languages:
    """Tells languages apart. Loading takes about a second, so make one and pass it on."""

    def __init__(self) -> None:
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def of(self, text: str) -> str:
        """An ISO 639 code, or `UNSURE`: short texts look like many languages."""
        if _is_short(text):
            return UNSURE
        language, confidence = self._identifier.classify(text)
        return str(language) if float(confidence) >= _SURE else UNSURE

    def is_other(self, text: str, wanted: str) -> str:
        """The likeliest language where `text` is surely not in `wanted`, or nothing."""
        if _is_short(text):
            return ""
        ranked = self._identifier.rank(text)
        return str(ranked[0][0]) if dict(ranked)[wanted] < _RULED_OUT else ""

    def check_code(self, code: str) -> None:
        """Raises DataError for a code that no text can have."""
        if code not in self._identifier.labels:
            raise DataError(
                f"the language {code!r} is unknown; use a code such as en, de, fr or ja"
            )


def _is_short(text: str) -> bool:
    return len(_NOT_WORDS.sub("", text)) < _FEWEST_LETTERS
