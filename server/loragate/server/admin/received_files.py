"""An adapter's files on their way in: a folder of their own until they are published."""

import tempfile
from pathlib import Path
from typing import BinaryIO

from loragate.adapters.errors import InvalidAdapter, StoreError
from loragate.adapters.format.files import CONFIG, MANIFEST, TRAINED_ROWS, WEIGHTS
from loragate.adapters.temporary_folders import TemporaryFolder

NEEDED = (CONFIG, WEIGHTS)
WELCOME = (*NEEDED, MANIFEST, "README.md", TRAINED_ROWS)


class ReceivedFiles:
    """Keeps a temporary folder, from the first file until `remove`. All methods block.

    Raises StoreError where the folder cannot be written.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes
        self._limit_bytes = limit_bytes
        self._name = ""
        self._file: BinaryIO | None = None
        self._folder: TemporaryFolder | None = None

    def add(self, name: str, piece: bytes) -> None:
        """Appends to the file, which begins with its first piece. Raises InvalidAdapter."""
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            raise InvalidAdapter(
                "adapter_too_large",
                f"the adapter's files are larger than {self._limit_bytes} bytes together; send a "
                "smaller adapter or raise server.max_adapter_bytes",
            )
        try:
            if self._file is None or name != self._name:
                self._file = self._begin(name)
            self._file.write(piece)
        except OSError as error:
            raise _unwritable(error) from error

    def close(self) -> Path:
        """The folder, once all files are in it. Raises InvalidAdapter where one is missing."""
        try:
            self._close_file()
            folder = self._made_folder()
        except OSError as error:
            raise _unwritable(error) from error
        # Asked here and not of the folder's check, whose sentence would name the temporary folder.
        if missing := [name for name in NEEDED if not (folder / name).is_file()]:
            raise InvalidAdapter(
                "missing_file", f"{' and '.join(missing)} did not come; send {' and '.join(NEEDED)}"
            )
        return folder

    def remove(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._folder is not None:
            self._folder.remove()

    def _begin(self, name: str) -> BinaryIO:
        if name not in WELCOME:
            raise InvalidAdapter(
                "unexpected_file",
                f"the file {name!r} is no part of an adapter; send {', '.join(WELCOME)} only",
            )
        self._close_file()
        try:
            file = (self._made_folder() / name).open("xb")
        except FileExistsError:
            raise InvalidAdapter(
                "duplicate_file", f"the file {name} came twice; send each file once, whole"
            ) from None
        self._name = name
        return file

    def _made_folder(self) -> Path:
        if self._folder is None:
            self._folder = TemporaryFolder("incoming")
        return self._folder.path

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _unwritable(error: OSError) -> StoreError:
    return StoreError(
        f"the adapter's files could not be received ({error.strerror}); free space in "
        f"{tempfile.gettempdir()} or set TMPDIR to a larger disk, then publish again"
    )
