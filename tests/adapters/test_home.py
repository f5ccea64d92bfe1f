import stat
from pathlib import Path

import pytest

from loragate.adapters.errors import StoreError
from loragate.adapters.home import Home
from support.concurrent_processes import run_together

PRINT_KEY = """
import sys
from pathlib import Path
from loragate.adapters.home import Home
print("ready", flush=True)
sys.stdin.readline()
print(Home(Path(sys.argv[1])).admin_key({}))
"""


def test_environment_names_the_home(tmp_path: Path):
    assert Home.from_environment({"LORAGATE_HOME": str(tmp_path)}).root == tmp_path
    assert Home.from_environment({}).root == Path.home() / ".loragate"


def test_folders_are_for_their_owner_only(tmp_path: Path):
    home = Home(tmp_path / "a" / "home").ensure()

    for folder in (home.root, home.artifacts, home.models):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_home_that_cannot_be_made_is_a_store_error(tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(StoreError, match="LORAGATE_HOME"):
        Home(tmp_path / "file" / "home").ensure()


def test_admin_key_is_made_once_and_kept_private(tmp_path: Path):
    home = Home(tmp_path / "home")

    key = home.admin_key({})

    assert len(key) > 43
    assert home.admin_key({}) == key
    assert stat.S_IMODE(home.admin_key_file.stat().st_mode) == 0o600
    assert [file.name for file in home.root.iterdir() if file.is_file()] == ["admin.key"]


def test_admin_key_of_the_environment_comes_first_and_is_not_written(tmp_path: Path):
    home = Home(tmp_path / "home")

    assert home.admin_key({"LORAGATE_ADMIN_KEY": "given"}) == "given"
    assert not home.root.exists()


def test_empty_key_file_is_refused(tmp_path: Path):
    home = Home(tmp_path).ensure()
    home.admin_key_file.touch()

    with pytest.raises(StoreError, match="empty"):
        home.admin_key({})


def test_key_file_that_is_no_text_is_refused(tmp_path: Path):
    home = Home(tmp_path).ensure()
    home.admin_key_file.write_bytes(b"\xff\xfe")

    with pytest.raises(StoreError, match="holds no key; remove it and a new one is made"):
        home.admin_key({})


def test_home_of_nobody_is_refused():
    with pytest.raises(StoreError, match="set LORAGATE_HOME to a path"):
        Home.from_environment({"LORAGATE_HOME": "~nobody-of-this-name/loragate"})


def test_lock_that_cannot_be_written_is_refused(tmp_path: Path):
    home = Home(tmp_path).ensure()
    (tmp_path / "server.lock").mkdir()

    with pytest.raises(StoreError, match=r"server\.lock cannot be written"), home.serving_alone():
        pytest.fail("nobody has the lock")


def test_processes_that_start_at_once_agree_on_the_key(tmp_path: Path):
    keys = run_together(PRINT_KEY, *[[str(tmp_path / "home")]] * 4)

    assert len(set(keys)) == 1
