"""A decoder layer of vLLM's as two calls into C, against the same layer part by part."""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import cast

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from vllm.config import CompilationConfig, LoRAConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_distributed_environment,
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.utils import from_layer
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers import rotary_embedding, utils
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models import llama
from vllm.model_executor.models.llama import LlamaDecoderLayer

from loragate.server.engine.cpu import elementwise, linear
from loragate.server.engine.cpu.decoder_layer import FusedLayer, Workspace, fuse
from loragate.server.engine.cpu.huge_pages import HugePages
from loragate.server.engine.cpu.linear import is_worth_it, shorten_calls
from loragate.server.engine.cpu.lora_kernel import LoraKernel
from loragate.server.engine.cpu.punica_wrapper import GroupedPunicaWrapper, lay_out_for_reading

SLOTS, RANK, POSITIONS = 3, 8, 64
SAME: Mapping[str, object] = MappingProxyType({})
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


MakeLayer = Callable[..., LlamaDecoderLayer]


class Mixing(nn.Module):
    """In the place of attention, which needs a whole engine: anything that all three go into."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return q * k.repeat(1, 2) + v.repeat(1, 2)


@pytest.fixture(scope="module", autouse=True)
def installed(library: ctypes.CDLL) -> Iterator[None]:
    """The kernels, in vLLM's place while these tests run."""
    if not is_worth_it():
        pytest.skip("oneDNN multiplies here: the processor has AMX")
    dispatch, ops = utils.dispatch_cpu_unquantized_gemm, dict(op_registry_oot)
    rotary_embedding._ROPE_DICT.clear()  # else vLLM hands out those of other kernels
    elementwise.register(library)
    linear.register(library, HugePages())
    yield
    utils.dispatch_cpu_unquantized_gemm = dispatch
    op_registry_oot.clear()
    op_registry_oot.update(ops)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmConfig]:
    """A group of one process, as vLLM's layers want it."""
    config = VllmConfig(compilation_config=CompilationConfig(custom_ops=["all"]))
    with set_current_vllm_config(config):
        store = tmp_path_factory.mktemp("group") / "store"
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        initialize_model_parallel(1)
        yield config
        destroy_model_parallel()
        destroy_distributed_environment()


