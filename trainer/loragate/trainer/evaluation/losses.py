"""The loss of each row of text under a model, in nats, computed with transformers and PEFT.

Ids and labels come from the shared renderer, so this is the loss that training minimises. No server
is involved, and no answer is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from loragate.adapters.rendering.renderer import IGNORED, Renderer, Supervised
from loragate.trainer.errors import EvaluationError
from loragate.trainer.training.models import load_adapter

_BATCH_TOKENS: Final = 2048  # the most tokens, with padding, whose logits are in memory at once


@dataclass(frozen=True, slots=True)
class Loss:
    """One row's loss: the sum in nats over its supervised tokens, and how many these are."""

    nats: float
    tokens: int


def general_paragraphs(path: str = "") -> list[str]:
    """The paragraphs of a text file, which empty lines separate; by default those of the general
    English that is part of the package. Raises EvaluationError.
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


def supervised_text(renderer: Renderer, text: str) -> Supervised:
    """Plain text without a template, whose tokens are all supervised but the first."""
    ids = renderer.encode(text, add_special_tokens=True)
    return Supervised(ids, (IGNORED, *ids[1:]))


@contextmanager
def adapted(model: nn.Module, adapter: Path) -> Iterator[nn.Module]:
    """The model with an adapter in it, which is removed from `model` when the block ends. Raises
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
    """The losses in the order of `rows`. `done` is called after each batch with its number of rows.

    `model` has to be in evaluation mode, and computes in its own dtype; the losses are float32,
    summed in float64.
    """
    losses: dict[int, Loss] = {}
    for batch in _batches(rows):
        ids, mask, labels = _padded([rows[index] for index in batch], _device(model))
        for index, loss in zip(batch, _losses(model, ids, mask, labels), strict=True):
            losses[index] = loss
        done(len(batch))
    return [losses[index] for index in range(len(rows))]


def conversation_losses(
    model: nn.Module,
    conversations: Sequence[Sequence[Supervised]],
    done: Callable[[int], None] = lambda _rows: None,
) -> list[Loss]:
    """As `row_losses`, of conversations that are one row or several."""
    rows = [row for conversation in conversations for row in conversation]
    losses = iter(row_losses(model, rows, done))
    return [
        Loss(sum(one.nats for one in each), sum(one.tokens for one in each))
        for each in ([next(losses) for _ in conversation] for conversation in conversations)
    ]


def _losses(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> Iterator[Loss]:
    """`ids`, `mask` and `labels` are int64 of (rows, length)."""
    # The logits at a position predict the next token, so they are compared one label further on.
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    targets = labels[:, 1:]
    nats = nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    for row, target in zip(nats, targets, strict=True):
        yield Loss(float(row.double().sum()), int((target != IGNORED).sum()))


def _batches(rows: Sequence[Supervised]) -> Iterator[list[int]]:
    """Indices of rows of similar length, the longest first, so that a batch which does not fit into
    memory fails at once and not after minutes.
    """
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
