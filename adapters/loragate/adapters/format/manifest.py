"""What an adapter version says about itself: what it was made for and how it is to be called.

A published folder may hold a ``manifest.json``. It is read strictly: an unknown key is refused by
name, so a misspelt setting is never silently dropped. What the file leaves out comes from
``adapter_config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.certificate import Certificate
from loragate.adapters.format.reference import Reference
from loragate.adapters.rendering.turns import RESERVED_VARIABLES

Number = int | float
_LARGEST: Final = 2**63 - 1  # what the engine's whole numbers hold
Fact = str | int | float


@dataclass(frozen=True, slots=True)
class Contract:
    """What must roll back with the weights. Sampling defaults and the chat template's variables
    apply where a request is silent.
    """

    chat_template: str | None = None
    system_prompt: str | None = None
    sampling_defaults: Mapping[str, Number] = field(default_factory=lambda: MappingProxyType({}))
    max_tokens_cap: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    chat_template_kwargs: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """The description of one version. An empty hash or digest: the publisher did not say.

    ``reference`` is what the adapter said where it was trained. It stays with the weights, where
    whoever loads them reads it: the registry's own copy of a manifest goes without.
    ``certificate`` says how that was computed, if it was when the version was published.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base_model_digest: str = ""
    chat_template_hash: str = ""
    tokenizer_hash: str = ""
    metrics: Mapping[str, Number] = field(default_factory=lambda: MappingProxyType({}))
    lineage: Mapping[str, Fact] = field(default_factory=lambda: MappingProxyType({}))
    contract: Contract = field(default_factory=Contract)
    reference: Reference | None = None
    certificate: Certificate | None = None

    @classmethod
    def from_json(
        cls, text: str | bytes, defaults: AdapterManifest | None = None
    ) -> AdapterManifest:
        """Read and check. Rank, alpha and target modules may be left out where ``defaults`` has
        them.

        Raises InvalidAdapter (code ``invalid_manifest``) with the place of the mistake.
        """
        try:
            written = msgspec.json.decode(text, type=_Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidAdapter(
                "invalid_manifest", f"manifest.json cannot be used: {error}; correct it there"
            ) from error
        return _filled(written, defaults)

    def check_bounds(self) -> None:
        """Raise InvalidAdapter (``invalid_manifest``) for whole numbers that no engine could hold.

        Of files: what the registry has kept is read whatever it says, or all else there would be
        unreadable too.
        """
        contract = self.contract
        numbers: dict[str, Number] = {
            f"sampling_defaults.{name}": value for name, value in contract.sampling_defaults.items()
        }
        if contract.max_tokens_cap is not None:
            numbers["max_tokens_cap"] = contract.max_tokens_cap
        if reserved := sorted(RESERVED_VARIABLES & contract.chat_template_kwargs.keys()):
            raise InvalidAdapter(
                "invalid_manifest",
                f"manifest.json's contract.chat_template_kwargs has '{reserved[0]}', which is the "
                "rendering's own; leave it out",
            )
        for name, value in numbers.items():
            if value > _LARGEST:
                raise InvalidAdapter(
                    "invalid_manifest",
                    f"manifest.json has a contract.{name} above {_LARGEST}; give a smaller number",
                )

    def to_json(self) -> str:
        """JSON that `from_json` reads back to an equal manifest; the keys are in a fixed order."""
        return msgspec.json.encode(self, enc_hook=dict, order="sorted").decode()


class _SamplingDefaults(msgspec.Struct, forbid_unknown_fields=True):
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    top_k: Annotated[int, Meta(ge=-1)] | UnsetType = UNSET
    min_p: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | UnsetType = UNSET
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | UnsetType = UNSET
    seed: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


class _Contract(msgspec.Struct, forbid_unknown_fields=True):
    chat_template: str | None = None
    system_prompt: str | None = None
    sampling_defaults: _SamplingDefaults = msgspec.field(default_factory=_SamplingDefaults)
    max_tokens_cap: Annotated[int, Meta(ge=1)] | None = None
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(max_length=16)] = ()
    stop_token_ids: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...], Meta(max_length=64)
    ] = ()
    # Of JSON: scalars, lists and objects.
    chat_template_kwargs: Annotated[dict[str, object], Meta(max_length=64)] = msgspec.field(
        default_factory=dict
    )


class _Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """The file as written: the fields of AdapterManifest, each one optional."""

    rank: Annotated[int, Meta(ge=1)] | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    base_model_digest: str = ""
    chat_template_hash: str = ""
    tokenizer_hash: str = ""
    metrics: dict[str, Number] = msgspec.field(default_factory=dict)
    lineage: dict[str, Fact] = msgspec.field(default_factory=dict)
    contract: _Contract = msgspec.field(default_factory=_Contract)
    reference: Reference | None = None
    certificate: Certificate | None = None


def _filled(written: _Manifest, defaults: AdapterManifest | None) -> AdapterManifest:
    rank, alpha, target_modules = written.rank, written.alpha, written.target_modules
    if defaults is not None:
        rank = defaults.rank if rank is None else rank
        alpha = defaults.alpha if alpha is None else alpha
        target_modules = defaults.target_modules if target_modules is None else target_modules
    if rank is None or alpha is None or target_modules is None:
        raise InvalidAdapter(
            "invalid_manifest",
            "manifest.json must say rank, alpha and target_modules; add what is missing",
        )
    return AdapterManifest(
        rank=rank,
        alpha=alpha,
        target_modules=target_modules,
        base_model_digest=written.base_model_digest,
        chat_template_hash=written.chat_template_hash,
        tokenizer_hash=written.tokenizer_hash,
        metrics=MappingProxyType(written.metrics),
        lineage=MappingProxyType(written.lineage),
        contract=_frozen(written.contract),
        reference=written.reference,
        certificate=written.certificate,
    )


def _frozen(written: _Contract) -> Contract:
    return Contract(
        chat_template=written.chat_template,
        system_prompt=written.system_prompt,
        sampling_defaults=MappingProxyType(msgspec.to_builtins(written.sampling_defaults)),
        max_tokens_cap=written.max_tokens_cap,
        stop=written.stop,
        stop_token_ids=written.stop_token_ids,
        chat_template_kwargs=MappingProxyType(written.chat_template_kwargs),
    )
