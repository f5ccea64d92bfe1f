"""The server under test: where it is, and who asks it for what."""

import os
from pathlib import Path
from typing import Literal

import msgspec

Protocol = Literal["http", "grpc"]
BASE = "base"


class Adapter(msgspec.Struct, frozen=True):
    """An adapter as its tenant names it, and its versions in the order of their numbers."""

    name: str
    versions: tuple[str, ...] = ()


class Tenant(msgspec.Struct, frozen=True):
    name: str
    key: str
    adapters: tuple[Adapter, ...] = ()


class Target(msgspec.Struct, frozen=True):
    """`settings` is what is known of the server's configuration, for the report.

    `merged` names the models that are adapters merged into the base, by `tenant/adapter`.
    """

    http: str
    grpc: str
    tenants: tuple[Tenant, ...]
    flooder: Tenant | None = None
    admin_key: str = ""
    server_pid: int | None = None
    base: str = BASE
    merged: dict[str, str] = {}
    settings: dict[str, str] = {}

    @property
    def everybody(self) -> tuple[Tenant, ...]:
        return self.tenants if self.flooder is None else (*self.tenants, self.flooder)

    def key_of(self, tenant: str) -> str:
        return next(each.key for each in self.everybody if each.name == tenant)

    def save(self, path: Path) -> Path:
        """For this user's eyes only: it holds keys."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(self))
        return path

    @classmethod
    def load(cls, path: Path) -> "Target":
        return msgspec.json.decode(path.read_bytes(), type=cls)
