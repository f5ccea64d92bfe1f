"""Adapters of any trainer come in as they are, exactly repaired, or not at all.

Whatever the layout, each layer's `scale * B @ A` has to be what PEFT computes for the adapter that
was written down in it.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFValueType, GGUFWriter
from peft import AdaLoraConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.files import CONFIG, WEIGHTS
from loragate.adapters.importing.importing import Imported, Importer
from loragate.adapters.importing.program import convert

PREFIX = "base_model.model."
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
}
Deltas = dict[str, Tensor]


def importer_of(model: torch.nn.Module, folder: Path) -> Importer:
    model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    # In this process: starting one takes seconds, and only one test is about that.
    return Importer(BaseProfile.read(BaseModel("tiny", folder, "sha256:0")), folder, 64, convert)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def llama_importer(tmp_path_factory: pytest.TempPathFactory) -> Importer:
    return importer_of(llama(), tmp_path_factory.mktemp("base"))


def trained(config: Any, model: torch.nn.Module | None = None) -> PeftModel:
    """An adapter whose every number has been moved from where it starts."""
    adapted = get_peft_model(model or llama(), config)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(7)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.1
    return adapted  # pyright: ignore[reportReturnType]


def deltas_of(adapted: PeftModel) -> Deltas:
    """What PEFT adds to each layer's weights, by the layer's name."""
    return {
        name.removeprefix(PREFIX): module.get_delta_weight("default").detach()
        for name, module in adapted.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def deltas_in(folder: Path) -> Deltas:
    """What the folder's plain LoRA adds to each layer's weights, by PEFT's rules."""
    settings, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    assert settings["peft_type"] == "LORA"

    def of(name: str) -> Tensor:
        a, b = (tensors[f"{name}.lora_{side}.weight"].float() for side in "AB")
        module = name.removeprefix(PREFIX)
        alpha = by_pattern(settings.get("alpha_pattern"), module, settings["lora_alpha"])
        assert by_pattern(settings.get("rank_pattern"), module, settings["r"]) == a.shape[0]
        rank = a.shape[0] ** 0.5 if settings.get("use_rslora") else a.shape[0]
        return alpha / rank * b @ a

    names = {name.rpartition(".lora_")[0] for name in tensors}
    return {name.removeprefix(PREFIX): of(name) for name in names}


def by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    found = (patterns or {}).items()
    return next((value for key, value in found if f".{module}".endswith(f".{key}")), otherwise)


def assert_same(found: Deltas, expected: Deltas) -> None:
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-6)


def rewritten(folder: Path, rename: Callable[[str], str]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    return folder


def check(importer: Importer, source: Path, expected: Deltas) -> Imported:
    with importer.imported(source) as imported:
        assert_same(deltas_in(imported.folder), expected)
        return imported


def plain(folder: Path, **options: Any) -> tuple[Path, Deltas]:
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 10, "target_modules": ALL}
    adapted = trained(LoraConfig(**settings | options))
    adapted.save_pretrained(str(folder))
    return folder, deltas_of(adapted)


def test_checkpoint_of_a_trainer_is_taken_as_it_is_and_the_rest_is_left_out(
    llama_importer: Importer, tmp_path: Path
) -> None:
    folder, expected = plain(tmp_path / "checkpoint-5")
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "trainer_state.json"):
        (folder / name).write_bytes(b"\x80\x04.")
    (folder / "tokenizer.json").symlink_to("/etc/hostname")

    imported = check(llama_importer, folder, expected)

    assert imported.folder == folder
    assert imported.repairs == ()
    assert {each.name for each in imported.left_out} >= {"training_args.bin", "optimizer.pt"}


RENAMES: dict[str, Callable[[str], str]] = {
    "without PEFT's prefix": lambda name: name.removeprefix(PREFIX),
    "with the prefix twice": lambda name: PREFIX + name,
    "compiled": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled outside": lambda name: f"_orig_mod.{name}",
    "sharded": lambda name: name.replace("layers.0", "layers.0._fsdp_wrapped_module"),
    "with the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "from the inner model": lambda name: name.replace(f"{PREFIX}model.", PREFIX),
    "in a wrapper": lambda name: f"module.{name}",
}


