"""What each method trains, and that 4 and 8 bits on a CPU keep their gradients."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from loragate.trainer.run.file import RunFile
from loragate.trainer.training.models import add_adapter, keep_quantized_layout, load_base
from support.training.tiny_runs import TinyRuns


def adapted(runs: TinyRuns, run: RunFile) -> PeftModel:
    """The run's model with an adapter that does something."""
    plan = runs.plan(run)
    base = load_base(plan.base.path, plan.settings.method, "fp32", "cpu")
    model = add_adapter(base, plan.settings.method, seed=0)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=chance)
    return model


def gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.fixture(params=["nf4", "int8"])
def quantized(request: pytest.FixtureRequest, runs: TinyRuns) -> PeftModel:
    return adapted(runs, runs.run_file(method={"name": "qlora", "quantization": request.param}))


def test_gradients_on_a_quantized_base_are_the_same_after_a_validation(
    quantized: PeftModel,
) -> None:
    ids = torch.arange(64).reshape(2, 32)
    before = gradients(quantized, ids)
    quantized.eval()
    with torch.no_grad():
        quantized(input_ids=ids)
    after = gradients(quantized, ids)
    assert before.keys() == after.keys()
    assert sum("layers.0" in name for name in before) == 14, "the first layer has to learn too"
    for name, gradient in before.items():
        assert torch.allclose(gradient, after[name], rtol=1e-4, atol=1e-6), name


def test_gradients_on_a_quantized_base_are_near_those_on_the_whole_one(
    quantized: PeftModel, runs: TinyRuns
) -> None:
    ids = torch.arange(64).reshape(2, 32)
    whole = gradients(adapted(runs, runs.run_file()), ids)
    for name, gradient in gradients(quantized, ids).items():
        similarity = torch.cosine_similarity(gradient.flatten(), whole[name].flatten(), dim=0)
        assert similarity > 0.8, name


def test_a_quantized_base_is_small_and_its_head_is_not_quantized(quantized: PeftModel) -> None:
    base = quantized.get_base_model()
    assert isinstance(base, PreTrainedModel)
    projection = base.get_submodule("model.layers.0.self_attn.q_proj.base_layer")
    assert projection.weight.dtype in (torch.uint8, torch.int8)
    assert base.get_parameter("lm_head.weight").dtype == torch.float32


def test_a_quantized_run_trains_and_leaves_a_plain_adapter(runs: TinyRuns) -> None:
    folder, result = runs.train(
        runs.run_file(
            method={"name": "qlora"},
            training={"max_steps": 8, "learning_rate": 1e-2, "evaluate_every": 4},
        )
    )
    assert result.method == "qlora"
    assert result.diagnosis.best_validation_loss < result.diagnosis.first_validation_loss
    assert (folder.adapter / "adapter_model.safetensors").is_file()


def test_without_the_guard_a_validation_would_repack_the_weights() -> None:
    """The reason for `keep_quantized_layout`; if this fails, bitsandbytes has fixed it."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(64, 64)})
    layer = layer.to("cpu")
    if not getattr(layer, "support_avx512bf16_for_cpu", False):
        pytest.skip("this CPU or this version of bitsandbytes does not repack")
    before = layer.weight.data.clone()
    guarded = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
    guarded.load_state_dict({"weight": torch.randn(64, 64)})
    guarded = guarded.to("cpu")
    keep_quantized_layout(guarded)
    kept = guarded.weight.data.clone()
    for each in (layer, guarded):
        each.eval()
        with torch.no_grad():
            each(torch.randn(2, 64))
    assert not torch.equal(layer.weight.data.flatten(), before.flatten())
    assert torch.equal(guarded.weight.data, kept)


def test_an_rslora_adapter_says_so_and_is_scaled_by_the_root_of_its_rank(runs: TinyRuns) -> None:
    model = adapted(runs, runs.run_file(method={"name": "rslora", "rank": 16}))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert isinstance(layer, LoraLayer)
    assert layer.scaling["default"] == pytest.approx(16 / 16**0.5)


def test_a_full_run_leaves_a_model_that_loads_alone(runs: TinyRuns) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = runs.train(runs.run_file(method={"name": "full"}, training={"max_steps": 2}))
    assert AutoModelForCausalLM.from_pretrained(folder.adapter).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder.adapter).chat_template
