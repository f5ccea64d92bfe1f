"""An adapter of any layout as the matrices of plain LoRA, and what was done to get there.

Only what changes no product is done: a module's part of the answer is `scale * B @ A @ x` before
and after, but for the rounding of one multiplication. What is not LoRA and has no exact form as
LoRA is refused. Needs torch, so it runs in a process of its own: see `program`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from loragate.adapters.importing.names import Modules, TensorName
from loragate.adapters.importing.refusal import Refusal

Shapes = Mapping[str, tuple[int, int] | None]

_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
_FUSED: Final = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
_EMBEDDING_PARTS: Final = frozenset({"lora_embedding_A", "lora_embedding_B"})


@dataclass(frozen=True, slots=True)
class Repair:
    """What was changed, on how many modules or tensors, and why the answers stay the same."""

    what: str
    why: str


@dataclass(slots=True)
class Pair:
    """The LoRA of one module: `a` is (rank, in), `b` is (out, rank), in the dtype as written."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(slots=True)
class Adapter:
    """Pairs by the base model's names for modules."""

    pairs: dict[str, Pair]
    repairs: list[Repair] = field(default_factory=list)

    def note(self, what: str, why: str) -> None:
        self.repairs.append(Repair(what, why))


Parts = dict[str, dict[str, Tensor]]


def parts_of(
    tensors: Iterable[tuple[str, Tensor]], parse: Callable[[str], TensorName | None]
) -> Parts:
    """Tensors by module as written, then by part. Raises Refusal for what is no part of one."""
    parts: Parts = {}
    names: set[str] = set()
    for name, tensor in tensors:
        parsed = parse(name)
        if parsed is None:
            raise _foreign(name)
        if parsed.adapter is not None:
            names.add(parsed.adapter)
        if parsed.part in _EMBEDDING_PARTS:
            raise Refusal(
                "embedding_adapter",
                f"{name!r} adapts an embedding, which is not served; train with target_modules "
                "that are linear layers, or merge the adapter into its base model",
            )
        of_module = parts.setdefault(parsed.module, {})
        if parsed.part in of_module:
            raise Refusal("duplicate_tensor", f"module {parsed.module!r} has two {parsed.part}")
        of_module[parsed.part] = tensor
    if len(names) > 1:
        raise Refusal(
            "several_adapters",
            f"the file holds {len(names)} adapters ({', '.join(sorted(names)[:10])}); save each in "
            "a folder of its own",
        )
    if not parts:
        raise Refusal("no_tensors", "the file holds no tensors; train and save again")
    return parts


def to_pairs(
    parts: Parts, scale_of: Callable[[str, int, Mapping[str, Tensor]], float]
) -> dict[str, Pair]:
    """Pairs by module as written; `scale_of` gets the module, its rank and its parts."""
    pairs: dict[str, Pair] = {}
    for module, of_module in parts.items():
        for side, other in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
            if side not in of_module:
                raise Refusal(
                    "missing_pair",
                    f"module {module!r} has {other} and no {side}, so half of what was trained is "
                    "lost; save the adapter again",
                )
        a, b = of_module["lora_A"], of_module["lora_B"]
        if a.dim() != 2 or b.dim() != 2:
            raise Refusal(
                "unexpected_tensor",
                f"module {module!r} has matrices of {list(a.shape)} and {list(b.shape)}; only "
                "linear layers can be served",
            )
        pairs[module] = Pair(a, b, scale_of(module, min(b.shape), of_module))
    return pairs


def fit(pairs: Mapping[str, Pair], modules: Modules, shapes: Shapes) -> Adapter:
    """Give each pair the base model's name and its way round; split or join where the base does.

    Raises Refusal where a module is not there, or its shape is another.
    """
    adapter = Adapter({})
    renamed = 0
    for written, pair in pairs.items():
        for name, part in _named(written, pair, modules, shapes, adapter):
            if name in adapter.pairs:
                raise Refusal("duplicate_tensor", f"two of the adapter's modules are {name!r}")
            adapter.pairs[name] = part
            renamed += name != written
    _transpose(adapter, shapes)
    _check_shapes(adapter, shapes)
    if renamed:
        adapter.note(
            f"{renamed} modules renamed to what the base model calls them",
            "a name is no number: each was found by its layer and its place in it",
        )
    return adapter