@pytest.mark.parametrize("kind", RENAMES)
def test_names_that_others_give_find_their_layers(
    llama_importer: Importer, tmp_path: Path, kind: str
) -> None:
    folder, expected = plain(tmp_path / "a")

    imported = check(llama_importer, rewritten(folder, RENAMES[kind]), expected)

    assert imported.repairs


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|v)_proj"},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]},
        {"lora_alpha": 7, "r": 3},
    ],
)
def test_scale_and_targets_survive_a_repair(
    llama_importer: Importer, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder, expected = plain(tmp_path / "a", **options)

    check(llama_importer, folder, expected)
    check(llama_importer, rewritten(folder, RENAMES["without PEFT's prefix"]), expected)


def test_pickled_and_sharded_weights_are_put_into_one_file(
    llama_importer: Importer, tmp_path: Path
) -> None:
    folder, expected = plain(tmp_path / "a")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    check(llama_importer, folder, expected)
    (folder / "adapter_model.bin").unlink()

    names = sorted(tensors)
    for number, part in ((1, names[:5]), (2, names[5:])):
        shard = folder / f"adapter_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, shard)
    check(llama_importer, folder, expected)
    shard.unlink()
    assert code_of(llama_importer, folder) == "missing_file"


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    llama_importer = Importer(None, None, None)  # in a process of its own
    folder, _ = plain(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    torch.save({"a": Harmful()}, folder / "adapter_model.bin")

    assert code_of(llama_importer, folder) == "pickle_file"


def test_adapter_in_a_folder_of_its_name_is_found(llama_importer: Importer, tmp_path: Path) -> None:
    _, expected = plain(tmp_path / "out" / "support")

    check(llama_importer, tmp_path / "out", expected)
    plain(tmp_path / "out" / "sales")
    assert code_of(llama_importer, tmp_path / "out") == "several_adapters"


def test_mlx_adapter_is_turned_round(llama_importer: Importer, tmp_path: Path) -> None:
    folder, expected = plain(tmp_path / "a", r=16, lora_alpha=320)
    tensors = load_file(folder / WEIGHTS)
    mlx = {
        name.removeprefix(PREFIX)
        .replace(".lora_A.weight", ".lora_a")
        .replace(".lora_B.weight", ".lora_b"): tensor.T.contiguous()
        for name, tensor in tensors.items()
    }
    other = tmp_path / "mlx"
    other.mkdir()
    save_file(mlx, other / "adapters.safetensors")
    parameters = {"rank": 16, "scale": 20.0, "dropout": 0.0}
    settings = {"fine_tune_type": "lora", "lora_parameters": parameters}
    (other / CONFIG).write_text(json.dumps(settings))

    check(llama_importer, other, expected)
    (other / CONFIG).write_text(json.dumps(settings | {"fine_tune_type": "dora"}))
    assert code_of(llama_importer, other) == "not_lora"


def test_gguf_adapter_is_put_back_in_order(llama_importer: Importer, tmp_path: Path) -> None:
    folder, expected = plain(tmp_path / "a")
    file = tmp_path / "a.gguf"
    write_gguf(file, load_file(folder / WEIGHTS), alpha=10)

    check(llama_importer, file, expected)


def test_kohya_names_and_alphas_are_understood(llama_importer: Importer, tmp_path: Path) -> None:
    folder, expected = plain(tmp_path / "a")
    kohya: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        module = name.removeprefix(PREFIX).rpartition(".lora_")[0].replace(".", "_")
        side = "lora_down" if ".lora_A." in name else "lora_up"
        kohya[f"lora_te_{module}.{side}.weight"] = tensor
        kohya[f"lora_te_{module}.alpha"] = torch.tensor(10.0)
    file = tmp_path / "lora.safetensors"
    save_file(kohya, file)

    check(llama_importer, file, expected)


def test_torchtune_checkpoint_is_put_in_transformers_order(
    llama_importer: Importer, tmp_path: Path
) -> None:
    folder, expected = plain(tmp_path / "a")
    words = {
        "self_attn.o_proj": "attn.output_proj",
        "self_attn.": "attn.",
        "mlp.gate_proj": "mlp.w1",
        "mlp.down_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w3",
    }
    tune: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        theirs = name.removeprefix(f"{PREFIX}model.").replace(".lora_A.", ".lora_a.")
        theirs = theirs.replace(".lora_B.", ".lora_b.")
        for ours, other in words.items():
            theirs = theirs.replace(ours, other)
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".lora_")[0].rpartition(".")[2])
        tune[theirs] = interleaved(tensor, heads) if heads and ".lora_B." in name else tensor
    (folder / WEIGHTS).unlink()
    torch.save(tune, folder / "adapter_0.pt")

    check(llama_importer, folder, expected)


