"""The compiled products with the model's weights, against the same in float64."""

import ctypes
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.server.engine.cpu.huge_pages import HugePages
from loragate.server.engine.cpu.linear import AdaptedLinear, PackedLinear, covers

if TYPE_CHECKING:
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

# One rounding to bfloat16, and sums in float32 of products that are exact.
ROUNDING = 8e-3  # of the largest number in the result


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 60),
    pairs=st.integers(1, 200),
    panels=st.integers(1, 40),
    has_bias=st.booleans(),
    stride=st.sampled_from((0, 8)),
    seed=st.integers(0, 2**32),
)
def test_product_is_that_of_the_weights(
    library: ctypes.CDLL,
    rows: int,
    pairs: int,
    panels: int,
    has_bias: bool,
    stride: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(32 * panels, 2 * pairs).bfloat16()
    bias = torch.randn(32 * panels).bfloat16() if has_bias else None
    x = torch.randn(rows, 2 * pairs + stride).bfloat16()[:, : 2 * pairs]

    y = PackedLinear(library, HugePages(), weight)(x, torch.empty(0), bias)

    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert y.dtype is torch.bfloat16
    assert (y.double() - expected).abs().max() <= 2 * ROUNDING * expected.abs().max()


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 60),
    fours=st.integers(1, 100),
    panels=st.integers(1, 20),
    largest=st.sampled_from((1e-6, 1.0, 1e4)),
    seed=st.integers(0, 2**32),
)
def test_product_with_weights_of_eight_bits_is_near_that_of_the_weights(
    library: ctypes.CDLL, rows: int, fours: int, panels: int, largest: float, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = (torch.randn(32 * panels, 4 * fours) * largest).bfloat16()
    x = torch.randn(rows, 4 * fours).bfloat16()
    weight[0], x[0, :3] = 0, 100  # as some of a layer's inputs are
    linear = PackedLinear(library, HugePages(), weight)

    assert linear.quantise()

    expected = x.double() @ weight.double().T
    off = (linear.multiply(x, None).double() - expected).abs()
    # Each factor is off by half a step at most, a 254th of the largest of its group.
    bound = 4 * fours / 254 * 4 * largest * (x.abs().amax(1, keepdim=True).double() + 1)
    assert (off <= bound).all()
    assert off.norm() <= 0.03 * expected.norm() + ROUNDING * largest


def test_product_with_weights_of_eight_bits_keeps_numbers_that_are_none(
    library: ctypes.CDLL,
) -> None:
    linear = PackedLinear(library, HugePages(), torch.randn(32, 64).bfloat16())
    linear.quantise()
    x = torch.randn(3, 64).bfloat16()
    x[0, 5], x[1, 5] = float("nan"), float("inf")

    y = linear.multiply(x, None)

    assert not y[:2].isfinite().any()
    assert y[2].isfinite().all()


def test_weights_are_rounded_where_they_are_looked_up(library: ctypes.CDLL) -> None:
    linear = PackedLinear(library, HugePages(), torch.randn(32, 64).bfloat16())
    address, x = linear.address, torch.randn(2, 64).bfloat16()
    exact = linear.multiply(x, None)

    assert linear.quantise()
    assert linear.quantise()  # a second time changes nothing

    assert linear.address == address
    assert not torch.equal(linear.multiply(x, None), exact)


def test_rows_that_do_not_fill_words_stay_as_they_are(library: ctypes.CDLL) -> None:
    linear = PackedLinear(library, HugePages(), torch.randn(32, 66).bfloat16())
    assert not linear.quantise()


@pytest.mark.parametrize("bits", [16, 8])
def test_row_does_not_depend_on_its_company(library: ctypes.CDLL, bits: int) -> None:
    linear = PackedLinear(library, HugePages(), torch.randn(96, 64).bfloat16())
    if bits == 8:
        linear.quantise()
    x = torch.randn(50, 64).bfloat16()

    together = linear(x, torch.empty(0), None)

    for count in (1, 7, 12, 13, 31):
        assert torch.equal(linear(x[:count], torch.empty(0), None), together[:count])


def test_leading_dimensions_are_kept(library: ctypes.CDLL) -> None:
    linear = PackedLinear(library, HugePages(), torch.randn(32, 64).bfloat16())
    assert linear(torch.randn(2, 3, 64).bfloat16(), torch.empty(0), None).shape == (2, 3, 32)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(64, 64),
        torch.zeros(64, 64, dtype=torch.float16),
        torch.zeros(33, 64, dtype=torch.bfloat16),
        torch.zeros(64, 63, dtype=torch.bfloat16),
        torch.zeros(4, 32, 64, dtype=torch.bfloat16),
        torch.zeros(64, 64, dtype=torch.bfloat16).T[::2],
        torch.zeros(64, 64, dtype=torch.bfloat16, device="meta"),
    ],
    ids=["float32", "float16", "odd out", "odd in", "experts", "strided", "meta"],
)
def test_other_weights_are_left_to_vllm(library: ctypes.CDLL, weight: torch.Tensor) -> None:
    assert not covers(library, weight)


def test_batch_of_more_dimensions_goes_the_way_of_vllm() -> None:
    asked: list[torch.Tensor] = []
    layer = SimpleNamespace(
        base_layer=SimpleNamespace(
            bias=None,
            skip_bias_add=False,
            return_bias=False,
            cpu_linear=SimpleNamespace(multiply=0),
        ),
        forward=asked.append,
        punica_wrapper=SimpleNamespace(add_lora_linear=None),
        lora_a_stacked=(),
        lora_b_stacked=(),
        output_slices=(),
    )
    x = torch.zeros(1, 3, 64)

    AdaptedLinear(cast("BaseLinearLayerWithLoRA", layer))(x)

    assert asked == [x]