@pytest.fixture
def kernel(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> LoraKernel:
    kernel = LoraKernel(library)
    monkeypatch.setattr(GroupedPunicaWrapper, "kernel", kernel)
    return kernel


@pytest.fixture
def make_layer(
    config: VllmConfig, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> MakeLayer:
    """A small layer of random weights."""
    monkeypatch.setattr(llama, "Attention", Mixing)

    def make(
        kind: type[LlamaDecoderLayer] = LlamaDecoderLayer, changes: Mapping[str, object] = SAME
    ) -> LlamaDecoderLayer:
        shape = LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=POSITIONS,
        )
        shape.update(dict(changes))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        layer = kind(config, "model.layers.0", config=shape)
        torch.set_default_dtype(before)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        for name in LINEARS:
            linear = cast("LinearBase", layer.get_submodule(name))
            assert linear.quant_method is not None
            linear.quant_method.process_weights_after_loading(linear)
        return layer

    return make


def adapt(layer: LlamaDecoderLayer, dtype: torch.dtype = torch.bfloat16) -> None:
    """Adapters of random weights in each slot of each linear layer."""
    config = LoRAConfig(max_lora_rank=RANK, max_loras=SLOTS, lora_dtype=dtype)
    punica = GroupedPunicaWrapper(64, 64, "cpu")
    for name in LINEARS:
        packed = {"qkv_proj": ["q", "k", "v"], "gate_up_proj": ["gate", "up"]}
        parts = packed.get(name.split(".")[1], [])
        adapted = from_layer(layer.get_submodule(name), SLOTS, config, parts, None)
        assert isinstance(adapted, BaseLinearLayerWithLoRA)
        adapted.set_mapping(punica)
        memory = HugePages()
        adapted.lora_b_stacked = tuple(
            lay_out_for_reading(stack, memory) for stack in adapted.lora_b_stacked
        )
        for stack in (*adapted.lora_a_stacked, *adapted.lora_b_stacked):
            stack.normal_(std=0.1)
        shorten_calls(adapted)
        layer.set_submodule(name, adapted)


def set_rows(kernel: LoraKernel, layer: LlamaDecoderLayer, slots: torch.Tensor) -> object:
    """Says whose each row is; -1 is the base model's. Keep what it returns."""
    ordered, rows = torch.sort(slots, stable=True)
    rows, ordered = rows[ordered >= 0].contiguous(), ordered[ordered >= 0].contiguous()
    ranks = torch.tensor([RANK, RANK // 2, RANK])
    kernel.set_rows(len(rows), rows.data_ptr(), ordered.data_ptr(), ranks.data_ptr())
    # Part by part, vLLM's wrapper asks itself first whether there is anything to add.
    adapted = cast("BaseLinearLayerWithLoRA", layer.mlp.down_proj)
    punica = cast("GroupedPunicaWrapper", adapted.punica_wrapper)
    punica._tokens_by_slot = ((0, rows),) if len(rows) else ()
    return rows, ordered, ranks


@pytest.mark.parametrize("rows", [1, 2, 16, 40])
@pytest.mark.parametrize("who", ["base", "adapters", "both"])
@pytest.mark.parametrize("is_first", [False, True])
def test_fused_layer_gives_the_same_numbers_as_its_parts(
    library: ctypes.CDLL,
    kernel: LoraKernel,
    make_layer: MakeLayer,
    rows: int,
    who: str,
    is_first: bool,
) -> None:
    torch.manual_seed(rows)
    layer = make_layer()
    adapt(layer)
    slots = torch.full((rows,), -1) if who == "base" else torch.arange(rows) % SLOTS
    if who == "both":
        slots[::2] = -1
    kept = set_rows(kernel, layer, slots)
    positions = torch.randint(0, POSITIONS, (rows,))
    x, residual = torch.randn(2, rows, 64).bfloat16()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return layer(positions, x.clone(), None if is_first else residual.clone())

    by_parts = run()
    fuse(library, kernel, Workspace(), layer)
    assert isinstance(layer.forward, FusedLayer)
    fused = run()

    assert kept
    for one, other in zip(fused, by_parts, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_layer_of_a_merged_model_is_fused_without_adapters(
    library: ctypes.CDLL, kernel: LoraKernel, make_layer: MakeLayer
) -> None:
    layer = make_layer()
    x, residual = torch.randn(2, 5, 64).bfloat16()
    by_parts = layer(torch.arange(5), x.clone(), residual.clone())

    fuse(library, kernel, Workspace(), layer)

    assert isinstance(layer.forward, FusedLayer)
    fused = layer(torch.arange(5), x.clone(), residual.clone())
    assert all(map(torch.equal, fused, by_parts))


def test_batch_of_more_dimensions_goes_the_way_of_vllm(
    library: ctypes.CDLL,
    kernel: LoraKernel,
    make_layer: MakeLayer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = make_layer()
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(layer, "forward", lambda _positions, x, _residual: asked.append(x))
    x = torch.zeros(1, 3, 64).bfloat16()

    fuse(library, kernel, Workspace(), layer)
    assert isinstance(layer.forward, FusedLayer)
    layer(torch.arange(3), x, None)

    assert asked == [x]


class Other(LlamaDecoderLayer):
    """Another model's, which may compute anything."""


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Other, {}),
        (LlamaDecoderLayer, {"attention_bias": True}),
        (
            LlamaDecoderLayer,
            {
                "rope_parameters": {
                    "rope_type": "dynamic",
                    "factor": 2.0,
                    "rope_theta": 10000.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
    ],
    ids=["another model", "a bias", "angles of another kind"],
)
def test_layer_that_does_more_stays_as_it_is(
    library: ctypes.CDLL,
    kernel: LoraKernel,
    make_layer: MakeLayer,
    kind: type[LlamaDecoderLayer],
    changes: Mapping[str, object],
) -> None:
    layer = make_layer(kind, changes)

    fuse(library, kernel, Workspace(), layer)

    assert not isinstance(layer.forward, FusedLayer)


def test_layer_with_adapters_of_another_dtype_stays_as_it_is(
    library: ctypes.CDLL, kernel: LoraKernel, make_layer: MakeLayer
) -> None:
    layer = make_layer()
    adapt(layer, torch.float32)

    fuse(library, kernel, Workspace(), layer)

    assert not isinstance(layer.forward, FusedLayer)