def test_fused_adapter_is_split_for_a_base_with_separate_layers(
    llama_importer: Importer, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    a, b = torch.randn(4, 16), torch.randn(16 + 8 + 8, 4)
    gate_up = torch.randn(48, 4)
    at = f"{PREFIX}model.layers.1"
    folder = written(
        tmp_path / "a",
        {
            f"{at}.self_attn.qkv_proj.lora_A.weight": a,
            f"{at}.self_attn.qkv_proj.lora_B.weight": b,
            f"{at}.mlp.gate_up_proj.lora_A.weight": a.clone(),
            f"{at}.mlp.gate_up_proj.lora_B.weight": gate_up,
        },
        target_modules=["qkv_proj", "gate_up_proj"],
    )

    layer, rows = "model.layers.1", {"q_proj": b[:16], "k_proj": b[16:24], "v_proj": b[24:]}
    expected = {f"{layer}.self_attn.{name}": 2 * part @ a for name, part in rows.items()}
    expected[f"{layer}.mlp.gate_proj"] = 2 * gate_up[:24] @ a
    expected[f"{layer}.mlp.up_proj"] = 2 * gate_up[24:] @ a
    check(llama_importer, folder, expected)


@pytest.mark.parametrize(
    "left_out", [(), ("v_proj",), ("q_proj",), ("k_proj", "v_proj", "up_proj")]
)
def test_separate_matrices_are_joined_for_a_base_with_fused_layers(
    tmp_path: Path, left_out: tuple[str, ...]
) -> None:
    importer = importer_of(Phi3ForCausalLM(Phi3Config(**SIZES)), tmp_path / "phi")
    targets = [name for name in ALL if name not in left_out]
    folder, deltas = plain(tmp_path / "a", target_modules=targets)

    expected: Deltas = {}
    for layer in ("model.layers.0", "model.layers.1"):
        for fused, names, rows in (
            ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj"), (16, 8, 8)),
            ("mlp.gate_up_proj", ("gate_proj", "up_proj"), (24, 24)),
        ):
            parent = f"{layer}.{fused.partition('.')[0]}"
            parts = [
                deltas.get(f"{parent}.{name}", torch.zeros(count, 16))
                for name, count in zip(names, rows, strict=True)
            ]
            expected[f"{layer}.{fused}"] = torch.cat(parts)
        for same in ("self_attn.o_proj", "mlp.down_proj"):
            expected[f"{layer}.{same}"] = deltas[f"{layer}.{same}"]
    check(importer, folder, expected)


def test_adalora_and_vera_become_plain_lora(llama_importer: Importer, tmp_path: Path) -> None:
    targets = ["q_proj", "v_proj"]
    ada = trained(AdaLoraConfig(init_r=6, lora_alpha=9, target_modules=targets, total_step=10))
    ada.save_pretrained(str(tmp_path / "ada"))
    vera = trained(VeraConfig(r=8, target_modules=["gate_proj", "up_proj"]))
    vera.save_pretrained(str(tmp_path / "vera"))

    check(llama_importer, tmp_path / "ada", deltas_of(ada))
    check(llama_importer, tmp_path / "vera", deltas_of(vera))


def test_transposed_matrices_are_turned_where_only_one_way_fits(
    llama_importer: Importer, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    a, b = torch.randn(4, 16), torch.randn(24, 4)
    at = f"{PREFIX}model.layers.0.mlp.up_proj"
    tensors = {f"{at}.lora_A.weight": a.T.contiguous(), f"{at}.lora_B.weight": b.T.contiguous()}
    folder = written(tmp_path / "a", tensors, target_modules=["up_proj"], layers_to_transform=[0])

    check(llama_importer, folder, {"model.layers.0.mlp.up_proj": 2 * b @ a})


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"use_dora": True}, "dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"target_modules": [*ALL, "embed_tokens"]}, "saved_embeddings"),
        ({"init_lora_weights": "pissa"}, "changed_base"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name_and_never_written_as_one(
    llama_importer: Importer, tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    folder, _ = plain(tmp_path / "a", **options)
    assert code_of(llama_importer, folder) == code
    rewritten(folder, RENAMES["without PEFT's prefix"])
    assert code_of(llama_importer, folder) == code


def break_rank(folder: Path) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"r": 8}))


