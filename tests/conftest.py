"""What the tests of several packages stand on."""

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loragate.adapters.registry.database import Database


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from all that collecting has imported, torch and others.

    It stays to the end, and looking through it takes a third of a second, which trainers do after
    each run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _support_in_processes() -> Iterator[None]:
    """Programs that tests start import `support` too, be it by `python -m`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy: migrating one for each test takes most of a test's time."""
    path = tmp_path_factory.mktemp("empty") / "registry.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def postgresql_databases() -> Iterator[Callable[[], str]]:
    """Makes URLs of migrated databases, each its own, on a PostgreSQL that this session starts."""
    # Its driver is an extra that not everybody installs.
    postgresql = pytest.importorskip("support.registry.postgresql", exc_type=ImportError)
    programs = postgresql.binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgresql.running(programs) as url:
        postgresql.execute(url.format("postgres"), "CREATE DATABASE empty")
        Database(url.format("empty")).close()
        numbers = itertools.count()

        def make() -> str:
            name = f"registry_{next(numbers)}"
            postgresql.execute(url.format("postgres"), f"CREATE DATABASE {name} TEMPLATE empty")
            return url.format(name)

        yield make


@pytest.fixture
def postgresql_url(postgresql_databases: Callable[[], str]) -> str:
    """Of a migrated database of the test's own."""
    return postgresql_databases()
