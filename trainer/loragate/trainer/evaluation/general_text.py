"""Plain English that no adapter is trained on, to see what training made a model forget."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from loragate.trainer.evaluation.errors import EvaluationError


def paragraphs(path: str = "") -> list[str]:
    """Those of a text file, with empty lines between them; by default the shipped ones.

    Raises EvaluationError.
    """
    if not path:
        text = (files("loragate.trainer.evaluation") / "general_text.txt").read_text("utf-8")
    else:
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(
                f"[evaluation] general_text: {path} cannot be read ({error})"
            ) from error
    found = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
    if not found:
        raise EvaluationError(f"[evaluation] general_text: {path} is empty")
    return found
