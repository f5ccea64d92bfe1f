"""What the tests of several packages stand on."""

import gc
from pathlib import Path

import pytest

from loragate.adapters.database import Database


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from all that collecting has imported, torch and others.

    It stays to the end, and looking through it takes a third of a second, which trainers do after
    each run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy: migrating one for each test takes most of a test's time."""
    path = tmp_path_factory.mktemp("empty") / "registry.db"
    Database(f"sqlite:///{path}").close()
    return path
