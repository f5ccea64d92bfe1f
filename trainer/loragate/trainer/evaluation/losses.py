"""How well models predict texts that they did not write: nats a token, row by row.

Computed with transformers and PEFT on the ids and labels of the shared renderer, so it is the loss
that training minimises. It knows nothing of servers and answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from loragate.adapters.rendering.renderer import IGNORED, Renderer, Supervised
from loragate.trainer.training.models import load_adapter

_BATCH_TOKENS: Final = 2048  # logits of so many tokens are held at once


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one row: nats in all, over so many tokens."""

    nats: float
    tokens: int


def supervised_text(renderer: Renderer, text: str) -> Supervised:
    """Plain text, in which every token but the first is to be predicted."""
    ids = renderer.encode(text, add_special_tokens=True)
    return Supervised(ids, (IGNORED, *ids[1:]))


@contextmanager
def adapted(model: nn.Module, adapter: Path) -> Iterator[nn.Module]:
    """The model with an adapter on it, which is taken off again at the end. Raises
    AdapterNotApplied.
    """
    with_adapter = load_adapter(model, adapter)
    try:
        yield with_adapter
    finally:
        with_adapter.unload()


@torch.inference_mode()
def row_losses(
    model: nn.Module, rows: Sequence[Supervised], done: Callable[[int], None] = lambda _rows: None
) -> list[Loss]:
    """The losses in the order of `rows`; `done` hears how many rows a batch had."""
    losses: dict[int, Loss] = {}
    for batch in _batches(rows):
        ids, mask, labels = _padded([rows[index] for index in batch], _device(model))
        for index, loss in zip(batch, _losses(model, ids, mask, labels), strict=True):
            losses[index] = loss
        done(len(batch))
    return [losses[index] for index in range(len(rows))]


def _losses(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Iterator[Loss]:
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    targets = labels[:, 1:]
    nats = nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    for row, target in zip(nats, targets, strict=True):
        yield Loss(float(row.double().sum()), int((target != IGNORED).sum()))


def _batches(rows: Sequence[Supervised]) -> Iterator[list[int]]:
    """Rows of like length together, longest first, so that too little memory shows at once."""
    batch: list[int] = []
    width = 0
    for index in sorted(range(len(rows)), key=lambda row: -len(rows[row].input_ids)):
        if batch and width * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        width = width if batch else len(rows[index].input_ids)
        batch.append(index)
    if batch:
        yield batch


def _padded(rows: Sequence[Supervised], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(row.input_ids) for row in rows)

    def stack(lists: Sequence[Sequence[int]], filler: int) -> Tensor:
        padded = [[*values, *[filler] * (width - len(values))] for values in lists]
        return torch.tensor(padded, device=device)

    ids = stack([row.input_ids for row in rows], 0)
    mask = stack([[1] * len(row.input_ids) for row in rows], 0)
    return ids, mask, stack([row.labels for row in rows], IGNORED)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