def to_known_floats(adapter: Adapter) -> None:
    """Float64 as float32; raises Refusal for numbers that are no floats."""
    wide = 0
    for name, pair in adapter.pairs.items():
        for side in ("a", "b"):
            tensor: Tensor = getattr(pair, side)
            if tensor.dtype in _FLOATS:
                continue
            if tensor.dtype is not torch.float64:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise Refusal(
                    "unsupported_dtype",
                    f"module {name!r} has numbers of the type {kind}; save the adapter in float32, "
                    "float16 or bfloat16",
                )
            setattr(pair, side, tensor.float())
            wide += 1
    if wide:
        adapter.note(
            f"{wide} tensors of float64 written as float32",
            "rounded to 24 bits, more than any engine computes with",
        )


def from_adalora(parts: Parts) -> int:
    """Put the diagonal E of AdaLoRA's `B diag(E) A` into A. Returns on how many modules."""
    for of_module in parts.values():
        diagonal = of_module.pop("lora_E")
        of_module.pop("lora_ranknum", None)
        of_module["lora_A"] = of_module["lora_A"] * diagonal.reshape(-1, 1)
    return len(parts)


def from_vera(
    parts: Parts, shared: Mapping[str, Tensor], modules: Modules, shapes: Shapes
) -> Parts:
    """VeRA's `diag(b) B diag(d) A`, with A and B shared by all modules, as a LoRA of each.

    `shared` has `vera_A` (rank, widest in) and `vera_B` (widest out, rank), of which a module uses
    the first columns and rows.
    """
    made: Parts = {}
    for module, of_module in parts.items():
        shape = shapes.get(modules.resolve(module))
        if shape is None:
            raise Refusal(
                "vera", "VeRA can be converted only for a base model whose shapes are known"
            )
        out, into = shape
        a, b = shared["vera_A"][:, :into].float(), shared["vera_B"][:out].float()
        made[module] = {
            "lora_A": a * of_module["vera_lambda_d"].float().reshape(-1, 1),
            "lora_B": b * of_module["vera_lambda_b"].float().reshape(-1, 1),
        }
    return made


def unpermute_rows(b: Tensor, heads: int) -> Tensor:
    """Undo what llama.cpp does to the rows of q and k: halves of each head side by side again.

    `b` is (heads * width, rank).
    """
    return b.reshape(heads, b.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(b.shape)


def settings_of(adapter: Adapter, shapes: Shapes, base_name: str | None) -> dict[str, Any]:
    """PEFT's configuration for the pairs: what most modules have, and patterns for the others.

    A target is the end of a name where all modules of the base with it are adapted.
    """
    ranks = [pair.rank for pair in adapter.pairs.values()]
    scales = [pair.scale for pair in adapter.pairs.values()]
    rank, scale = max(ranks, key=ranks.count), max(scales, key=scales.count)
    rank_pattern = {name: p.rank for name, p in adapter.pairs.items() if p.rank != rank}
    alpha_pattern = {
        name: _whole(p.scale * p.rank)
        for name, p in adapter.pairs.items()
        if (p.scale, p.rank) != (scale, rank)
    }
    kinds = {name.rpartition(".")[2] for name in adapter.pairs}
    partly = {
        kind
        for kind in kinds
        if any(name.rpartition(".")[2] == kind and name not in adapter.pairs for name in shapes)
    }
    single = [name for name in adapter.pairs if name.rpartition(".")[2] in partly]
    targets = sorted([*(kinds - partly), *single])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": _whole(scale * rank),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
    }


