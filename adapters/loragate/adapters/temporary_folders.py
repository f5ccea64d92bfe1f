"""Temporary folders that a process which is killed leaves behind only until the next sweep."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "loragate-held-"
# Between making a folder and locking it no other process can tell that its owner lives.
_YOUNG_SECONDS: Final = 60.0


class TemporaryFolder:
    """A new folder, until `remove`. Its lock, which the kernel drops with the process, tells
    `sweep_temporary_folders` that its owner lives. Raises OSError where it cannot be made.
    """

    def __init__(self, purpose: str, parent: Path | None = None) -> None:
        """``parent`` is by default where the system has its temporary files, such as ``/tmp``."""
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=parent))
        self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def remove(self) -> None:
        """A second time changes nothing."""
        if self._handle >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._handle)
            self._handle = -1


@contextmanager
def temporary_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """A `TemporaryFolder` for the block. Raises OSError where it cannot be made."""
    folder = TemporaryFolder(purpose, parent)
    try:
        yield folder.path
    finally:
        folder.remove()


def sweep_temporary_folders(
    parent: Path | None = None, *, older_than_seconds: float = _YOUNG_SECONDS
) -> int:
    """Remove those of this user whose processes are dead; the number of folders removed. A folder
    that cannot be looked at is left.
    """
    where = Path(tempfile.gettempdir()) if parent is None else parent
    removed = 0
    for folder in where.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if _is_abandoned(folder, older_than_seconds):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def _is_abandoned(folder: Path, older_than_seconds: float) -> bool:
    # Not through a link, which anybody may make in /tmp, and not what belongs to somebody else.
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or time.time() - status.st_mtime < older_than_seconds:
            return False
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
