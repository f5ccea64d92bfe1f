"""A tiny base model with an adapter."""

from pathlib import Path

import pytest

from loragate.adapters.base_models.preparation import BaseModel
from support.models.tiny_llama import write_base
from support.training.finished_runs import write_adapter


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return write_base(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("model") / "adapter")
