"""The command line where the machine will not do its part: one sentence, and never a traceback."""

import os
import resource
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from loragate.adapters.home import Home
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from support.server.command_line import Loragate, Result, give_registry, move_to, running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: Path) -> Home:
    home = move_to(tmp_path, monkeypatch)
    give_registry(home, empty_registry)
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        registry.tenants.create("acme")
    return home


@pytest.fixture
def loragate(home: Home, capsys: pytest.CaptureFixture[str]) -> Loragate:
    return running(capsys)


def assert_one_sentence(result: Result, part: str) -> None:
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("loragate: ")
    assert part in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("a file", "cannot be made (File exists); set LORAGATE_HOME to a folder"),
        ("a file/below", "cannot be made (Not a directory); set LORAGATE_HOME to a folder"),
        ("~nobody-of-this-name/home", "since its user has no home; set LORAGATE_HOME to a path"),
    ],
)
def test_home_that_cannot_be(
    loragate: Loragate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, sentence: str
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("LORAGATE_HOME", place if place[0] == "~" else str(tmp_path / place))

    assert_one_sentence(loragate("tenant list"), sentence)


def test_damaged_database(loragate: Loragate, home: Home) -> None:
    file = home.root / "registry.db"
    with closing(sqlite3.connect(file)) as connection:
        [[page]] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tenants'")
        [[size]] = connection.execute("PRAGMA page_size")
    with file.open("r+b") as database:
        database.seek((page - 1) * size)
        database.write(b"\xa5" * size)

    for command in ("tenant list", "tenant create globex", "adapter show acme/support"):
        assert_one_sentence(loragate(command), "malformed; restore it from a backup")


def test_database_that_is_a_folder(loragate: Loragate, home: Home) -> None:
    (home.root / "registry.db").unlink()
    (home.root / "registry.db").mkdir()

    assert_one_sentence(loragate("tenant list"), "unable to open database file; check that it can")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow, which it hears of as of a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_changes_nothing(loragate: Loragate, home: Home) -> None:
    with full_disk():
        result = loragate("tenant create globex")

    assert_one_sentence(result, "that its disk has room")

    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        assert [record.tenant for record in registry.tenants.list()] == ["acme"]


def test_user_without_a_name_is_audited_by_number(
    loragate: Loragate, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # of whom /etc/passwd knows nothing

    assert loragate("tenant create globex").code == 0

    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        assert registry.audit.list("globex")[0].actor == "cli:uid 4000000"


@pytest.mark.parametrize("key", ["lg-abc-ключ", "lg-abc\n"])
@pytest.mark.parametrize("command", ["tenant list", "chat acme/support -m hi"])
def test_key_that_no_request_can_carry(loragate: Loragate, command: str, key: str) -> None:
    result = loragate(command, "--url", "http://127.0.0.1:9", "--key", key)

    assert_one_sentence(result, "it has characters that a key never has")


@pytest.mark.parametrize(
    ("command", "argument", "sentence"),
    [
        ("tenant create globex --max-concurrent", "99999999999999999999", "less than or equal"),
        ("tenant limit acme --tokens-per-minute", "2147483648", "less than or equal"),
        ("key create acme --name", "x" * 101, "it has 101 characters; 100 are allowed"),
        ("adapter promote acme/support v1 --reason", "x" * 1001, "1000 are allowed"),
        ("adapter promote acme/support v1 --reason", "\udcff", "no UTF-8 text"),
    ],
)
def test_argument_that_the_registry_cannot_keep(
    loragate: Loragate, command: str, argument: str, sentence: str
) -> None:
    result = loragate(command, argument)

    assert result.code == 2
    assert sentence in " ".join(result.err.split())


def test_mistake_in_the_settings_is_told_before_anything_is_loaded(
    loragate: Loragate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for heavy in ("loragate.server.app.build", "loragate.server.engine.vllm.forkserver"):
        monkeypatch.setitem(sys.modules, heavy, None)  # importing it fails

    assert_one_sentence(loragate("serve --http nonsense"), "it has to be HOST:PORT")
    assert_one_sentence(loragate("doctor --config nowhere.toml"), "no configuration file")


def test_doctor_says_of_a_wrong_database_url_what_every_command_says(
    loragate: Loragate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAGATE_REGISTRY_URL", "nonsense")

    [told] = [line for line in loragate("doctor").out.splitlines() if "database" in line]

    assert told.startswith("fail")
    assert "write it as in sqlite:////srv" in told
