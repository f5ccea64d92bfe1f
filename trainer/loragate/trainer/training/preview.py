"""What a run would learn of its first rows, token by token: made by the run's own renderer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec

from loragate.adapters.rendering.renderer import IGNORED, Renderer, RenderingError, Supervised
from loragate.trainer.data.example import Example
from loragate.trainer.data.reading import read_rows
from loragate.trainer.data.settings import Reading
from loragate.trainer.data.splits import SHEET, SplitFolder
from loragate.trainer.run.run import Run
from loragate.trainer.training.encoding import Encoder
from loragate.trainer.training.plan import find_parent, template_variables

_UNLIMITED: Final = 2**31


@dataclass(frozen=True, slots=True)
class PreviewedRow:
    """One training row as pieces of text, each with whether it is learnt. Where the example cannot
    be learnt there are none, and `refusal` says why.
    """

    place: str
    pieces: tuple[tuple[str, bool], ...] = ()
    tokens: int = 0
    learnt: int = 0
    lost_reasoning: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """`ends` are the texts of the tokens that end the rows' answers, `stops` those of them at which
    a server stops by the adapter's contract alone.
    """

    template: str
    variables: Mapping[str, object]
    ends: tuple[str, ...]
    stops: tuple[str, ...]
    rows: tuple[PreviewedRow, ...]

    def to_json(self) -> dict[str, object]:
        return msgspec.to_builtins(self)


def preview(run: Run, count: int) -> Preview:
    """Of the first `count` examples. Raises what reading the run, its data and its model raises."""
    base = run.base()
    examples = dict(_examples(run, count))
    wanted = run.settings.model.continue_from
    parent = find_parent(wanted, run.home) if wanted else None
    variables = template_variables(
        run.settings, run.renderer(base), list(examples.values()), parent
    )
    model = msgspec.structs.replace(run.settings.model, chat_template_kwargs=variables)
    run = replace(run, settings=msgspec.structs.replace(run.settings, model=model))
    renderer = run.renderer(base)
    encoder = Encoder(renderer, _UNLIMITED, system_prompt=run.settings.data.system_prompt)
    rows = list(_rows(encoder, examples))
    ends = frozenset[int]().union(*(row.ends for _, row in rows if isinstance(row, Supervised)))
    return Preview(
        run.settings.model.chat_template or f"the own one of {base.name}",
        variables,
        _texts(renderer, ends),
        _texts(renderer, ends - renderer.ends.ids),
        tuple(_previewed(renderer, place, row) for place, row in rows),
    )


def _examples(run: Run, count: int) -> Iterator[tuple[str, Example]]:
    """By their places: of the splits that there are, else of the raw files as they are read."""
    data = run.settings.data
    folder = run.root / data.splits if data.splits else run.folder.data
    if data.splits or (folder / SHEET).is_file():
        for number, example in enumerate(SplitFolder.read(folder).splits["train"][:count], start=1):
            yield f"row {number} of train", example
        return
    reading = Reading(
        data.format, "drop", label_field=data.label_field, group_field=data.group_field
    )
    read = read_rows([run.root / Path(path) for path in data.raw], reading)
    for row in read.rows[:count]:
        yield str(row.place), row.example


def _rows(
    encoder: Encoder, examples: Mapping[str, Example]
) -> Iterator[tuple[str, Supervised | str]]:
    for place, example in examples.items():
        try:
            found = encoder.rows_of(example)
        except RenderingError as error:
            yield place, str(error)
            continue
        for number, row in enumerate(found, start=1):
            yield place if len(found) == 1 else f"{place}, part {number} of {len(found)}", row


def _previewed(renderer: Renderer, place: str, row: Supervised | str) -> PreviewedRow:
    if isinstance(row, str):
        return PreviewedRow(place, refusal=row)
    marked = zip(row.input_ids, row.labels, strict=True)
    pieces = tuple(
        (renderer.decode([token for token, _ in group]), is_learnt)
        for is_learnt, group in groupby(marked, key=lambda pair: pair[1] != IGNORED)
    )
    learnt = sum(label != IGNORED for label in row.labels)
    return PreviewedRow(place, pieces, len(row.input_ids), learnt, row.lost_reasoning)


def _texts(renderer: Renderer, ids: Iterable[int]) -> tuple[str, ...]:
    return tuple(renderer.decode([each]) for each in sorted(ids))
