"""The grammar of names: tenants, adapters, aliases and versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from loragate.adapters.errors import BaseModelName, InvalidName

CHAMPION: Final = "champion"

# A tenant cannot take this name: clients ask for the base model with it.
RESERVED_ADAPTER_NAMES: Final = frozenset({"base"})

_RULE: Final = "use 1 to 63 lower-case letters, digits and hyphens, not starting with a hyphen"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_VERSION: Final = re.compile(r"v([1-9][0-9]{0,8})")
_VERSION_LIKE: Final = re.compile(r"v[0-9]+")


def parse_tenant(text: str) -> str:
    """The text itself if it is a tenant id. Raises InvalidName."""
    return _matching("tenant", text)


def parse_alias(text: str) -> str:
    """The text itself if it is an alias; ``v3`` is not, it names a version. Raises InvalidName."""
    if _VERSION_LIKE.fullmatch(text):
        raise InvalidName("alias", text, "a v with a number names a version; choose another word")
    return _matching("alias", text)


def parse_version(text: str) -> int:
    """The number of a version written as ``v3``. Raises InvalidName."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise InvalidName("version", text, "write a v and the version's number, as in v3")
    return int(match[1])


def looks_like_version(text: str) -> bool:
    """Whether the text can only be meant as a version (it can never be an alias)."""
    return _VERSION_LIKE.fullmatch(text) is not None


def _matching(kind: str, text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise InvalidName(kind, text, _RULE)
    return text


@dataclass(frozen=True, slots=True, order=True)
class AdapterName:
    """A tenant's adapter, ``acme/support``. Raises InvalidName rather than hold a bad name."""

    tenant: str
    name: str

    def __post_init__(self) -> None:
        parse_tenant(self.tenant)
        _matching("adapter", self.name)
        if self.name in RESERVED_ADAPTER_NAMES:
            rule = "this name is reserved for the base model; choose another"
            raise BaseModelName("adapter", self.name, rule)

    @classmethod
    def parse(cls, text: str) -> AdapterName:
        """From ``acme/support``. Raises InvalidName."""
        tenant, slash, name = text.partition("/")
        if not slash:
            raise InvalidName("adapter", text, "write the tenant and the name, as in acme/support")
        return cls(tenant, name)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable version.

    ``lora_id`` is the engine's integer for it. Neither it nor the number is ever given twice.
    """

    tenant: str
    name: str
    number: int
    digest: str
    lora_id: int

    @property
    def version(self) -> str:
        return f"v{self.number}"

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}@v{self.number}"