def peft_scale(settings: Mapping[str, Any], rank: int, alpha: float) -> float:
    """PEFT's: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _named(
    written: str, pair: Pair, modules: Modules, shapes: Shapes, adapter: Adapter
) -> Iterable[tuple[str, Pair]]:
    try:
        yield modules.resolve(written), pair
        return
    except Refusal as refusal:
        unknown = refusal
    parent, _, last = written.rpartition(".")
    if last in _FUSED:
        yield from _split(
            written, [f"{parent}.{part}" for part in _FUSED[last]], pair, modules, shapes
        )
        adapter.note(
            f"{last} split into {', '.join(_FUSED[last])}",
            "the rows of B belong to one of them each, and all read the same A",
        )
        return
    raise unknown


def _split(
    written: str, parts: list[str], pair: Pair, modules: Modules, shapes: Shapes
) -> Iterable[tuple[str, Pair]]:
    names = [modules.resolve(part) for part in parts]
    rows = [(shapes.get(name) or (0, 0))[0] for name in names]
    if not all(rows) or sum(rows) != pair.b.shape[0]:
        raise Refusal(
            "wrong_shape",
            f"module {written!r} has {pair.b.shape[0]} rows, and {', '.join(names)} of the base "
            f"model have {sum(rows)}; the adapter belongs to another base model",
        )
    first = 0
    for name, count in zip(names, rows, strict=True):
        yield name, Pair(pair.a.clone(), pair.b[first : first + count].clone(), pair.scale)
        first += count


def join_fused(
    pairs: dict[str, Pair], modules: Modules, shapes: Shapes
) -> tuple[dict[str, Pair], int]:
    """Pairs of q, k and v (gate and up) as one pair where the base model has one layer for them.

    Exact: A is theirs one above the other, B is theirs along the diagonal, so the rank is the sum.
    Returns how many were made.
    """
    joined, made = dict(pairs), 0
    for written in pairs:
        parent, _, last = written.rpartition(".")
        for fused, members in _FUSED.items():
            if last != members[0] and not (
                last in members and f"{parent}.{members[0]}" not in pairs
            ):
                continue
            if (
                modules.find(written) is not None
                or (name := modules.fused_parent(written, fused)) is None
            ):
                continue
            shape = shapes.get(name)
            present = [m for m in members if f"{parent}.{m}" in joined]
            if shape is None or not present:
                continue
            joined[f"{parent}.{fused}"] = _block(parent, members, joined, shape[0])
            for member in present:
                del joined[f"{parent}.{member}"]
            made += 1
    return joined, made


def _block(parent: str, members: Iterable[str], pairs: Mapping[str, Pair], out: int) -> Pair:
    found = {m: pairs.get(f"{parent}.{m}") for m in members}
    missing = [m for m, pair in found.items() if pair is None]
    known = sum(pair.b.shape[0] for pair in found.values() if pair is not None)
    if len(missing) > 1 and missing != ["k_proj", "v_proj"]:
        raise Refusal(
            "missing_tensors",
            f"{parent} has no {' and no '.join(missing)}, so where the other rows begin is not "
            "known",
        )
    rest = (out - known) // len(missing) if missing else 0
    present = [pair for pair in found.values() if pair is not None]
    a = torch.cat([pair.a.float() for pair in present])
    b = torch.zeros(out, a.shape[0])
    row = column = 0
    for pair in found.values():
        if pair is None:
            row += rest
            continue
        height, width = pair.b.shape
        b[row : row + height, column : column + width] = pair.b.float() * pair.scale
        row, column = row + height, column + width
    return Pair(a, b, 1.0)


def _transpose(adapter: Adapter, shapes: Shapes) -> None:
    turned = 0
    for name, pair in adapter.pairs.items():
        shape = shapes.get(name)
        if shape is None or (pair.b.shape[0], pair.a.shape[1]) == shape:
            continue
        if (pair.b.shape[1], pair.a.shape[0]) == shape and pair.a.shape[1] == pair.b.shape[0]:
            pair.a, pair.b = pair.a.T.contiguous(), pair.b.T.contiguous()
            turned += 1
    if turned:
        adapter.note(
            f"matrices of {turned} modules turned round",
            "they fit the base model's layers only that way",
        )


def _check_shapes(adapter: Adapter, shapes: Shapes) -> None:
    for name, pair in adapter.pairs.items():
        if pair.a.shape[0] != pair.b.shape[1]:
            raise Refusal(
                "wrong_rank",
                f"module {name!r} has lora_A {list(pair.a.shape)} and lora_B "
                f"{list(pair.b.shape)}, which do not fit together; save the adapter again",
            )
        shape = shapes.get(name)
        if shape is not None and (pair.b.shape[0], pair.a.shape[1]) != shape:
            out, into = shape
            raise Refusal(
                "wrong_shape",
                f"module {name!r} has lora_A {list(pair.a.shape)} and lora_B {list(pair.b.shape)} "
                f"for a layer from {into} to {out}; the adapter belongs to another base model",
            )


def _foreign(name: str) -> Refusal:
    module, _, parameter = name.rpartition(".")
    module = module.removesuffix(".base_layer").removesuffix(".modules_to_save")
    if "oft_" in name or "hada_" in name or "lokr_" in name:
        return Refusal(
            "not_lora",
            f"{name!r} is of another method than LoRA; merge the adapter into its base model",
        )
    if module.rpartition(".")[2] in ("embed_tokens", "lm_head", "wte"):
        return Refusal(
            "saved_embeddings",
            f"{name!r} is a whole embedding, as PEFT saves it when tokens were added; train "
            "without new tokens, or save with save_embedding_layers=False if none were",
        )
    return Refusal(
        "unexpected_tensor",
        f"{name[:200]!r} ({parameter[:40]}) is no part of a LoRA by any layout that is known; save "
        "the adapter with PEFT's save_pretrained",
    )


def _whole(number: float) -> float | int:
    """Engines expect an integer where one will do."""
    rounded = round(number)
    return rounded if math.isclose(number, rounded, rel_tol=1e-12) else number
