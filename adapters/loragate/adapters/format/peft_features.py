"""The features of PEFT that the engine cannot serve, each with what to do about it.

The engine knows most of these and refuses them while it loads; some it would serve wrongly without
a word. rsLoRA, ``rank_pattern`` and ``alpha_pattern`` it serves right, and so do we.
"""

from __future__ import annotations

from typing import Final

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.peft_config import CONFIG, AdapterConfig

_CONVERT: Final = "convert it with PEFT's save_as_lora(path, model, rank=…) and publish the result"
_MERGE: Final = "merge it and serve the result as a base model, or train plain LoRA"
_RETRAIN: Final = "train again without it"

# key of adapter_config.json: (code, what it is, what to do)
_REFUSED: Final = {
    "use_dora": ("dora", "DoRA", _CONVERT),
    "lora_bias": ("lora_bias", "a bias in lora_B", _RETRAIN),
    "modules_to_save": (
        "modules_to_save",
        "whole modules beside the LoRA matrices",
        f"{_RETRAIN}, or target these modules with LoRA if they are linear layers",
    ),
    "alora_invocation_tokens": ("alora", "Activated LoRA (aLoRA)", _RETRAIN),
    "use_qalora": ("qalora", "QALoRA", _RETRAIN),
    "use_bdlora": ("bdlora", "block-diagonal LoRA (BD-LoRA)", _MERGE),
    "layer_replication": (
        "layer_replication",
        "a model with repeated layers",
        "train on the base model as it is, or serve the model with the repeated layers as the base",
    ),
    "trainable_token_indices": (
        "trainable_tokens",
        "trained token embeddings",
        "train again without them, using tokens that the base model knows",
    ),
    "target_parameters": (
        "target_parameters",
        "LoRA on bare parameters, such as the experts of a mixture",
        "target linear layers by target_modules",
    ),
    "megatron_config": (
        "megatron",
        "Megatron's parallel layers",
        "convert the adapter to the layout of transformers and save it with PEFT",
    ),
    "arrow_config": ("arrow", "Arrow's routing between adapters", "publish each adapter by itself"),
    "kasa_config": (
        "kasa",
        "KaSA, which changes the base model's weights",
        _MERGE,
    ),
    "monteclora_config": ("monteclora", "MonteCLoRA", _CONVERT),
    "velora_config": ("velora", "VeLoRA, which saves more than LoRA matrices", _CONVERT),
}

# How an adapter was initialised is in init_lora_weights; the options of that change nothing later.
_SERVED: Final = frozenset(
    {"use_rslora", "eva_config", "corda_config", "lora_ga_config", "loftq_config"}
)
_FEATURE_PREFIX: Final = "use_"
_FEATURE_SUFFIX: Final = "_config"

# These set the adapter's first weights and leave the base model alone.
_PLAIN_INITIALISATIONS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica"})
_RESIDUAL_INITIALISATIONS: Final = ("pissa", "olora", "corda")
_DIFFERENCE: Final = (
    "save it again with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…), "
    "giving the adapter as it was before training"
)


def check_features(config: AdapterConfig) -> None:
    """Raise InvalidAdapter, with a code of the feature, for what cannot be served."""
    for key, (code, what, remedy) in _REFUSED.items():
        if key in config.settings:
            raise InvalidAdapter(code, f"{CONFIG} has {key}: {what} cannot be served; {remedy}")
    _check_bias(config)
    _check_initialisation(config)
    _check_unknown(config)


def _check_bias(config: AdapterConfig) -> None:
    bias = config.settings.get("bias", "none")
    if bias != "none":
        raise InvalidAdapter(
            "bias",
            f"{CONFIG} has bias {bias!r}: trained biases cannot be served; train again with "
            "bias 'none'",
        )


def _check_initialisation(config: AdapterConfig) -> None:
    written = config.settings.get("init_lora_weights")
    if not isinstance(written, str) or written.lower() in _PLAIN_INITIALISATIONS:
        return
    started = f"the adapter was initialised by {written!r}"
    match written.lower():
        case "lora_ga":
            # The engine takes these for plain LoRA, as PEFT does, and serves them wrongly.
            raise InvalidAdapter(
                "lora_ga",
                f"{started}, which changes the base model during training and is not undone when "
                f"the adapter is loaded; {_DIFFERENCE}",
            )
        case "loftq":
            raise InvalidAdapter(
                "loftq",
                f"{started}, which belongs to a base model quantised by LoftQ; serve that model as "
                "the base and set init_lora_weights to true, or train plain LoRA",
            )
        case name if name.startswith(_RESIDUAL_INITIALISATIONS):
            raise InvalidAdapter(
                "changed_base",
                f"{started}, which takes a part out of the base model's weights; {_DIFFERENCE}",
            )
        case _:
            raise InvalidAdapter(
                "unknown_initialisation",
                f"{started}, which is not known to leave the base model alone; train with "
                "init_lora_weights true",
            )


def _check_unknown(config: AdapterConfig) -> None:
    """The engine drops what it does not know, so a new variant would be served as plain LoRA."""
    for key in sorted(config.settings.keys() - _SERVED):
        if key.startswith(_FEATURE_PREFIX) or key.endswith(_FEATURE_SUFFIX):
            raise InvalidAdapter(
                "unknown_feature",
                f"{CONFIG} has {key}, a feature that is not known here; train plain LoRA, or "
                "convert the adapter with PEFT's save_as_lora",
            )
