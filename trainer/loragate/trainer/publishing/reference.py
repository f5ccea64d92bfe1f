"""Computes references, by which a server checks that it serves an adapter as it was trained."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from peft import PeftModel

from loragate.adapters.format.files import MANIFEST, inspect
from loragate.adapters.format.reference import Reference, ScoredPrompt, mean_difference
from loragate.trainer.errors import TrainingError
from loragate.trainer.training.models import exact_device, load_adapter, load_float32

# Every promotion scores them: about a millisecond a token on a CPU, during which others wait. Of 46
# scores the mean is known to 0.03 nats in bfloat16, where half a scale is half a nat off.
PROMPTS: Final = 2
PROMPT_TOKENS: Final = 24
# In nats. A wrong scale leaves half of it or less, so 0.15 are missing where 0.109 are allowed.
_LEAST_EFFECT: Final = 0.3


def compute_reference(
    base: Path, adapter: Path, prompts: Iterable[Sequence[int]], most: int = PROMPTS
) -> Reference:
    """The log-probabilities, in nats and computed in float32, of the base and of the adapter on
    `prompts`, which are token ids. Both are loaded from their folders.

    The first `most` prompts are taken, and of each the last `PROMPT_TOKENS` tokens: chats that end
    with the assistant's answer are best, since the adapter changes most there. Raises TrainingError
    where the adapter changes too little on them, and AdapterNotApplied where a part of it would be
    missing.
    """
    model = load_float32(base, exact_device(base))
    return reference_of(load_adapter(model, adapter), prompts, most)


def reference_of(
    model: PeftModel, prompts: Iterable[Sequence[int]], most: int = PROMPTS
) -> Reference:
    """As `compute_reference`, of a model in memory, which must be float32. Its mode is restored."""
    was_training = model.training
    model.eval()
    try:
        scored = tuple(_scored(model, ids) for ids in itertools.islice(prompts, most))
    finally:
        model.train(was_training)
    if not scored:
        raise TrainingError("A reference needs at least one prompt; give some chats.")
    effect = mean_difference(
        [score for prompt in scored for score in prompt.adapter],
        [score for prompt in scored for score in prompt.base],
    )
    if effect < _LEAST_EFFECT:
        raise TrainingError(
            f"On these prompts the adapter moves log-probabilities by {effect:.3f} nats on "
            f"average, and below {_LEAST_EFFECT} a wrong scale could not be told from rounding; "
            "give chats like those it was trained on, each with its answer."
        )
    return Reference(scored)


def write_reference(folder: Path, reference: Reference) -> None:
    """Adds it to the folder's manifest.json, whose other fields stay as they are. Raises
    InvalidAdapter for a folder that is no adapter.
    """
    manifest = replace(inspect(folder).manifest, reference=reference)
    (folder / MANIFEST).write_text(manifest.to_json())


def _scored(model: PeftModel, token_ids: Sequence[int]) -> ScoredPrompt:
    ids = tuple(token_ids[-PROMPT_TOKENS:])
    adapter = _logprobs(model, ids)
    with model.disable_adapter():
        base = _logprobs(model, ids)
    try:
        return ScoredPrompt(ids, adapter, base)
    except ValueError as error:
        raise TrainingError(
            f"The model's scores cannot be used: {error}. The training diverged, or the base model "
            "overflows; train again with a lower learning rate."
        ) from error


@torch.inference_mode()
def _logprobs(model: PeftModel, ids: Sequence[int]) -> tuple[float, ...]:
    """Of each token but the first, given those before it."""
    tokens = torch.tensor([ids], device=model.device)
    logits = model(input_ids=tokens).logits[0, :-1].float()
    chosen = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return tuple(round(score, 5) for score in chosen.clamp(max=0.0).tolist())
