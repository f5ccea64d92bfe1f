"""The folder that holds what loragate keeps on a machine."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from loragate.adapters.errors import StoreError


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under one root. Nothing exists before `ensure`."""

    root: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """``LORAGATE_HOME``, by default ``~/.loragate``. Raises StoreError."""
        named = environment.get("LORAGATE_HOME") or "~/.loragate"
        try:
            return cls(Path(named).expanduser().absolute())
        except RuntimeError as error:
            raise StoreError(
                f"{named} means no folder, since its user has no home; set LORAGATE_HOME to a path"
            ) from error

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.root / 'registry.db'}"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def cache(self) -> Path:
        """What can be made again: it may be deleted at any time that no server runs."""
        return self.root / "cache"

    @property
    def admin_key_file(self) -> Path:
        return self.root / "admin.key"

    @property
    def hot_list(self) -> Path:
        """Where a server notes which versions are in use."""
        return self.root / "hot.json"

    def ensure(self) -> Self:
        """Make the folders, for this user's eyes only. Raises StoreError."""
        try:
            for folder in (self.root, self.artifacts, self.models):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{error.filename} cannot be made ({error.strerror}); set LORAGATE_HOME to a "
                "folder that this user may write"
            ) from error
        return self

    @contextmanager
    def serving_alone(self) -> Iterator[None]:
        """A lock of the one server of this folder, which records in the registry what it loads.

        The system releases it however the process ends. Raises StoreError if there is a server.
        """
        with self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"another server runs on {self.root}; stop it first, or set LORAGATE_HOME to a "
                    "folder of its own"
                ) from None
            yield

    def _lock_file(self) -> TextIO:
        try:
            return (self.root / "server.lock").open("w")
        except OSError as error:
            raise StoreError(
                f"{error.filename} cannot be written ({error.strerror}); a server needs a "
                "LORAGATE_HOME that its user may write"
            ) from error

    def admin_key(self, environment: Mapping[str, str] = os.environ) -> str:
        """``LORAGATE_ADMIN_KEY`` or what the key file holds; the file is made on first use.

        Whoever makes it first, all processes get the same key. Raises StoreError.
        """
        given = environment.get("LORAGATE_ADMIN_KEY", "").strip()
        if given:
            return given
        self.ensure()
        try:
            if not self.admin_key_file.exists():
                self._make_admin_key()
            key = self.admin_key_file.read_text().strip()
        except UnicodeDecodeError as error:
            raise StoreError(
                f"{self.admin_key_file} holds no key; remove it and a new one is made"
            ) from error
        except OSError as error:
            raise StoreError(
                f"the admin key cannot be kept in {self.admin_key_file} ({error.strerror}); make "
                "the file readable for this user or set LORAGATE_ADMIN_KEY"
            ) from error
        if not key:
            raise StoreError(f"{self.admin_key_file} is empty; remove it and a new key is made")
        return key

    def _make_admin_key(self) -> None:
        # Written whole beside its place and then linked there, which fails if another process was
        # first: nobody ever reads a half-written key.
        draft = self.root / f".admin.key-{secrets.token_hex(8)}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(f"lg-admin-{secrets.token_urlsafe(32)}\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, self.admin_key_file)
            except FileExistsError:
                return
        finally:
            draft.unlink()
