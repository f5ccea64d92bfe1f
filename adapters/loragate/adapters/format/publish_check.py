"""The publish check: what the engine could not serve, or would serve wrongly, is refused here.

It judges a folder by its files, before an engine has seen it. What can only be seen in the engine,
that the adapter changes what is said and changes it as trained, is the server's to check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

from loragate.adapters.child_process.process import ChildUnavailable
from loragate.adapters.errors import BaseModelName, InvalidAdapter, StoreError
from loragate.adapters.format.base_profile import BaseProfile, Shape, template_hash
from loragate.adapters.format.beside import check_beside
from loragate.adapters.format.files import WEIGHTS, AdapterFiles
from loragate.adapters.format.lora_tensors import LoraPair, check_prefix, is_embedding, lora_pairs
from loragate.adapters.format.manifest import AdapterManifest, Contract
from loragate.adapters.format.peft_config import CONFIG, AdapterConfig
from loragate.adapters.format.peft_features import check_features
from loragate.adapters.names import AdapterName
from loragate.adapters.rendering.templates import RenderingError, Templates


class PublishCheck:
    """Checks adapters against a base model and an engine, as far as these are known.

    Without a base model, names, shapes and the manifest's hashes are not compared; without
    ``max_rank``, any rank passes. Chat templates are tried in the child processes of
    ``templates``, which stays the caller's to close; without it, each in one of its own.
    """

    def __init__(
        self,
        base: BaseProfile | None,
        max_rank: int | None,
        templates: Templates | None = None,
    ) -> None:
        self._base = base
        self._max_rank = max_rank
        self._templates = templates

    def check_name(self, adapter: AdapterName) -> None:
        """Raise BaseModelName for a name by which requests reach the base model."""
        if self._base is not None and self._base.name in (adapter.name, str(adapter)):
            raise BaseModelName(
                "adapter",
                str(adapter),
                "requests by this name go to the base model; choose another",
            )

    def check(self, files: AdapterFiles) -> None:
        """Raise InvalidAdapter, with a code for each reason, unless the adapter can be served; and
        StoreError where this machine cannot tell.

        Reads the configuration and the weights' header first, and the weights last, in blocks.
        """
        pairs = self.check_header(files)
        if self._base is not None:
            check_beside(files.folder, files.manifest.contract, self._base)
        # Not before a load: what was published without the prefix is served right, and only never
        # merged.
        check_prefix(files.tensors)
        _check_values(files, pairs)

    def check_header(self, files: AdapterFiles) -> tuple[LoraPair, ...]:
        """As `check`, but for the numbers: those of an artifact that is unchanged since it passed
        need no second look, while the base model and the engine's bounds may be others.
        """
        check_features(files.config)
        _check_alpha(files.config)
        _check_targets_named(files.config)
        self._check_rank(files.config)
        if self._base is not None:
            _check_manifest(files.manifest, self._base)
        self._check_template(files.manifest.contract)
        pairs = lora_pairs(files.tensors, files.config)
        if self._base is not None and self._base.modules:
            _check_targets(files.config, pairs, self._base)
            _check_shapes(pairs, self._base)
        return pairs

    def _check_rank(self, config: AdapterConfig) -> None:
        rank, max_rank = config.largest_rank, self._max_rank
        if max_rank is not None and rank > max_rank:
            raise InvalidAdapter(
                "rank_too_high",
                f"the adapter needs rank {rank}, the engine allows {max_rank}; raise "
                "engine.max_lora_rank or retrain",
            )

    def _check_template(self, contract: Contract) -> None:
        if contract.chat_template is None:
            return
        with nullcontext(self._templates) if self._templates else Templates() as templates:
            try:
                templates.try_out(contract.chat_template, contract.system_prompt)
            except ChildUnavailable as error:  # a fault of this machine
                raise StoreError(f"the chat template cannot be tried now: {error}") from error
            except RenderingError as error:
                raise InvalidAdapter(
                    "invalid_template",
                    f"the manifest's contract.chat_template does not render a plain question: "
                    f"{error}; correct it there",
                ) from error


def _check_alpha(config: AdapterConfig) -> None:
    if config.alpha == 0 and not config.alpha_pattern:
        raise InvalidAdapter(
            "no_effect",
            f"{CONFIG} has lora_alpha 0, which scales the adapter to nothing; give the alpha that "
            "it was trained with",
        )


def _check_targets_named(config: AdapterConfig) -> None:
    if not config.target_modules:
        raise InvalidAdapter(
            "no_targets",
            f"{CONFIG} names no target_modules; save the adapter with PEFT's save_pretrained, "
            "which writes them",
        )
    for name in config.target_modules:
        if is_embedding(name):
            raise InvalidAdapter(
                "embedding_adapter",
                f"{CONFIG} targets {name!r}, an embedding, which is not served; train with "
                "target_modules that are linear layers inside the model",
            )


def _check_manifest(manifest: AdapterManifest, base: BaseProfile) -> None:
    own_template = manifest.contract.chat_template
    served_template = template_hash(own_template) if own_template else base.chat_template_hash
    for code, what, trained, served, remedy in (
        (
            "other_base_model",
            "base model",
            manifest.base_model_digest,
            base.digest,
            "train on this base model, or serve the other one",
        ),
        (
            "other_tokenizer",
            "tokenizer",
            manifest.tokenizer_hash,
            base.tokenizer_hash,
            f"train with the tokenizer of {base.name}, or serve a base model with the other one",
        ),
        (
            "other_chat_template",
            "chat template",
            manifest.chat_template_hash,
            served_template,
            "put the template that it was trained with into the manifest's contract.chat_template",
        ),
    ):
        if trained and _plain(trained) != _plain(served):
            raise InvalidAdapter(
                code,
                f"the adapter was trained with another {what} than it would be served with "
                f"({trained} is not {served or 'known here'}); {remedy}",
            )


def _check_targets(config: AdapterConfig, pairs: tuple[LoraPair, ...], base: BaseProfile) -> None:
    for pair in pairs:
        if pair.module not in base.modules:
            raise InvalidAdapter(
                "unknown_module",
                f"{WEIGHTS} adapts {pair.module!r}, which is no linear layer of {base.name}; "
                "train on this base model, loaded as AutoModelForCausalLM",
            )
    if config.has_expressions:  # an expression from outside is not evaluated
        return
    for name in config.target_modules:
        if not any(module == name or module.endswith(f".{name}") for module in base.modules):
            raise InvalidAdapter(
                "unknown_target",
                f"{CONFIG} targets {name!r}, which {base.name} does not have; its linear layers "
                f"are {', '.join(_kinds(base.modules))}; correct target_modules and train again",
            )
    adapted = {pair.module for pair in pairs}
    for module in _declared(config, base.modules):
        if module not in adapted:
            raise InvalidAdapter(
                "missing_tensors",
                f"{CONFIG} targets {module!r} and {WEIGHTS} has no matrices for it; save the "
                "adapter again, or leave the module out of target_modules",
            )


def _check_shapes(pairs: tuple[LoraPair, ...], base: BaseProfile) -> None:
    for pair in pairs:
        shape = base.modules[pair.module]
        if shape is None:
            continue
        if (pair.b.shape[0], pair.a.shape[1]) != shape:
            out, into = shape
            raise InvalidAdapter(
                "wrong_shape",
                f"module {pair.module!r} has lora_A {list(pair.a.shape)} and lora_B "
                f"{list(pair.b.shape)} for a layer of {base.name} from {into} to {out}; the "
                "adapter belongs to another base model: train on this one",
            )


def _check_values(files: AdapterFiles, pairs: tuple[LoraPair, ...]) -> None:
    # NumPy takes longer to import than most commands run, and only publishing needs it.
    from loragate.adapters.format.tensor_values import check_values

    try:
        check_values(files.folder / WEIGHTS, pairs)
    except OSError as error:
        raise InvalidAdapter(
            "unreadable", f"{error.filename} cannot be read ({error.strerror}); allow this user to"
        ) from error


def _declared(config: AdapterConfig, modules: Mapping[str, Shape | None]) -> Iterator[str]:
    return (module for module in modules if config.targets(module))


def _kinds(modules: Mapping[str, Shape | None]) -> list[str]:
    return sorted({module.rpartition(".")[2] for module in modules})


def _plain(digest: str) -> str:
    return digest.removeprefix("sha256:")
