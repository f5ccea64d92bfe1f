"""Fixtures around `small_server`: a whole server, its parts, and where it keeps its things."""

import ctypes
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import pytest_asyncio

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.home import Home
from loragate.server.config import Section
from loragate.server.engine.cpu import isa, native_library
from support.engines.echo_engine import EchoEngine
from support.models.one_layer import write_base
from support.server.processes import forks_of
from support.server.small_server import Furnished, Served, ServeWith, furnish, serve, small_config


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return write_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", params=[isa.name for isa in isa.usable()])
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """The compiled kernels, once for each kind of instructions that this processor has."""
    built = native_library.build(tmp_path_factory.mktemp("kernels"), request.param)
    assert built.isa.name == request.param
    return native_library.load(built.library)


@pytest.fixture(scope="session")
def forks() -> ForkServerContext:
    # With what the first life of a server imports only then.
    return forks_of(
        "loragate.server.app.build",
        "transformers.conversion_mapping",
        "uvicorn.lifespan.off",
        "uvicorn.protocols.http.auto",
        "uvicorn.protocols.websockets.auto",
        "httpx",
        "pydantic.v1",
    )


@pytest.fixture
def home(tmp_path: Path, empty_registry: Path) -> Home:
    home = Home(tmp_path / "home").ensure()
    shutil.copy(empty_registry, home.root)
    return home


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Furnished:
    return furnish(tmp_path_factory.mktemp("furnished") / "home")


@pytest.fixture
def serve_with(
    furnished: Furnished, tmp_path: Path, base: BaseModel, engine: EchoEngine
) -> ServeWith:
    """Builds a server with sections of the configuration that the test chooses."""

    def serve_it(**sections: Section) -> AbstractAsyncContextManager[Served]:
        return serve(furnished, tmp_path / "served", base, engine, small_config(**sections))

    return serve_it


@pytest_asyncio.fixture
async def served(serve_with: ServeWith) -> AsyncIterator[Served]:
    async with serve_with() as served:
        yield served