def lose_half(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {n: t for n, t in tensors.items() if "1.mlp.up_proj.lora_B" not in n}, folder / WEIGHTS
    )


def swap_halves(folder: Path) -> None:
    rewritten(
        folder,
        lambda n: re.sub("lora_[AB]", lambda m: "lora_B" if m[0][-1] == "A" else "lora_A", n),
    )


def spoil(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def zero(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t * ("lora_A" in n) for n, t in tensors.items()}, folder / WEIGHTS)


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def move_layer(folder: Path) -> None:
    rewritten(folder, lambda name: name.replace("layers.1", "layers.7"))


def lose_layer(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    kept = {n.removeprefix(PREFIX): t for n, t in tensors.items() if "layers.1" not in n}
    save_file(kept, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("harm", "codes"),
    [
        (break_rank, {"wrong_rank"}),
        (lose_half, {"missing_pair"}),
        (spoil, {"not_finite"}),
        (zero, {"no_effect"}),
        (truncate, {"invalid_safetensors", "unreadable"}),
        (move_layer, {"unknown_module", "missing_tensors"}),
        (lose_layer, {"missing_tensors"}),
    ],
)
def test_broken_adapter_is_refused_with_its_reason(
    llama_importer: Importer, tmp_path: Path, harm: Callable[[Path], None], codes: set[str]
) -> None:
    folder, _ = plain(tmp_path / "a")
    harm(folder)

    assert code_of(llama_importer, folder) in codes


def test_swapped_halves_are_never_served_as_they_are(
    llama_importer: Importer, tmp_path: Path
) -> None:
    folder, _ = plain(tmp_path / "a")
    swap_halves(folder)

    assert code_of(llama_importer, folder)


def test_adapter_for_another_base_is_refused(llama_importer: Importer, tmp_path: Path) -> None:
    sizes: dict[str, Any] = SIZES | {"hidden_size": 32}
    other = LlamaForCausalLM(LlamaConfig(**sizes))
    adapted = trained(LoraConfig(r=4, target_modules=["q_proj"]), other)
    adapted.save_pretrained(str(tmp_path / "a"))

    assert code_of(llama_importer, tmp_path / "a") == "wrong_shape"


@pytest.mark.parametrize("name", ["notes.txt", "nothing"])
def test_what_is_no_adapter_is_refused_in_a_sentence(
    llama_importer: Importer, tmp_path: Path, name: str
) -> None:
    (tmp_path / "notes.txt").write_text("hello")

    assert code_of(llama_importer, tmp_path / name) in {"unknown_layout", "not_found"}
    assert code_of(llama_importer, tmp_path) == "missing_file"


def code_of(importer: Importer, source: Path) -> str:
    with pytest.raises(InvalidAdapter) as refused, importer.imported(source):
        pass
    return refused.value.code


def written(folder: Path, tensors: Mapping[str, Tensor], **settings: object) -> Path:
    folder.mkdir()
    save_file(dict(tensors), folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | settings
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """The two halves of each head taken in turn, as rotary embeddings of pairs have it."""
    width = rows.shape[0] // heads
    halves = rows.reshape(heads, 2, width // 2, -1)
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(file: Path, tensors: Mapping[str, Tensor], alpha: float) -> None:
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    writer = GGUFWriter(file, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_key_value("adapter.lora.alpha", float(alpha), GGUFValueType.FLOAT32)
    for name, tensor in tensors.items():
        found = re.fullmatch(rf"{PREFIX}model\.layers\.(\d+)\.(.+)\.lora_([AB])\.weight", name)
        assert found is not None
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(found[2])
        rows = interleaved(tensor, heads) if heads and found[3] == "B" else tensor
        side = found[3].lower()
        writer.add_tensor(
            f"blk.{found[1]}.{names[found[2]]}.weight.lora_{side}", rows.numpy().astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
