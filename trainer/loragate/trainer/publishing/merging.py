"""Merges an adapter into its base model, and checks that the result computes the same.

The sum is computed in float32 and rounded once, since fewer bits lose small changes. A quantised
model is refused, since its rounding can erase all that was learnt. What was written is loaded again
and compared with the base that has the adapter beside it; a merge that differs is refused.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loragate.adapters.errors import LoragateError
from loragate.adapters.format.merged_files import REPORT
from loragate.trainer.settings import MergeDtype, MethodSettings
from loragate.trainer.training.models import (
    exact_device,
    free_device_memory,
    load_adapter,
    load_float32,
    quantization_config,
)

_DTYPES: Final[dict[MergeDtype, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# What makes the tokenizer and the way a model is called: copied as it is, so its hashes stay.
_COPIED: Final = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken", "tekken.json", "chat_template*", "generation_config.json"),
)


class MergeRefused(LoragateError):
    """A merge that is not possible without loss, or whose result computes something else."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One model's next-token distributions against a reference's, over `positions` positions of
    held-out prompts: KL divergences in nats, the share of equal most likely tokens from 0 to 1, and
    the largest difference of any logit. `loss` is the model's own, in nats a token.
    """

    positions: int
    mean_kl: float
    largest_kl: float
    top1_agreement: float
    largest_logit_difference: float
    loss: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an `Agreement` must not exceed, and for `top1_agreement` must reach."""

    mean_kl: float
    top1_agreement: float
    largest_logit_difference: float

    def broken_by(self, found: Agreement) -> list[str]:
        """A sentence for each bound that does not hold; NaN holds none."""
        claims = [
            (
                found.mean_kl <= self.mean_kl,
                f"the mean KL divergence is {found.mean_kl:.2g} nats, allowed are {self.mean_kl:g}",
            ),
            (
                found.top1_agreement >= self.top1_agreement,
                f"the most likely token is the same at {100 * found.top1_agreement:.1f} % of the "
                f"positions, needed are {100 * self.top1_agreement:g} %",
            ),
            (
                found.largest_logit_difference <= self.largest_logit_difference,
                f"a logit differs by {found.largest_logit_difference:.2g}, allowed are "
                f"{self.largest_logit_difference:g}",
            ),
        ]
        return [sentence for holds, sentence in claims if not holds]


# Measured on SmolLM2-135M with the example adapters, 778 positions: in float32 a KL of 3e-11 and
# 1.6e-4 for the farthest logit; in float16 5e-6, 99.2 % equal tokens and 0.12; in bfloat16 2e-4,
# 99.6 % and 0.5. The bounds leave room for larger models, and none for a wrong scale.
EXACT: Final = Bounds(mean_kl=1e-6, top1_agreement=0.999, largest_logit_difference=1e-3)
BOUNDS: Final[Mapping[MergeDtype, Bounds]] = {
    "float32": EXACT,
    "float16": Bounds(mean_kl=5e-4, top1_agreement=0.98, largest_logit_difference=1.0),
    "bfloat16": Bounds(mean_kl=5e-3, top1_agreement=0.97, largest_logit_difference=3.0),
}


@dataclass(frozen=True, slots=True)
class QuantizedComparison:
    """For an adapter trained on a quantised base: the merges into the full and into the dequantised
    base, each against what training computed with, the quantised base with the adapter beside it.
    """

    onto_full: Agreement
    onto_dequantized: Agreement
    closer: str
    sentence: str


