"""What the load tests' own tests stand on.

Locust runs in processes of its own: it changes Python's standard library where it is imported.
"""

from pathlib import Path

import pytest

from loadtests.records import Run
from support.load_tests.smoke_runs import load, read_finished, run_to_end
from support.models.one_layer import write_adapter, write_base


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("tiny-model")).path


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("tiny-adapter") / "adapter")


@pytest.fixture(scope="session")
def steady_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steady")


@pytest.fixture(scope="session")
def steady(tiny_model: Path, tiny_adapter: Path, steady_folder: Path) -> Run:
    """A whole run, with its calibration before it and its report in `steady_folder` after it."""
    traffic = ("--rate", "8", "--duration", "5")
    command = load(tiny_model, tiny_adapter, steady_folder, "steady", *traffic)
    return read_finished(steady_folder, run_to_end(command))
