"""Fixtures around `small_server`: a whole server, its parts, and where it keeps its things."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from fakes import EchoEngine
from small_server import Served, serve, write_base_model

from loragate.adapters.base_model import BaseModel
from loragate.adapters.home import Home


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return write_base_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest_asyncio.fixture
async def served(home: Home, base: BaseModel, engine: EchoEngine) -> AsyncIterator[Served]:
    async with serve(home, base, engine) as served:
        yield served
