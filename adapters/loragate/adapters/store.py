"""Artifacts on disk, each in a folder named by the digest of what it holds.

A folder appears whole, by one rename, or not at all. The store knows nothing of tenants or
versions. Whoever puts an artifact records it elsewhere and then says so with `settle`; what stays
unsettled for long was put by somebody who died in between, and `remove_orphan` takes it.

Beside an artifact's folder lies another, ``<digest>.ready``, with what was made of it for engines,
a file for each form; it goes with the artifact, and may be deleted at any time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from loragate.adapters.errors import StoreError
from loragate.adapters.format.files import AdapterFiles, SourceFile
from loragate.adapters.format.merged_files import MergedFiles
from loragate.adapters.format.ready_file import (
    LAYOUT,
    ReadyAdapter,
    ReadyFileDamaged,
    ReadyForm,
    read_ready,
    write_ready,
)

logger = logging.getLogger(__name__)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_INCOMING: Final = ".incoming-"
_READY: Final = ".ready"
_READY_FORM: Final = "ready-form"  # the name of the file that says for which form to get ready
_CHUNK_BYTES: Final = 1 << 20
# The mark of an unsettled artifact: a bit of its folder's mode, so that it comes with the rename
# that makes the folder appear and goes with the folder. Between owner and kernel it means nothing
# more, since nobody else may write into the folder anyway.
_UNSETTLED: Final = stat.S_ISVTX
_FOLDER_MODE: Final = 0o700
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ArtifactStore:
    """Content-addressed folders under one root. Safe to use from several threads and processes at
    once.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, digest: str) -> Path:
        """The folder of an artifact. Raises StoreError if the store does not have it."""
        folder = self._folder(digest)
        if not _is_folder(folder):
            raise StoreError(
                f"the artifact {digest} is missing from {self._root}; publish its folder again or "
                "restore the store from a backup"
            )
        return folder

    def has(self, digest: str) -> bool:
        """Raises StoreError if that cannot be seen."""
        return _is_folder(self._folder(digest))

    def put(self, files: AdapterFiles | MergedFiles) -> str:
        """Copy the files in and return their digest; what is there already is checked and kept.

        The artifact is unsettled and as good as new from here on, even where it was there already,
        so that no collection takes it for an orphan before its time has passed again. Raises
        StoreError when the disk is full or unwritable; then nothing is left behind.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.sweep()
            with self._incoming() as incoming:
                digest = _digest(_copied(file, incoming) for file in files.files)
                _sync_folder(incoming)
                self._move_in(incoming, digest)
        except OSError as error:
            raise _store_error(error, self._root) from error
        return digest

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the store's disk, gone at the end; what a killed process leaves in
        one, `sweep` removes. Raises StoreError when it cannot be made.
        """
        with ExitStack() as stack:
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.sweep()
                folder = stack.enter_context(self._incoming())
            except OSError as error:
                raise _store_error(error, self._root) from error
            yield folder

    def verify(self, digest: str) -> None:
        """Hash the artifact again. Raises StoreError if it is not what its name says."""
        folder = self.path(digest)
        try:
            actual = _digest(_hashed(path) for path in folder.iterdir())
        except OSError as error:
            raise StoreError(f"the artifact {digest} cannot be read: {error}") from error
        if actual != digest:
            raise StoreError(
                f"the artifact {digest} is damaged (its content hashes to {actual}); remove "
                f"{folder} and publish its folder again, or restore it from a backup"
            )

    def ready(self, digest: str, form: ReadyForm) -> tuple[Path, ReadyAdapter] | None:
        """The artifact as an engine of this form reads it: a file, whose checksum is right, and
        what it says. It is made where it is absent or damaged, of the artifact, which is verified
        then. None where it cannot be kept here, which is logged; the artifact is sound then.

        Raises StoreError where the artifact is missing or damaged, or cannot be read, and
        InvalidAdapter where it is no adapter.
        """
        path = self._ready_path(digest, form)
        try:
            return path, read_ready(path)
        except FileNotFoundError:
            pass
        except (OSError, ReadyFileDamaged) as error:
            logger.warning("%s is damaged and is made again: %s", path, error)
        self.verify(digest)
        if not self._make_ready(digest, form):
            return None
        try:
            return path, read_ready(path)
        except (OSError, ReadyFileDamaged) as error:
            raise StoreError(
                f"{path} does not hold what was written there a moment ago ({error}); check the "
                "disk, or whether somebody removes files there"
            ) from error

    def get_ready(self, digest: str) -> None:
        """Makes now what `ready` would have to make later, for the form that was last said to be
        wanted. For whoever has just put the artifact; where it cannot be kept, that is logged.
        """
        form = self._wanted_form()
        if form is not None and not self._ready_path(digest, form).exists():
            self._make_ready(digest, form)

    def renews(self, digest: str, form: ReadyForm) -> bool:
        """Makes the file of the form anew; whether it was another one, of the same artifact, as no
        sound machine leaves it. Raises StoreError as `ready` does.
        """
        path = self._ready_path(digest, form)
        self.verify(digest)
        try:
            before = path.read_bytes()
        except OSError:
            return False
        return self._make_ready(digest, form) and path.read_bytes() != before

    def want_ready(self, form: ReadyForm) -> None:
        """Whoever publishes from now on gets artifacts ready for engines of this form. Where that
        cannot be kept it is logged.
        """
        if self._wanted_form() == form:
            return
        try:
            with self.scratch() as folder:
                (folder / _READY_FORM).write_text(str(form))
                os.replace(folder / _READY_FORM, self._root / _READY_FORM)
        except (OSError, StoreError) as error:
            logger.warning("adapters are not made ready for the engine at publish: %s", error)

    def settle(self, digest: str) -> None:
        """Somebody's record refers to the artifact from now on: it is no orphan any more."""
        self._set_mode(digest, _FOLDER_MODE)

    def unsettle(self, digest: str) -> None:
        """The record that refers to the artifact is about to go: should its files not go with it,
        they are an orphan.
        """
        self._set_mode(digest, _FOLDER_MODE | _UNSETTLED)

    def unsettled(self) -> list[str]:
        """The digests of the artifacts that nobody has settled yet."""
        return [
            entry.name
            for entry in self._artifacts()
            if (status := _status(entry)) is not None and status.st_mode & _UNSETTLED
        ]

    def digests(self) -> list[str]:
        """Of all artifacts that are here. Raises StoreError."""
        return [entry.name for entry in self._artifacts()]

    def unused_seconds(self, digest: str) -> float:
        """Since it was put for the last time; below 0 where a clock was set back, or it is gone."""
        status = _status(self._folder(digest))
        return -1.0 if status is None else time.time() - status.st_mtime

    def remove(self, digest: str) -> None:
        """The artifact vanishes by one rename, and its files with the next `sweep`; a second time
        changes nothing. Raises StoreError.
        """
        with self._removing(digest):
            self._move_out(digest)

    def remove_orphan(self, digest: str, older_than_seconds: float) -> bool:
        """As `remove`, unless it was put again within these seconds; whether it is gone by this.

        That no record refers to it is the caller's to know, and to keep true meanwhile.
        """
        with self._removing(digest):
            # Looked at under the lock under which `put` makes it as good as new, and in the same
            # breath as it is moved out. So either the put came first: then it is young, and stays.
            # Or this comes first: then the put finds nothing here and brings its own copy in. Asked
            # before the lock, its age could be an old one when the folder is moved away from under
            # a publication that has just been told that it is there.
            if self.unused_seconds(digest) < older_than_seconds:
                return False
            return self._move_out(digest)

    def sweep(self) -> int:
        """Remove what dead processes left half-copied, and the files of removed artifacts; the
        number of folders removed.
        """
        if not self._root.is_dir():
            return 0
        with _locked(self._root, fcntl.LOCK_EX):
            abandoned = [each for each in self._root.glob(f"{_INCOMING}*") if _is_abandoned(each)]
        # Outside the lock, on which every publication waits: what has no owner gets none again.
        for folder in abandoned:
            shutil.rmtree(folder, ignore_errors=True)
        return len(abandoned)

    @contextmanager
    def _removing(self, digest: str) -> Iterator[None]:
        try:
            self._root.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            with _locked(self._root, fcntl.LOCK_EX):
                yield
        except OSError as error:
            raise StoreError(
                f"the artifact {digest} cannot be removed from {self._root} ({error.strerror}); "
                "make the folder writable for this user"
            ) from error

    def _move_out(self, digest: str) -> bool:
        # The artifact last: should this process die in between, the next try finds it.
        with suppress(FileNotFoundError):
            self._ready_folder(digest).rename(self._new_incoming())
        try:
            self._folder(digest).rename(self._new_incoming())
        except FileNotFoundError:
            return False
        _sync_folder(self._root)
        return True

    def _make_ready(self, digest: str, form: ReadyForm) -> bool:
        """Whether it is there now, whole. Raises InvalidAdapter."""
        path = self._ready_path(digest, form)
        try:
            with self._incoming() as incoming:
                made = incoming / form.file_name
                write_ready(self._folder(digest), made, form)
                made.chmod(0o444)
                # Nothing is removed meanwhile, so that no file comes to lie beside no artifact.
                # Not synced: after a power cut the checksum tells, and the artifact is there.
                with _locked(self._root, fcntl.LOCK_SH):
                    if not self._folder(digest).is_dir():
                        return False
                    path.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
                    os.replace(made, path)
            self._forget_older_layouts(path.parent)
        except OSError as error:
            logger.warning(
                "%s cannot be kept (%s), so each load of the adapter makes it again; make room "
                "there, or the folder writable for this user",
                *(path, error.strerror or error),
            )
            return False
        return True

    def _forget_older_layouts(self, folder: Path) -> None:
        for path in folder.iterdir():
            layout = path.name.rpartition(".")[2]
            if layout.isdecimal() and int(layout) < LAYOUT:
                path.unlink(missing_ok=True)

    def _wanted_form(self) -> ReadyForm | None:
        try:
            return ReadyForm.parse((self._root / _READY_FORM).read_text())
        except (OSError, ValueError):  # nobody has said so, or what they said is damaged
            return None

    def _ready_folder(self, digest: str) -> Path:
        folder = self._folder(digest)
        return folder.with_name(f"{folder.name}{_READY}")

    def _ready_path(self, digest: str, form: ReadyForm) -> Path:
        return self._ready_folder(digest) / form.file_name

    def _new_incoming(self) -> Path:
        return self._root / f"{_INCOMING}{os.getpid()}-{secrets.token_hex(8)}"

    def _artifacts(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._root) as entries:
                return [entry for entry in entries if _DIGEST.fullmatch(entry.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self._root} cannot be read: {error}") from error

    def _set_mode(self, digest: str, mode: int) -> None:
        try:
            self._folder(digest).chmod(mode)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(
                f"the artifact {digest} in {self._root} cannot be marked ({error.strerror}); make "
                "the folder this user's own"
            ) from error

    def _folder(self, digest: str) -> Path:
        if _DIGEST.fullmatch(digest) is None:
            raise StoreError(f"{digest!r} is not an artifact's digest; give 64 hexadecimal digits")
        return self._root / digest

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        folder = self._new_incoming()
        # A lock on the folder tells `sweep` that its owner lives: the kernel drops it with the
        # process, and unlike a process id it means the same in every container that shares the
        # store. The lock on the root closes the moment between making the folder and locking it.
        with _locked(self._root, fcntl.LOCK_SH):
            folder.mkdir(mode=0o700)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def _move_in(self, incoming: Path, digest: str) -> None:
        folder = self._folder(digest)
        # Nothing is removed meanwhile: what is found here stays until it is as good as new, and
        # what is not found is not there a moment later either, unless another `put` was faster.
        with _locked(self._root, fcntl.LOCK_SH):
            incoming.chmod(_FOLDER_MODE | _UNSETTLED)
            os.utime(incoming)
            try:
                incoming.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                folder.chmod(_FOLDER_MODE | _UNSETTLED)
                os.utime(folder)
            else:
                _sync_folder(self._root)
                return
        self.verify(digest)


def _status(path: Path | os.DirEntry[str]) -> os.stat_result | None:
    """None where it is gone. Raises StoreError."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # may not be looked at, or the disk is gone
        raise StoreError(f"{path} cannot be read: {error}") from error


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def _is_abandoned(folder: Path) -> bool:
    try:
        with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return True
    except (BlockingIOError, FileNotFoundError):
        return False


Line = tuple[str, int, str]
"""A file's name, size in bytes and SHA-256."""


def _digest(lines: Iterable[Line]) -> str:
    text = "".join(f"{name} {size} {sha256}\n" for name, size, sha256 in sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


def _copied(file: SourceFile, incoming: Path) -> Line:
    target = incoming / file.name
    # O_NOFOLLOW: the file may have been swapped for a link since the folder was inspected.
    source_handle = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(source_handle, "rb") as source, target.open("xb") as copy:
        line = _hash_chunks(file.name, source, copy)
        copy.flush()
        os.fchmod(copy.fileno(), 0o444)
        os.fsync(copy.fileno())
    return line


def _hashed(path: Path) -> Line:
    with path.open("rb") as source:
        return _hash_chunks(path.name, source, None)


def _hash_chunks(name: str, source: BinaryIO, copy: BinaryIO | None) -> Line:
    size, sha256 = 0, hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        size += len(chunk)
        sha256.update(chunk)
        if copy is not None:
            copy.write(chunk)
    return name, size, sha256.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _store_error(error: OSError, root: Path) -> StoreError:
    if error.errno in _FULL:
        return StoreError(
            f"there is no room for the artifact in {root} ({error.strerror}); free space there or "
            "set LORAGATE_HOME to a larger disk, then publish again"
        )
    return StoreError(f"the artifact could not be copied into {root}: {error}")
