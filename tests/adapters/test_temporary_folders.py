import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loragate.adapters.temporary_folders import (
    TemporaryFolder,
    sweep_temporary_folders,
    temporary_folder,
)

HOLDS_AND_DIES = """
import os, signal, sys
from pathlib import Path
from loragate.adapters.temporary_folders import temporary_folder
with temporary_folder("upload", Path(sys.argv[1])) as folder:
    (folder / "half").write_text("of an adapter")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folder_of_a_killed_process_is_swept_and_one_in_use_stays(tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", HOLDS_AND_DIES, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()

    with temporary_folder("upload", tmp_path) as mine:
        assert sweep_temporary_folders(tmp_path) == 0  # too young: it may not be locked yet
        assert sweep_temporary_folders(tmp_path, older_than_seconds=0) == 1
        assert list(tmp_path.iterdir()) == [mine]
    assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_links_and_what_has_another_name_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = tmp_path / "loragate-something"
    other.mkdir()
    (tmp_path / "loragate-held-link").symlink_to(other)

    assert sweep_temporary_folders(older_than_seconds=0) == 0
    assert other.is_dir()


def test_folder_can_be_removed_twice(tmp_path: Path):
    folder = TemporaryFolder("twice", tmp_path)
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []
