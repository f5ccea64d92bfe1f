"""PEFT's ``adapter_config.json``, read.

Whether what it asks for can be served is the question of `peft_features`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from loragate.adapters.errors import InvalidAdapter

CONFIG: Final = "adapter_config.json"
_Number = TypeVar("_Number", int, float)

# A pattern's key is a regular expression to PEFT and to the engine, and an expression can be
# written to match for ever. A module's name, or the end of one, is all that is needed.
_MODULE_NAME: Final = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?", re.ASCII)
_LAYER_INDEX: Final = re.compile(r"\.[^.]+\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What the file says. ``settings`` are all its keys that are set to something."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    excluded_modules: tuple[str, ...]
    layers: frozenset[int]  # empty: all
    has_expressions: bool  # which modules it targets is said by a regular expression
    settings: Mapping[str, object]

    @property
    def largest_rank(self) -> int:
        return max((self.rank, *self.rank_pattern.values()))

    def rank_of(self, module: str) -> int:
        """The rank of one module, by the rule of PEFT and the engine: the first pattern wins."""
        return next(_matching(self.rank_pattern, module), self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha of one module, by the same rule."""
        return next(_matching(self.alpha_pattern, module), self.alpha)

    def targets(self, module: str) -> bool:
        """Whether PEFT would adapt this module, for a configuration without expressions."""
        if any(_ends_with(module, name) for name in self.excluded_modules):
            return False
        if module in self.target_modules:
            return True
        if not any(_ends_with(module, name) for name in self.target_modules):
            return False
        layer = _LAYER_INDEX.search(module)
        return not self.layers or (layer is not None and int(layer[1]) in self.layers)


def _matching(patterns: Mapping[str, _Number], module: str) -> Iterator[_Number]:
    return (n for key, n in patterns.items() if re.match(rf"(.*\.)?({key})$", module))


class _Kind(msgspec.Struct):
    peft_type: str


class _Written(msgspec.Struct):
    r: int
    lora_alpha: float
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, Annotated[int, Meta(ge=1)]] | None = None
    alpha_pattern: dict[str, float] | None = None


def read_config(path: Path) -> AdapterConfig:
    """Raises what `parse_config` raises, and OSError."""
    return parse_config(path.read_bytes())


def parse_config(text: bytes) -> AdapterConfig:
    """Raises InvalidAdapter: ``invalid_config``, ``not_lora``, ``invalid_rank`` or
    ``invalid_pattern``.
    """
    try:
        settings = msgspec.json.decode(text, type=dict[str, object])
        kind = msgspec.convert(settings, _Kind).peft_type
        if kind != "LORA":
            raise InvalidAdapter(
                "not_lora",
                f"{CONFIG} has peft_type {kind!r} and only LORA can be served; convert the adapter "
                "with PEFT's save_as_lora, where PEFT can, or merge it into a base model",
            )
        written = msgspec.convert(settings, _Written)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidAdapter(
            "invalid_config",
            f"{CONFIG} is not the configuration of a PEFT adapter: {error}; save the adapter again",
        ) from error
    if written.r < 1:
        raise InvalidAdapter(
            "invalid_rank", f"{CONFIG} has r = {written.r}; the rank must be at least 1"
        )
    rank_pattern, alpha_pattern = written.rank_pattern or {}, written.alpha_pattern or {}
    for key in (*rank_pattern, *alpha_pattern):
        _check_pattern(key)
    return AdapterConfig(
        rank=written.r,
        alpha=written.lora_alpha,
        target_modules=_names(written.target_modules),
        rank_pattern=MappingProxyType(rank_pattern),
        alpha_pattern=MappingProxyType(alpha_pattern),
        excluded_modules=_names(written.exclude_modules),
        layers=_layers(written.layers_to_transform),
        has_expressions=isinstance(written.target_modules, str)
        or isinstance(written.exclude_modules, str)
        or bool(written.layers_pattern),
        settings=MappingProxyType({key: value for key, value in settings.items() if value}),
    )


def _check_pattern(key: str) -> None:
    if _MODULE_NAME.fullmatch(key) is None:
        raise InvalidAdapter(
            "invalid_pattern",
            f"{CONFIG} has the pattern {key!r}, which is no module's name or end of one; write one "
            "entry for each module, as in layers.0.self_attn.q_proj",
        )


def _names(written: list[str] | str | None) -> tuple[str, ...]:
    match written:
        case None:
            return ()
        case str(expression):
            return (expression,)
        case names:
            return tuple(sorted(names))


def _layers(written: list[int] | int | None) -> frozenset[int]:
    match written:
        case None:
            return frozenset()
        case int(layer):
            return frozenset([layer])
        case layers:
            return frozenset(layers)


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
