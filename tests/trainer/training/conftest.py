from pathlib import Path

import pytest

from loragate.adapters.home import Home
from support.training.tiny_runs import TinyRuns, make_home


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    return make_home(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def runs(tmp_path: Path, tiny_home: tuple[Home, Path]) -> TinyRuns:
    return TinyRuns(tmp_path, *tiny_home)
