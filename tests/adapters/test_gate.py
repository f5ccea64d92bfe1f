import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import (
    BdLoraConfig,
    EvaConfig,
    IA3Config,
    LoraConfig,
    LoraGAConfig,
    MontecloraConfig,
    PeftModel,
    VeloraConfig,
    get_peft_model,
    preprocess_loraga,
    save_as_lora,
)
from peft.tuners.lora.config import KasaConfig
from peft.tuners.lora.corda import preprocess_corda
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import LlamaForCausalLM

from loragate.adapters.errors import BaseModelName, InvalidAdapter
from loragate.adapters.format.base_profile import BaseProfile, template_hash
from loragate.adapters.format.files import MANIFEST, WEIGHTS, inspect
from loragate.adapters.format.peft_config import CONFIG
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.models.one_layer import WriteAdapter
from support.models.tiny_llama import TARGETS, adapt, save, tiny_llama, train, write_base
from support.models.tokenizers import WORD_TURNS

PEFT = "base_model.model."
PREFIX = f"{PEFT}model.layers.0.self_attn.q_proj"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> BaseProfile:
    return BaseProfile.read(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def publish_check(profile: BaseProfile) -> PublishCheck:
    return PublishCheck(profile, max_rank=16)


@pytest.fixture(scope="module")
def plain_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(adapt(), tmp_path_factory.mktemp("plain"))


@pytest.fixture
def plain(plain_adapter: Path, tmp_path: Path) -> Path:
    """A sound adapter, to be spoilt."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes((plain_adapter / name).read_bytes())
    return folder


def refusal(publish_check: PublishCheck, folder: Path) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as refused:
        publish_check.check(inspect(folder))
    return refused.value


def configure(folder: Path, **settings: object) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


# What is served


@pytest.mark.filterwarnings("ignore:lora with eva")
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.0.mlp.down_proj": 2}},
        {
            "rank_pattern": {
                r"^model.layers.1.self_attn.q_proj$": 2,
                r"layers\.0\.mlp\.down_proj": 3,
            }
        },
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "eva", "eva_config": EvaConfig()},
        {"init_lora_weights": False},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|k)_proj"},
        {"layers_to_transform": [1]},
        {"layers_to_transform": 0, "layers_pattern": "layers"},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"exclude_modules": r".*\.1\..*"},
        {"target_modules": ["model.layers.0.mlp.up_proj", "o_proj"]},
    ],
    ids=str,
)
def test_adapter_that_the_engine_serves_right_passes(
    publish_check: PublishCheck, tmp_path: Path, config: dict[str, Any]
):
    publish_check.check(inspect(save(adapt(**config), tmp_path / "adapter")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_three_types_of_floats_pass(
    publish_check: PublishCheck, tmp_path: Path, dtype: torch.dtype
):
    publish_check.check(inspect(save(adapt().to(dtype), tmp_path / "adapter")))


def test_adapter_of_a_quantised_layer_is_checked_by_name_only(
    profile: BaseProfile, plain: Path, publish_check: PublishCheck
):
    hidden = PublishCheck(replace(profile, modules=dict.fromkeys(profile.modules)), 16)
    hidden.check(inspect(plain))

    nameless = PublishCheck(replace(profile, modules={}), 16)
    nameless.check(inspect(plain))


def test_manifest_that_agrees_with_the_base_model_passes(
    publish_check: PublishCheck, profile: BaseProfile, plain: Path
):
    write_manifest(
        plain,
        base_model_digest=profile.digest,
        tokenizer_hash=f"sha256:{profile.tokenizer_hash}",
        chat_template_hash=profile.chat_template_hash,
    )

    publish_check.check(inspect(plain))


# What PEFT can do and the engine cannot


def loraga(model: LlamaForCausalLM, config: LoraConfig) -> None:
    tokens = torch.randint(0, 128, (2, 16))

    def step() -> None:
        loss = model(tokens, labels=tokens).loss
        loss.backward()

    preprocess_loraga(model, config, step)


def corda(model: LlamaForCausalLM, config: LoraConfig) -> None:
    tokens = torch.randint(0, 128, (1, 80))
    preprocess_corda(model, config, run_model=lambda: model(tokens))


BLOCKS = BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2, match_strict=False)
FEATURES = [
    ("dora", "save_as_lora", {"use_dora": True}),
    ("bias", "bias 'none'", {"bias": "lora_only"}),
    ("lora_bias", "train again", {"lora_bias": True}),
    ("modules_to_save", "train again", {"modules_to_save": ["lm_head"]}),
    ("changed_base", "path_initial_model", {"init_lora_weights": "pissa"}),
    ("changed_base", "path_initial_model", {"init_lora_weights": "pissa_niter_2"}),
    ("changed_base", "path_initial_model", {"init_lora_weights": "olora"}),
    ("changed_base", "path_initial_model", {"init_lora_weights": "corda", "prepare": corda}),
    (
        "lora_ga",
        "path_initial_model",
        {
            "init_lora_weights": "lora_ga",
            "lora_ga_config": LoraGAConfig(),
            "prepare": loraga,
        },
    ),
    (
        "alora",
        "train again",
        {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
    ),
    ("qalora", "train again", {"use_qalora": True}),
    ("bdlora", "merge it", {"use_bdlora": BLOCKS}),
    ("layer_replication", "repeated layers", {"layer_replication": [[0, 2], [1, 2]]}),
    ("trainable_tokens", "tokens that the base", {"trainable_token_indices": [1, 2]}),
    ("target_parameters", "linear layers", {"target_parameters": ["mlp.up_proj.weight"]}),
    ("kasa", "merge it", {"kasa_config": KasaConfig()}),
    ("velora", "save_as_lora", {"velora_config": VeloraConfig()}),
    ("monteclora", "save_as_lora", {"monteclora_config": MontecloraConfig()}),
    ("embedding_adapter", "linear layers", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("embedding_adapter", "linear layers", {"target_modules": ["q_proj", "lm_head"]}),
    ("embedding_adapter", "linear layers", {"target_modules": ".*lm_head"}),
    ("embedding_adapter", "linear layers", {"target_modules": ".*embed_tokens"}),
]


@pytest.mark.filterwarnings("ignore")  # PEFT warns of what is tried here
@pytest.mark.parametrize(("code", "remedy", "config"), FEATURES, ids=range(len(FEATURES)))
def test_feature_that_cannot_be_served_is_refused_with_what_would_help(
    publish_check: PublishCheck, tmp_path: Path, code: str, remedy: str, config: dict[str, Any]
):
    folder = save(adapt(**config), tmp_path / "adapter", save_embedding_layers=False)

    refused = refusal(publish_check, folder)

    assert refused.code == code
    assert remedy in str(refused)
    assert refusal(PublishCheck(None, None), folder).code == code


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        # These need what is not here: SciPy, Megatron, an Arrow model, a PEFT of tomorrow.
        ("loftq", {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}),
        ("megatron", {"megatron_config": {"tensor_model_parallel_size": 2}}),
        ("arrow", {"arrow_config": {"top_k": 2}}),
        ("unknown_initialisation", {"init_lora_weights": "tomorrow"}),
        ("unknown_feature", {"use_tomorrow": True}),
        ("unknown_feature", {"tomorrow_config": {"steps": 2}}),
        ("no_targets", {"target_modules": None}),
        ("no_targets", {"target_modules": []}),
        ("no_effect", {"lora_alpha": 0}),
    ],
    ids=str,
)
def test_setting_that_cannot_be_served_is_refused(
    publish_check: PublishCheck, plain: Path, code: str, settings: dict[str, object]
):
    assert refusal(publish_check, configure(plain, **settings)).code == code


def test_setting_that_is_unknown_and_off_is_no_matter(publish_check: PublishCheck, plain: Path):
    publish_check.check(
        inspect(configure(plain, use_tomorrow=False, tomorrow_config=None, remark="mine"))
    )


def test_method_other_than_lora_is_refused(publish_check: PublishCheck, tmp_path: Path):
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    adapted = get_peft_model(tiny_llama(), config)
    assert isinstance(adapted, PeftModel)

    refused = refusal(publish_check, save(adapted, tmp_path / "adapter"))

    assert refused.code == "not_lora"
    assert "IA3" in str(refused)


@pytest.mark.parametrize("key", ["(a+)+", "layers.*", "", "[q]", "q_proj|k_proj", r"\1"])
@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_pattern_that_is_no_name_is_refused_before_the_engine_runs_it(
    publish_check: PublishCheck, plain: Path, key: str, pattern: str
):
    assert refusal(publish_check, configure(plain, **{pattern: {key: 4}})).code == "invalid_pattern"


# The conversions that the refusals name


@pytest.mark.filterwarnings("ignore:Converting a PEFT adapter to LoRA")
@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"velora_config": VeloraConfig()},
        {"monteclora_config": MontecloraConfig()},
    ],
    ids=str,
)
def test_variant_passes_once_converted(
    publish_check: PublishCheck, tmp_path: Path, config: dict[str, Any]
):
    save_as_lora(str(tmp_path / "adapter"), adapt(**config), rank=8)

    publish_check.check(inspect(tmp_path / "adapter"))


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_pissa_passes_once_converted(publish_check: PublishCheck, tmp_path: Path):
    adapted = get_peft_model(
        tiny_llama(),
        LoraConfig(r=4, target_modules=list(TARGETS), init_lora_weights="pissa"),
    )
    assert isinstance(adapted, PeftModel)
    config = adapted.peft_config["default"]
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = True
    untrained = save(adapted, tmp_path / "untrained")
    config.init_lora_weights = "pissa"
    train(adapted)

    folder = save(
        adapted,
        tmp_path / "adapter",
        path_initial_model_for_weight_conversion=str(untrained),
    )

    publish_check.check(inspect(folder))
    assert inspect(folder).config.rank == 8


# Ranks, modules and shapes


def test_rank_above_the_engines_is_refused_with_both_numbers(profile: BaseProfile, tmp_path: Path):
    folder = save(adapt(r=32), tmp_path / "adapter")

    refused = refusal(PublishCheck(profile, 16), folder)

    assert refused.code == "rank_too_high"
    assert "needs rank 32, the engine allows 16; raise engine.max_lora_rank" in str(refused)
    PublishCheck(profile, 32).check(inspect(folder))
    PublishCheck(profile, None).check(inspect(folder))


def test_largest_rank_of_a_pattern_counts(publish_check: PublishCheck, tmp_path: Path):
    folder = save(adapt(rank_pattern={"q_proj": 32}), tmp_path / "adapter")

    assert refusal(publish_check, folder).code == "rank_too_high"


def test_rank_that_the_weights_do_not_have_is_refused(publish_check: PublishCheck, plain: Path):
    refused = refusal(publish_check, configure(plain, r=8))

    assert refused.code == "wrong_rank"
    assert "[4, 96]" in str(refused)


def test_pattern_that_the_weights_do_not_have_is_refused(publish_check: PublishCheck, plain: Path):
    assert refusal(publish_check, configure(plain, rank_pattern={"q_proj": 2})).code == "wrong_rank"


def test_target_that_the_base_model_lacks_is_refused(publish_check: PublishCheck, tmp_path: Path):
    folder = save(adapt(target_modules=["q_proj", "query"]), tmp_path / "adapter")

    refused = refusal(publish_check, folder)

    assert refused.code == "unknown_target"
    assert "'query'" in str(refused)
    assert "down_proj, gate_proj, k_proj" in str(refused)


def test_adapter_of_another_base_model_is_refused_by_its_shapes(
    publish_check: PublishCheck, tmp_path: Path
):
    folder = save(adapt(tiny_llama(hidden_size=32)), tmp_path / "adapter")

    assert refusal(publish_check, folder).code == "wrong_shape"


def test_adapter_of_the_model_without_its_head_is_refused_by_its_names(
    publish_check: PublishCheck, plain: Path
):
    folder = change_weights(
        plain,
        lambda tensors: {name.replace("model.layers", "layers"): tensors[name] for name in tensors},
    )

    assert refusal(publish_check, folder).code == "unknown_module"


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensors[name] for name in tensors if name not in names}


def test_half_of_a_pair_is_refused(publish_check: PublishCheck, plain: Path):
    change_weights(plain, without(f"{PREFIX}.lora_B.weight"))

    refused = refusal(publish_check, plain)

    assert refused.code == "missing_pair"
    assert "lora_A and no lora_B" in str(refused)


def test_declared_target_without_matrices_is_refused(publish_check: PublishCheck, plain: Path):
    change_weights(plain, without(f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight"))

    refused = refusal(publish_check, plain)

    assert refused.code == "missing_tensors"
    assert "model.layers.0.self_attn.q_proj" in str(refused)


def added(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: np.ones((4, 64), np.float32)}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (f"{PREFIX}.lora_A.default.weight", "unexpected_tensor"),
        (f"{PREFIX}.lora_magnitude_vector", "unexpected_tensor"),
        (f"{PREFIX}.lora_B.bias", "unexpected_tensor"),
        (f"{'x' * 600}.lora_A.weight", "unexpected_tensor"),
        (f"{PREFIX.removeprefix('base_model.model.')}.lora_A.weight", "duplicate_tensor"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding_adapter"),
        ("base_model.model.lm_head.lora_A.weight", "embedding_adapter"),
    ],
)
def test_tensor_that_the_engine_could_not_place_is_refused(
    publish_check: PublishCheck, plain: Path, name: str, code: str
):
    assert refusal(publish_check, change_weights(plain, added(name))).code == code


def test_tensors_without_pefts_prefix_are_refused_with_what_to_do(
    publish_check: PublishCheck, plain: Path
):
    change_weights(
        plain, lambda tensors: {name.removeprefix(PEFT): tensors[name] for name in tensors}
    )

    refused = refusal(publish_check, plain)

    assert refused.code == "missing_prefix"
    assert "put the prefix before each name" in str(refused)


def test_what_was_published_without_the_prefix_is_still_loaded(
    publish_check: PublishCheck, plain: Path
):
    change_weights(
        plain, lambda tensors: {name.removeprefix(PEFT): tensors[name] for name in tensors}
    )

    assert publish_check.check_header(inspect(plain))


@pytest.mark.parametrize("before", ["model.", "base_model.model.", "module.", "x"])
def test_tensors_of_modules_that_the_base_has_not_are_refused(
    publish_check: PublishCheck, plain: Path, before: str
):
    change_weights(
        plain,
        lambda tensors: {
            f"{PEFT}{before}{name.removeprefix(PEFT)}": tensors[name] for name in tensors
        },
    )

    assert refusal(publish_check, plain).code == "unknown_module"


def test_embeddings_that_were_saved_along_are_refused(publish_check: PublishCheck, tmp_path: Path):
    folder = save(adapt(), tmp_path / "adapter", save_embedding_layers=True)

    refused = refusal(publish_check, folder)

    assert refused.code == "saved_embeddings"
    assert "save_embedding_layers=False" in str(refused)


def test_weights_without_tensors_are_refused(publish_check: PublishCheck, plain: Path):
    assert refusal(publish_check, change_weights(plain, lambda _: {})).code == "no_tensors"


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_other_types_are_refused(publish_check: PublishCheck, plain: Path, dtype: type):
    change_weights(plain, lambda tensors: {name: tensors[name].astype(dtype) for name in tensors})

    assert refusal(publish_check, plain).code == "unsupported_dtype"


# What the manifest says it was trained on


def write_manifest(folder: Path, **fields: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("base_model_digest", "other_base_model"),
        ("tokenizer_hash", "other_tokenizer"),
        ("chat_template_hash", "other_chat_template"),
    ],
)
def test_manifest_of_another_base_model_is_refused(
    publish_check: PublishCheck, plain: Path, field: str, code: str
):
    write_manifest(plain, **{field: "sha256:other"})

    assert refusal(publish_check, plain).code == code
    PublishCheck(None, 16).check(inspect(plain))


def test_template_that_the_adapter_brings_is_the_one_that_counts(
    publish_check: PublishCheck, plain: Path
):
    own = WORD_TURNS + "!"
    write_manifest(plain, chat_template_hash=template_hash(own), contract={"chat_template": own})
    publish_check.check(inspect(plain))

    write_manifest(
        plain, chat_template_hash=template_hash(WORD_TURNS), contract={"chat_template": own}
    )
    assert refusal(publish_check, plain).code == "other_chat_template"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_template_that_cannot_be_served_is_refused(
    publish_check: PublishCheck, plain: Path, template: str
):
    write_manifest(plain, contract={"chat_template": template})

    refused = refusal(publish_check, plain)

    assert refused.code == "invalid_template"
    assert "contract.chat_template" in str(refused)


# The numbers


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_number_that_is_not_finite_is_refused(
    publish_check: PublishCheck, tmp_path: Path, number: float, dtype: torch.dtype
):
    adapted = adapt().to(dtype)
    with torch.no_grad():
        adapted.get_parameter(f"{PREFIX}.lora_B.default.weight")[-1, -1] = number

    refused = refusal(publish_check, save(adapted, tmp_path / "adapter"))

    assert refused.code == "not_finite"
    assert "model.layers.0.self_attn.q_proj.lora_B" in str(refused)


def test_largest_numbers_of_each_type_are_finite(publish_check: PublishCheck, plain: Path):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        largest = torch.finfo(dtype).max
        shapes = {name: tensor.shape for name, tensor in load_file(plain / WEIGHTS).items()}
        save_torch(
            {name: torch.full(shape, -largest, dtype=dtype) for name, shape in shapes.items()},
            plain / WEIGHTS,
        )
        publish_check.check(inspect(plain))


def test_adapter_as_before_training_is_refused(publish_check: PublishCheck, tmp_path: Path):
    adapted = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=list(TARGETS)))
    assert isinstance(adapted, PeftModel)

    refused = refusal(publish_check, save(adapted, tmp_path / "adapter"))

    assert refused.code == "no_effect"


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_adapter_whose_products_are_all_zero_is_refused(
    publish_check: PublishCheck, plain: Path, side: str, zero: float
):
    change_weights(
        plain,
        lambda tensors: {
            name: np.full_like(tensor, zero) if side in name else tensor
            for name, tensor in tensors.items()
        },
    )

    assert refusal(publish_check, plain).code == "no_effect"


def test_numbers_beyond_the_first_block_are_read(tmp_path: Path, write_adapter: WriteAdapter):
    folder, width = write_adapter(), (8 << 20) // 4
    a, b = np.zeros((2, width), np.float32), np.ones((4, 2), np.float32)
    names = (f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight")
    check = PublishCheck(None, None)
    a[-1, -1] = 1
    save_file(dict(zip(names, (a, b), strict=True)), folder / WEIGHTS)
    check.check(inspect(folder))

    a[-1, -1] = np.nan
    save_file(dict(zip(names, (a, b), strict=True)), folder / WEIGHTS)
    assert refusal(check, folder).code == "not_finite"


def test_weights_that_change_under_the_check_are_refused(publish_check: PublishCheck, plain: Path):
    files = inspect(plain)
    (plain / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(InvalidAdapter) as shrunk:
        publish_check.check(files)
    (plain / WEIGHTS).unlink()
    with pytest.raises(InvalidAdapter) as gone:
        publish_check.check(files)

    assert (shrunk.value.code, gone.value.code) == ("invalid_safetensors", "unreadable")


# Publishing


def test_registry_publishes_what_its_gate_lets_through(
    database_url: str, store: ArtifactStore, profile: BaseProfile, plain: Path, tmp_path: Path
):
    name = AdapterName("acme", "support")
    with Registry(database_url, store, PublishCheck(profile, 8)) as registry:
        registry.tenants.create("acme")
        assert registry.versions.publish(name, plain).version == "v1"
        with pytest.raises(InvalidAdapter) as refused:
            registry.versions.publish(name, save(adapt(r=16), tmp_path / "large"))

        assert refused.value.code == "rank_too_high"
        assert len(registry.versions.show(name).versions) == 1
        assert len(list(tmp_path.glob("artifacts/*"))) == 1


@pytest.mark.parametrize("base_name", ["tiny", "acme/tiny"])
def test_adapter_named_as_the_base_model_is_refused(
    database_url: str, store: ArtifactStore, profile: BaseProfile, plain: Path, base_name: str
):
    gate = PublishCheck(replace(profile, name=base_name), 16)
    with Registry(database_url, store, gate) as registry:
        registry.tenants.create("acme")
        with pytest.raises(BaseModelName, match="go to the base model"):
            registry.versions.publish(AdapterName("acme", "tiny"), plain)

        assert not registry.adapters("acme")
        assert registry.versions.publish(AdapterName("acme", "tiny-2"), plain).version == "v1"


def test_reference_stays_with_the_weights(registry: Registry, store: ArtifactStore, plain: Path):
    scored = {"token_ids": [1, 2], "adapter": [-1.0], "base": [-2.0]}
    write_manifest(plain, reference={"prompts": [scored]})
    name = AdapterName("acme", "support")
    registry.tenants.create("acme")

    version = registry.versions.publish(name, plain)

    kept = inspect(store.path(version.digest)).manifest.reference
    assert kept is not None
    assert kept.adapter == [-1.0]
    assert registry.snapshot().manifest(version).reference is None


def test_registry_without_a_base_model_refuses_what_none_could_serve(
    registry: Registry, tmp_path: Path, plain: Path
):
    name = AdapterName("acme", "support")
    registry.tenants.create("acme")
    with pytest.raises(InvalidAdapter) as refused:
        registry.versions.publish(name, save(adapt(use_dora=True), tmp_path / "dora"))

    assert refused.value.code == "dora"
    assert registry.versions.publish(name, plain).version == "v1"