@dataclass(frozen=True, slots=True)
class MergeReport:
    """`merged` is the agreement before rounding, `saved` that of the written model."""

    dtype: MergeDtype
    merged: Agreement
    saved: Agreement
    quantized: QuantizedComparison | None = None

    @property
    def sentence(self) -> str:
        return (
            f"merged in float32 and rounded once to {self.dtype}; loaded again and held against "
            f"the base with the adapter beside it, over {self.saved.positions} positions of "
            f"held-out text: mean KL divergence {self.saved.mean_kl:.2g} nats, the same most "
            f"likely token at {100 * self.saved.top1_agreement:.1f} %, largest logit difference "
            f"{self.saved.largest_logit_difference:.2g} "
            f"({self.merged.largest_logit_difference:.2g} before rounding)."
        )


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    prompts: Sequence[Sequence[int]],
    *,
    dtype: MergeDtype = "bfloat16",
    max_shard_size: str = "4GB",
    method: MethodSettings | None = None,
    chat_template: str | None = None,
    bounds: Mapping[MergeDtype, Bounds] = BOUNDS,
) -> MergeReport:
    """Write a whole model to `out`, which must not exist and appears only if every check holds.

    `prompts` are token ids that were not trained on. `method` is how the adapter was trained: for
    qlora, both bases are measured. `chat_template` replaces the base's own. Raises MergeRefused,
    and AdapterNotApplied where a part of the adapter would be missing.
    """
    if not prompts:
        raise MergeRefused("a merge is proved on held-out prompts; give at least one")
    if out.exists():
        raise MergeRefused(f"{out} exists already; give a folder that does not, or remove it")
    _require_full_precision(base)
    model = load_float32(base, exact_device(base))
    adapted = load_adapter(model, adapter)
    reference = _logits(adapted, prompts)
    merged = adapted.merge_and_unload(safe_merge=True)
    agreement = _agreement(reference, _logits(merged, prompts), prompts)
    _require(agreement, EXACT, "merged in float32")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        partial = Path(scratch) / out.name
        merged.to(_DTYPES[dtype]).save_pretrained(str(partial), max_shard_size=max_shard_size)
        del merged, adapted, model  # before the next model is loaded: memory holds one of them
        free_device_memory()
        _copy_tokenizer(base, partial, chat_template)
        saved = verify(partial, reference, prompts, bounds[dtype])
        quantized = None
        if method is not None and method.name == "qlora":
            quantized = compare_bases(base, adapter, prompts, method)
        report = MergeReport(dtype, agreement, saved, quantized)
        (partial / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        partial.rename(out)  # last: what lies at `out` has passed every check
    return report


def unmerged_logits(base: Path, adapter: Path, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """What a merge is compared with: for each prompt the float32 logits of (length, vocabulary) of
    the base with the adapter beside it.
    """
    return _logits(load_adapter(load_float32(base, exact_device(base)), adapter), prompts)


def verify(
    merged: Path, reference: Sequence[Tensor], prompts: Sequence[Sequence[int]], bounds: Bounds
) -> Agreement:
    """Load a merged model from its folder alone, and compare its logits with `reference`, which has
    one tensor a prompt. Raises MergeRefused where a bound does not hold.
    """
    agreement = _agreement(
        reference, _logits(load_float32(merged, exact_device(merged)), prompts), prompts
    )
    _require(agreement, bounds, "as it was written")
    return agreement


def compare_bases(
    base: Path, adapter: Path, prompts: Sequence[Sequence[int]], method: MethodSettings
) -> QuantizedComparison:
    """Measure both merges of an adapter that was trained on a quantised base. A server has the full
    base, so that is the one which is written.
    """
    seen = load_adapter(_dequantized(base, method), adapter)
    reference = _logits(seen, prompts)
    merged = seen.merge_and_unload(safe_merge=True)
    onto_dequantized = _agreement(reference, _logits(merged, prompts), prompts)
    full = unmerged_logits(base, adapter, prompts)
    onto_full = _agreement(reference, full, prompts)
    is_full = onto_full.mean_kl <= onto_dequantized.mean_kl
    better = "full" if onto_full.loss <= onto_dequantized.loss else "dequantised"
    closer = "full" if is_full else "dequantised"
    return QuantizedComparison(
        onto_full,
        onto_dequantized,
        closer,
        f"Merged into the {closer} base, the model is closer to what training saw (KL "
        f"{onto_dequantized.mean_kl:.2g} dequantised, {onto_full.mean_kl:.2g} full); on the "
        f"held-out prompts the {better} one predicts better (loss {onto_dequantized.loss:.3f} "
        f"dequantised, {onto_full.loss:.3f} full). Written was the full one, as a server of this "
        "base has it.",
    )


def _require_full_precision(base: Path) -> None:
    config = msgspec.json.decode((base / "config.json").read_bytes(), type=dict[str, object])
    if config.get("quantization_config"):
        raise MergeRefused(
            f"{base} is quantised, and merging would round what was learnt away with the weights; "
            "merge into the full-precision model that it was made of"
        )


def _require(found: Agreement, bounds: Bounds, when: str) -> None:
    if broken := bounds.broken_by(found):
        raise MergeRefused(
            f"the merged model ({when}) does not say what the base says with the adapter: "
            f"{'; '.join(broken)}. Nothing was kept; serve the adapter unmerged, or merge in a "
            "wider dtype"
        )


def _dequantized(base: Path, method: MethodSettings) -> PreTrainedModel:
    """The base with the rounding that training computed with, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(base),
        dtype=torch.float32,
        quantization_config=quantization_config(method, torch.float32),
        local_files_only=True,
    )
    return model.dequantize().float().eval()


@torch.inference_mode()
def _logits(model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([ids], device=device)).logits[0].cpu() for ids in prompts]


def _agreement(
    reference: Sequence[Tensor], found: Sequence[Tensor], prompts: Sequence[Sequence[int]]
) -> Agreement:
    """Compares logits of (length, vocabulary), one tensor a prompt. The KL divergence is of the
    reference's distribution from the one found, in float64.
    """
    kls, equal, largest, nats = [], [], 0.0, []
    for ids, expected, actual in zip(prompts, reference, found, strict=True):
        wanted = expected.double().log_softmax(-1)
        got = actual.double().log_softmax(-1)
        kls.append((wanted.exp() * (wanted - got)).sum(-1))
        equal.append((wanted.argmax(-1) == got.argmax(-1)).double())
        largest = max(largest, float((expected - actual).abs().max()))
        nats.append(-got[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0])
    kl = torch.cat(kls)
    return Agreement(
        positions=len(kl),
        mean_kl=float(kl.mean().clamp(min=0)),
        largest_kl=float(kl.max().clamp(min=0)),
        top1_agreement=float(torch.cat(equal).mean()),
        largest_logit_difference=largest,
        loss=float(torch.cat(nats).mean()),
    )


def _copy_tokenizer(base: Path, out: Path, chat_template: str | None) -> None:
    for pattern in _COPIED:
        for file in base.glob(pattern):
            shutil.copyfile(file, out / file.name)
    if chat_template is not None:
        (out / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
