"""The unseen rows of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from loragate.trainer.data.example import Example, Message
from loragate.trainer.data.split_folder import SplitFolder
from loragate.trainer.run.file import RunFile
from loragate.trainer.run.folder import RunFolder


def read_test_rows(run: RunFolder, settings: RunFile) -> list[Example]:
    """The unseen rows, each with the system prompt of the run, so that the base gets it too."""
    folder = run.data if settings.data.raw else Path(settings.data.splits)
    rows = SplitFolder.read(folder).splits["test"]
    return [_with_system_prompt(row, settings.data.system_prompt) for row in rows]


def _with_system_prompt(row: Example, system_prompt: str) -> Example:
    if not system_prompt or row.messages[0].role == "system":
        return row
    return dataclasses.replace(row, messages=(Message("system", system_prompt), *row.messages))
