"""Who is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ContenderName = Literal["base", "champion", "new"]


@dataclass(frozen=True, slots=True)
class Contender:
    """A model to load and to ask. `model` is the folder of a base model or of a fully trained one;
    `adapter` is None for the model alone. `served_as` is its name where it is asked.
    """

    name: ContenderName
    title: str
    model: Path
    adapter: Path | None
    served_as: str
