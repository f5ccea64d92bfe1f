import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.server.config import ConfigError
from loragate.server.engine.kv_cache import CacheShape, read_shape, require_fit

GIB = 2**30
QWEN3 = {  # Qwen/Qwen3-0.6B
    "model_type": "qwen3",
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 1024,
    "max_position_embeddings": 40960,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
}
LLAMA = {  # HuggingFaceTB/SmolLM2-135M-Instruct
    "model_type": "llama",
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "max_position_embeddings": 8192,
}


def shape_of(folder: Path, dtype: str = "auto", **config: object) -> CacheShape | None:
    (folder / "config.json").write_text(json.dumps(config))
    return read_shape(folder, dtype)


def found(folder: Path, dtype: str = "auto", **config: object) -> CacheShape:
    shape = shape_of(folder, dtype, **config)
    assert shape is not None
    return shape


def test_the_context_of_a_large_model_is_cut_to_what_the_default_cache_holds(
    tmp_path: Path,
) -> None:
    shape = found(tmp_path, **QWEN3)
    assert shape.bytes_for(40960) / GIB == pytest.approx(4.4, abs=0.05)
    # As vLLM 0.32 says of these memories itself.
    assert shape.tokens_in(2 * GIB) == 18560
    assert shape.tokens_in(1 * GIB) == 9216
    assert shape.tokens_in(5 * GIB) == 40960


def test_head_size_is_that_of_the_hidden_size_where_none_is_given(tmp_path: Path) -> None:
    shape = found(tmp_path, **LLAMA)
    assert shape == CacheShape(2 * 30 * 3 * 64 * 2, 8192)
    assert shape.tokens_in(int(0.1 * GIB)) == 4480  # as vLLM 0.32 says


def test_float32_takes_twice_the_memory(tmp_path: Path) -> None:
    half, whole = found(tmp_path, **LLAMA), found(tmp_path, "float32", **LLAMA)
    assert whole.token_bytes == 2 * half.token_bytes


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 16384),
        ({"type": "dynamic", "factor": 4.0}, 32768),
        ({"rope_type": "llama3", "factor": 32.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0}, 8192),
        ({"rope_type": "default", "rope_theta": 1e6}, 8192),
    ],
)
def test_rope_says_how_far_a_context_reaches(
    tmp_path: Path, rope: dict[str, object], longest: int
) -> None:
    assert found(tmp_path, **LLAMA, rope_scaling=rope).longest == longest
    assert found(tmp_path, **LLAMA, rope_parameters=rope).longest == longest


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gemma2", "sliding_window": 4096},
        {"model_type": "gemma3_text", "sliding_window": 512},
        {"model_type": "deepseek_v3", "kv_lora_rank": 512},
        {"model_type": "mamba2"},
        {"model_type": "mistral", "sliding_window": 4096},
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"kv_lora_rank": 512},
        {"model_max_length": 4096},
        {"quantization_config": {"kv_cache_scheme": {"num_bits": 8}}},
        {"num_hidden_layers": None},
        {"num_key_value_heads": 0},
        {"num_attention_heads": "nine"},
        {"max_position_embeddings": 0},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": "many"},
                "factor": [],
            }
        },
    ],
    ids=lambda change: " ".join(map(str, change.items())),
)
def test_a_model_whose_cache_is_another_one_is_left_to_the_engine(
    tmp_path: Path, change: dict[str, object]
) -> None:
    assert shape_of(tmp_path, **{**LLAMA, **change}) is None


def test_a_window_that_is_switched_off_is_none(tmp_path: Path) -> None:
    config = {**QWEN3, "model_type": "qwen2", "sliding_window": 32768}
    assert shape_of(tmp_path, **config) is not None


def test_a_folder_without_a_readable_configuration_is_left_to_the_engine(tmp_path: Path) -> None:
    assert read_shape(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert read_shape(tmp_path) is None


@given(
    token_bytes=st.integers(1, 2**22), longest=st.integers(1, 2**20), cache=st.integers(1, 2**40)
)
def test_what_is_said_to_fit_fits_and_one_block_more_does_not(
    token_bytes: int, longest: int, cache: int
) -> None:
    shape = CacheShape(token_bytes, longest)
    tokens = shape.tokens_in(cache)
    assert 0 <= tokens <= longest
    assert not tokens or shape.bytes_for(tokens) <= cache
    assert tokens == longest or shape.bytes_for(tokens + 1) > cache
    if tokens:
        require_fit(shape, cache / GIB, tokens)


def test_a_context_that_was_set_and_does_not_fit_is_refused_with_both_settings(
    tmp_path: Path,
) -> None:
    shape = found(tmp_path, **QWEN3)
    with pytest.raises(ConfigError) as refused:
        require_fit(shape, 2.0, 40960)
    said = str(refused.value)
    assert "engine.max_model_len is 40960" in said
    assert "raise engine.kv_cache_gib to 4.39 or more" in said
    assert "lower engine.max_model_len to 18560" in said
    require_fit(shape, 4.39, 40960)
    require_fit(shape, 2.0, 18560)
    require_fit(shape, 2.0, 0)


def test_a_cache_in_which_nothing_fits_is_refused_whatever_the_context(tmp_path: Path) -> None:
    shape = found(tmp_path, **QWEN3)
    for length in (0, 1, 128):
        with pytest.raises(ConfigError, match=r"raise engine\.kv_cache_gib to 0\.03 or more"):
            require_fit(shape, 0.01, length)
