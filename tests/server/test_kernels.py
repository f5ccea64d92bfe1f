"""The compiled kernels against the same formulas in float64."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from loragate.server.engine.cpu import native_library
from loragate.server.engine.cpu.lora_kernel import LoraKernel, Stack
from loragate.server.engine.cpu.native_library import KernelsUnavailable

TYPES = (torch.float32, torch.bfloat16)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 8e-3}  # of the largest number in the result


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    in_features=st.integers(1, 200),
    rank=st.integers(1, 20),
    widths=st.lists(st.integers(1, 80), min_size=1, max_size=4),
    slots=st.integers(1, 5),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 2**32),
)
def test_each_row_gets_the_product_of_its_own_adapter_and_of_no_other(
    library: ctypes.CDLL,
    rows: int,
    in_features: int,
    rank: int,
    widths: list[int],
    slots: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    a = [torch.randn(slots, rank, in_features).to(dtype) for _ in widths]
    b = [torch.randn(slots, rank, width).to(dtype) for width in widths]
    x = torch.randn(rows, in_features).to(dtype)
    y = torch.randn(rows, sum(widths)).to(dtype)
    slot = torch.randint(-1, slots, (rows,))  # -1 is the base model's
    ranks = torch.randint(1, rank + 1, (slots,))
    for each in a:  # what lies beyond an adapter's own rank must not count
        for index, used in enumerate(ranks):
            each[index, used:] = 7.0

    expected = y.double()
    for row in range(rows):
        if slot[row] >= 0:
            products = [
                x[row].double()
                @ each_a[slot[row], : ranks[slot[row]]].double().T
                @ each_b[slot[row], : ranks[slot[row]]].double()
                for each_a, each_b in zip(a, b, strict=True)
            ]
            expected[row] += torch.cat(products)
    untouched = y[slot < 0].clone()
    _add(LoraKernel(library), a, b, x, y, slot, ranks)

    assert torch.equal(y[slot < 0], untouched)
    _assert_close(y, expected)


def _add(
    kernel: LoraKernel,
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    slot: torch.Tensor,
    ranks: torch.Tensor,
) -> None:
    ordered, rows = torch.sort(slot, stable=True)
    rows, ordered = rows[ordered >= 0].contiguous(), ordered[ordered >= 0].contiguous()
    kernel.set_rows(len(rows), rows.data_ptr(), ordered.data_ptr(), ranks.data_ptr())
    stacks = [
        Stack(each_a.data_ptr(), each_b.data_ptr(), each_b.shape[2])
        for each_a, each_b in zip(a, b, strict=True)
    ]
    dtype = str(x.dtype).removeprefix("torch.")
    layer = kernel.layer(dtype, a[0].shape[2], a[0].shape[1], stacks)
    layer.add(y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 5, 300])  # one thread and several
def test_norm_with_a_residual_adds_and_then_normalises(
    library: ctypes.CDLL, dtype: torch.dtype, rows: int
) -> None:
    width = 576
    x, residual = torch.randn(rows, width).to(dtype), torch.randn(rows, width).to(dtype)
    weight = torch.randn(width).to(dtype)
    both = x.double() + residual.double()
    expected = functional.rms_norm(both, (width,), weight.double(), 1e-5)

    add_rms_norm = _function(library, "add_rms_norm", dtype, "pppiif")
    add_rms_norm(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), rows, width, 1e-5)

    _assert_close(residual, both)
    _assert_close(x, expected)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_norm_reads_rows_that_lie_apart(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    wide, weight = torch.randn(7, 96).to(dtype), torch.randn(32).to(dtype)
    x, out = wide[:, 32:64], torch.empty(7, 32, dtype=dtype)
    expected = functional.rms_norm(x.double(), (32,), weight.double(), 1e-5)

    rms_norm = _function(library, "rms_norm", dtype, "pppiiif")
    rms_norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), 7, 32, x.stride(0), 1e-5)

    _assert_close(out, expected)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_activation_is_right_for_small_large_and_absent_numbers(
    library: ctypes.CDLL, dtype: torch.dtype
) -> None:
    gate = torch.cat([torch.linspace(-100, 100, 1000), torch.randn(600)]).to(dtype)
    x = torch.stack([torch.cat([gate, torch.randn(1600).to(dtype)])] * 60)
    out = torch.empty(60, 1600, dtype=dtype)
    expected = functional.silu(x[:, :1600].double()) * x[:, 1600:].double()

    silu_and_mul = _function(library, "silu_and_mul", dtype, "ppii")
    silu_and_mul(out.data_ptr(), x.data_ptr(), 60, 1600)
    _assert_close(out, expected)

    x[0, 0] = float("nan")
    silu_and_mul(out.data_ptr(), x.data_ptr(), 60, 1600)
    assert out[0, 0].isnan()
    assert not out[0, 1:].isnan().any()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rotary_embedding_turns_each_head_by_its_position(
    library: ctypes.CDLL, dtype: torch.dtype
) -> None:
    rows, heads, head_width, half = 9, 3, 64, 32
    angles = torch.outer(torch.arange(50.0), 1e4 ** (-torch.arange(half) / half))
    table = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
    position = torch.randint(0, 50, (rows,))
    fused = torch.randn(rows, heads * head_width + 128).to(dtype)  # q beside k and v
    x = fused[:, : heads * head_width]
    cos, sin = table[position].double().split(half, dim=1)
    first, second = x.double().view(rows, heads, head_width).split(half, dim=2)
    cos, sin = cos[:, None], sin[:, None]
    expected = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)
    beside = fused[:, heads * head_width :].clone()

    rotate = _function(library, "rotate", dtype, "pppiiiii")
    rotate(
        x.data_ptr(),
        position.data_ptr(),
        table.data_ptr(),
        rows,
        x.stride(0),
        heads,
        head_width,
        half,
    )

    _assert_close(x, expected.view(rows, -1))
    assert torch.equal(fused[:, heads * head_width :], beside)


def test_kernels_are_built_once_and_then_found(tmp_path: Path) -> None:
    first = native_library.build(tmp_path).library
    built_at = first.stat().st_mtime_ns
    assert native_library.build(tmp_path).library == first
    assert first.stat().st_mtime_ns == built_at


def test_without_a_compiler_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match="install gcc"):
        native_library.build(tmp_path / "cache")


def test_a_compiler_that_fails_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken-cc"
    compiler.write_text("#!/bin/sh\necho 'unknown machine' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(KernelsUnavailable, match=r"broken-cc failed: unknown machine"):
        native_library.build(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


def _function(
    library: ctypes.CDLL, name: str, dtype: torch.dtype, types: str
) -> "ctypes._NamedFuncPointer":
    function = library[f"{name}_{str(dtype).removeprefix('torch.')}"]
    function.argtypes, function.restype = [_TYPES[each] for each in types], None
    return function


def _assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = (actual.double() - expected).abs().max()
    assert error <= ROUNDING[actual.dtype] * expected.abs().max().clamp_min(1)
