"""What is compared: the systems, and the rows that they answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.example import Example
from loragate.trainer.evaluation.contenders import (
    Prompt,
    Prompting,
    prompts_with_examples,
    prompts_with_retrieval,
)
from loragate.trainer.evaluation.served import ServedModels
from loragate.trainer.settings import CostSettings

SystemName = Literal["base", "examples", "retrieval", "first", "champion", "new"]


@dataclass(frozen=True, slots=True)
class System:
    """One of the models that are compared. `model` is the folder of a base model or of a fully
    trained one, `adapter` that of an adapter for it, if there is one. `served_as` is its name on
    the server that answers for it, `title` what reports call it. `prompting` says which training
    rows stand before its questions; the losses of such a system are not measured. `digest` is that
    of the version that has to answer on a server which runs already, where it is known.
    """

    name: SystemName
    title: str
    model: Path
    adapter: Path | None
    served_as: str
    prompting: Prompting = ""
    digest: str = ""


OpenModels = Callable[[Sequence[System]], AbstractAsyncContextManager[ServedModels]]
"""Starts a server of systems that share a base model, or connects to one, for a block."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The systems and the rows that they are compared on.

    `systems` begin with the base and end with the new one; those that share a model are neighbours.
    `rows` are the whole test split; none of them was trained on. `train` is the training split, for
    contenders that use it; their prompts have at most `longest_prompt` tokens. `device` is for the
    losses, `served_by` for the report, `prices` for what requests cost. `far` says of each row
    whether every train row is far from it, `sets` are more rows by name, `titles` what reports
    call these, and `left_out` says which
    rows were known to something. Metrics of one's own are looked for in `root`.
    """

    title: str
    base: BaseModel
    systems: tuple[System, ...]
    rows: Sequence[Example]
    renderer: Renderer
    data_digest: str
    served_by: str
    device: str = "cpu"
    train: Sequence[Example] = ()
    longest_prompt: int = sys.maxsize
    prices: CostSettings = field(default_factory=CostSettings)
    far: Sequence[bool] = ()
    sets: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    left_out: str = ""
    root: Path = Path()

    def prompts_of(self, system: System, rows: Sequence[Example], examples: int) -> list[Prompt]:
        """What the system is asked for each of these rows."""
        if not system.prompting:
            return [row.messages[:-1] for row in rows]
        make = prompts_with_examples if system.prompting == "examples" else prompts_with_retrieval
        return make(rows, self.train, examples, self._fits)

    def _fits(self, prompt: Prompt, tools: str) -> bool:
        row = Example(prompt, tools=tools)
        ids = self.renderer.render(row.turns(), tools=row.tool_list())
        return len(ids) <= self.longest_prompt
