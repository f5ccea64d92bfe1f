"""Adapters made for load."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from loadtests.lora_folders import RANK, write_random_adapter

EXAMPLE = Path(__file__).parents[2] / "examples" / "adapters" / "acme-support"


def test_made_adapter_has_the_layers_of_the_given_one_at_rank_16(
    tmp_path: Path, tiny_adapter: Path
) -> None:
    made = write_random_adapter(tmp_path / "made", tiny_adapter, seed=1)
    given = load_file(tiny_adapter / "adapter_model.safetensors")
    tensors = load_file(made / "adapter_model.safetensors")
    assert tensors.keys() == given.keys()
    assert {tensor.shape for tensor in tensors.values()} == {(RANK, 4), (4, RANK)}
    assert json.loads((made / "adapter_config.json").read_text())["r"] == RANK


def test_seeds_make_different_weights_and_one_seed_the_same(
    tmp_path: Path, tiny_adapter: Path
) -> None:
    first, again, other = (
        load_file(
            write_random_adapter(tmp_path / name, tiny_adapter, seed) / "adapter_model.safetensors"
        )
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    for name in first:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


@pytest.mark.skipif(not EXAMPLE.is_dir(), reason="the example adapters are not there")
def test_weights_of_a_type_that_numpy_does_not_know_can_be_the_pattern(tmp_path: Path) -> None:
    made = write_random_adapter(tmp_path / "made", EXAMPLE, seed=0)
    tensors = load_file(made / "adapter_model.safetensors")
    assert all(
        tensor.dtype == np.float16 and np.isfinite(tensor).all() for tensor in tensors.values()
    )
