"""The texts that an evaluation reads: a run's unseen rows, and general English."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from loragate.trainer.data.example import Example
from loragate.trainer.data.splits import SplitFolder
from loragate.trainer.errors import EvaluationError
from loragate.trainer.run.run import Run


def read_test_rows(run: Run) -> list[Example]:
    """The test split of a run whose settings are resolved, each row with the run's system prompt,
    so that the base gets it too. Raises DataError.
    """
    data = run.settings.data
    folder = run.folder.data if data.raw else Path(data.splits)
    rows = SplitFolder.read(folder).splits["test"]
    return [row.with_system_prompt(data.system_prompt) for row in rows]


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
