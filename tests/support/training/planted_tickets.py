"""The example tickets on their way, and the sheet of what was planted in them."""

from dataclasses import dataclass
from pathlib import Path

from loragate.trainer.data.preparing import PreparedData

EXAMPLES = Path(__file__).parents[3] / "examples" / "data"


@dataclass(frozen=True)
class Planted:
    """A row of the sheet: what was planted in which line, and the line that it repeats."""

    kind: str
    file: str
    line: int
    of: int | None = None


@dataclass(frozen=True)
class Tickets:
    """The example tickets on their way, and what was planted in them."""

    prepared: PreparedData
    planted: list[Planted]
    secrets: list[str]

    def lines(self, kind: str) -> set[int]:
        return {row.line for row in self.planted if row.kind == kind}
