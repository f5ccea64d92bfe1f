"""An adapter's weights in another dtype are those that PyTorch would have made of them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from loragate.server.lora_cast import cast, is_cast

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PIECE = 1 << 14


@pytest.mark.parametrize("wanted", DTYPES)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([1, 7, 64, PIECE // 8 + 1])), min_size=1
    ),
    given_dtypes=st.lists(st.sampled_from(DTYPES), min_size=1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_every_tensor_is_as_torch_rounds_it(
    tmp_path_factory: pytest.TempPathFactory,
    wanted: torch.dtype,
    shapes: list[tuple[int, int]],
    given_dtypes: list[torch.dtype],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("cast")
    random = torch.Generator().manual_seed(seed)
    tensors = {
        f"t{number}": torch.randn(shape, generator=random).to(
            given_dtypes[number % len(given_dtypes)]
        )
        for number, shape in enumerate(shapes)
    }
    save_file(tensors, folder / "given")

    cast(folder / "given", folder / "made", wanted, lambda: None)

    made = load_file(folder / "made")
    assert made.keys() == tensors.keys()
    assert all(torch.equal(made[name], tensors[name].to(wanted)) for name in tensors)
    assert is_cast(folder / "made", wanted)


def test_file_of_several_dtypes_is_not_cast(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "mixed")
    assert not is_cast(tmp_path / "mixed", torch.bfloat16)


def test_file_that_shrinks_meanwhile_is_told_from_one_that_ends(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4 * PIECE)}, tmp_path / "given")

    def truncate() -> None:
        with (tmp_path / "given").open("r+b") as file:
            file.truncate(1000)

    with pytest.raises(OSError, match="shorter"):
        cast(tmp_path / "given", tmp_path / "made", torch.bfloat16, truncate)
