"""`loragate` run in this process, as from a shell."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from loragate.adapters.home import Home
from loragate.server.cli.main import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


Loragate = Callable[..., Result]


def move_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Commands now run in the folder, with a home in it, and no setting of this machine's."""
    for variable in ("LORAGATE_URL", "LORAGATE_ADMIN_KEY", "LORAGATE_API_KEY", "LORAGATE_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LORAGATE_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    return Home(folder / "home")


def give_registry(home: Home, empty_registry: Path) -> None:
    shutil.copy(empty_registry, home.ensure().root)


def running(capsys: pytest.CaptureFixture[str]) -> Loragate:
    def run(command: str, *more: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(command), *more])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, captured.out, captured.err)

    return run
