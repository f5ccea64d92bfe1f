"""Small real adapters, and a registry on them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.models import one_layer
from support.models.one_layer import WriteAdapter


@pytest.fixture
def write_adapter(tmp_path: Path) -> WriteAdapter:
    """Writes a LoRA adapter for one 4x4 layer; another seed makes other weights."""

    def write(name: str = "adapter", **wanted: Any) -> Path:
        return one_layer.write_adapter(tmp_path / name, **wanted)

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
