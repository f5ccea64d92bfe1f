"""The names that tables of the run file may have, such as [evaluation.metrics.NAME]."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from loragate.trainer.errors import EvaluationError

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")


def check_name(table: str, name: str, taken: Collection[str]) -> None:
    """Raises EvaluationError where the name of this table is none that a requirement and a column
    of a sheet can have, or is one of `taken`.
    """
    if not _NAME.fullmatch(name):
        raise EvaluationError(
            f"[{table}.{name}]: {name!r} is no name here; use small letters, digits and _, a "
            "letter first, at most 40"
        )
    if name in taken:
        raise EvaluationError(
            f"[{table}.{name}]: the name {name!r} is taken (so are {', '.join(sorted(taken))}); "
            "choose another"
        )
