"""Small real adapters, and a registry on them."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from loragate.adapters.registry import Registry
from loragate.adapters.store import ArtifactStore

WriteAdapter = Callable[..., Path]


@pytest.fixture
def write_adapter(tmp_path: Path) -> WriteAdapter:
    """Writes a LoRA adapter for one 4x4 layer; another seed makes other weights."""

    def write(name: str = "adapter", *, seed: int = 0, rank: int = 2, **config: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(seed)
        layer = "base_model.model.model.layers.0.self_attn.q_proj"
        save_file(
            {
                f"{layer}.lora_A.weight": random.normal(size=(rank, 4)).astype(np.float32),
                f"{layer}.lora_B.weight": random.normal(size=(4, rank)).astype(np.float32),
            },
            folder / "adapter_model.safetensors",
        )
        peft = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(peft | config))
        return folder

    return write


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture
def registry(database_url: str, store: ArtifactStore, empty_registry: Path) -> Iterator[Registry]:
    shutil.copy(empty_registry, database_url.removeprefix("sqlite:///"))
    with Registry(database_url, store) as opened:
        yield opened
