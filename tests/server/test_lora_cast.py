"""An adapter's weights in the engine's dtype are those that PyTorch would have made of them."""

import ctypes
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loragate.adapters.format.safetensors_header import Tensor
from loragate.server.engine.cpu import native_library
from loragate.server.engine.vllm.lora_cast import TRANSPOSED, LoraCast

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 1 << 17


@pytest.fixture(scope="module", params=["compiled", "torch"])
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL | None:
    if request.param == "torch":
        return None
    return native_library.load(native_library.build(tmp_path_factory.mktemp("kernels")).library)


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("transposes_b", [False, True])
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 140), st.sampled_from([1, 7, 64, WIDEST // 64])), min_size=1
    ),
    given_dtypes=st.lists(st.sampled_from(DTYPES), min_size=1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None)
def test_every_tensor_is_as_torch_rounds_it(
    library: ctypes.CDLL | None,
    tmp_path_factory: pytest.TempPathFactory,
    wanted: torch.dtype,
    transposes_b: bool,
    shapes: list[tuple[int, int]],
    given_dtypes: list[torch.dtype],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("cast")
    random = torch.Generator().manual_seed(seed)
    tensors = {
        f"m{number}.lora_{'AB'[number % 2]}.weight": torch.randn(shape, generator=random).to(
            given_dtypes[number % len(given_dtypes)]
        )
        for number, shape in enumerate(shapes)
    }
    save_file(tensors, folder / "given")
    cast = LoraCast(wanted, transposes_b=transposes_b, library=library)

    cast.write(folder / "given", folder / "made")

    made = load_file(folder / "made")
    assert len(made) == len(tensors)
    for name, tensor in tensors.items():
        if transposes_b and ".lora_B." in name:
            assert torch.equal(made[name + TRANSPOSED].T, tensor.to(wanted))
        else:
            assert torch.equal(made[name], tensor.to(wanted))


def test_numbers_that_are_none_stay_so(library: ctypes.CDLL | None, tmp_path: Path) -> None:
    odd = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-45, -0.0]])
    save_file({"a": odd}, tmp_path / "given")

    LoraCast(torch.bfloat16, transposes_b=True, library=library).write(
        tmp_path / "given", tmp_path / "made"
    )

    made = load_file(tmp_path / "made")["a"]
    assert torch.equal(made.isnan(), odd.isnan())
    assert torch.equal(made.nan_to_num(7), odd.bfloat16().nan_to_num(7))


def test_file_is_cast_unless_it_is_as_the_engine_reads_it(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "mixed")
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "plain")

    assert LoraCast(torch.bfloat16, transposes_b=False).needs_no_conversion(tmp_path / "plain")
    assert not LoraCast(torch.bfloat16, transposes_b=True).needs_no_conversion(tmp_path / "plain")
    assert not LoraCast(torch.bfloat16, transposes_b=False).needs_no_conversion(tmp_path / "mixed")


def test_full_disk_is_told(library: ctypes.CDLL | None, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1 << 12)}, tmp_path / "given")
    cast = LoraCast(torch.bfloat16, transposes_b=True, library=library)

    with files_of_at_most(5000), pytest.raises(OSError, match="File too large"):
        cast.write(tmp_path / "given", tmp_path / "made")


def test_file_that_shrinks_meanwhile_is_told(library: ctypes.CDLL | None, tmp_path: Path) -> None:
    given = tmp_path / "given"
    save_file({"a": torch.ones(1 << 12)}, given)

    class Shrinking(LoraCast):
        def _moves(self, tensors: Mapping[str, Tensor]) -> list[Any]:
            with given.open("r+b") as file:  # its header has been read by now
                file.truncate(1000)
            return super()._moves(tensors)

    with pytest.raises(OSError, match="Input/output"):
        Shrinking(torch.bfloat16, transposes_b=True, library=library).write(
            given, tmp_path / "made"
        )
