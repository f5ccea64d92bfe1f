"""The settings that all who work on a registry share: which one it is, and what its server serves.

They stand in `loragate.toml` and in the environment among the server's own, which are not looked at
here: the trainer publishes for a server that it does not know.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from loragate.adapters.errors import ConfigError
from loragate.adapters.home import Home

DEFAULT_FILE: Final = "loragate.toml"
ENGINE_VARIABLES: Final = "LORAGATE_ENGINE_"
FILE_VARIABLE: Final = "LORAGATE_CONFIG"
SpecialTokensInText = Literal["text", "control"]
MaxLoraRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]
DEFAULT_MAX_LORA_RANK: Final = 64
DEFAULT_ORPHANS_AFTER_SECONDS: Final = 86_400.0

_SHARED: Final = {
    "LORAGATE_REGISTRY_URL": ("registry", "url"),
    "LORAGATE_ENGINE_CHAT_TEMPLATE": ("engine", "chat_template"),
    "LORAGATE_ENGINE_SPECIAL_TOKENS_IN_TEXT": ("engine", "special_tokens_in_text"),
    "LORAGATE_ENGINE_MAX_LORA_RANK": ("engine", "max_lora_rank"),
    "LORAGATE_ENGINE_REASONING_PARSER": ("engine", "reasoning_parser"),
    "LORAGATE_ENGINE_TOOL_CALL_PARSER": ("engine", "tool_call_parser"),
}


class _Registry(msgspec.Struct):
    url: str = ""


class _Engine(msgspec.Struct):
    chat_template: str = ""
    special_tokens_in_text: SpecialTokensInText = "text"
    max_lora_rank: MaxLoraRank = DEFAULT_MAX_LORA_RANK
    reasoning_parser: str = ""
    tool_call_parser: str = ""


class _Tree(msgspec.Struct):
    registry: _Registry = msgspec.field(default_factory=_Registry)
    engine: _Engine = msgspec.field(default_factory=_Engine)


@dataclass(frozen=True, slots=True)
class SharedSettings:
    """``registry_url`` is empty for SQLite in the home, ``chat_template`` (a file, absolute) where
    the base model's own template stands. ``special_tokens_in_text`` is as `Renderer` has it.
    """

    registry_url: str
    chat_template: str
    special_tokens_in_text: SpecialTokensInText
    max_lora_rank: int
    reasoning_parser: str = ""
    tool_call_parser: str = ""  # empty: the server's default

    def database_url(self, home: Home) -> str:
        return self.registry_url or home.database_url

    def read_template(self) -> str | None:
        """What replaces the base model's own template. Raises ConfigError."""
        return read_template(self.chat_template)


def read_settings(environment: Mapping[str, str] = os.environ) -> SharedSettings:
    """From the file that `find_file` finds, then the environment. Raises ConfigError."""
    tree = read_file(find_file(None, environment))
    for variable, (section, key) in _SHARED.items():
        if variable in environment:
            put(tree, section, key, environment[variable])
    try:
        found = msgspec.convert(tree, _Tree, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        place = where.strip("`").removeprefix("$").lstrip(".")
        raise ConfigError(f"The configuration is wrong: {what} at '{place}'.") from None
    template = found.engine.chat_template
    return SharedSettings(
        found.registry.url,
        str(Path(template).absolute()) if template else "",
        found.engine.special_tokens_in_text,
        found.engine.max_lora_rank,
        found.engine.reasoning_parser,
        found.engine.tool_call_parser,
    )


def engine_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """All that [engine] says, from the same places as `read_settings`, as variables of the
    environment: for another server on this machine. Raises ConfigError.
    """
    table = read_file(find_file(None, environment)).get("engine", {})
    if not isinstance(table, dict):
        raise ConfigError("The configuration is wrong: 'engine' has to be a table, [engine].")
    written = {
        f"{ENGINE_VARIABLES}{key.upper()}": str(value).lower()
        if value is True or value is False
        else str(value)
        for key, value in table.items()
        if isinstance(value, bool | int | float | str)
    }
    own = {name: each for name, each in environment.items() if name.startswith(ENGINE_VARIABLES)}
    return written | own


def find_file(path: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file that was named, else that of ``LORAGATE_CONFIG``, else a ``loragate.toml`` in the
    working directory; None where there is none of them.
    """
    if path is not None:
        return path
    if named := environment.get(FILE_VARIABLE):
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.is_file() else None


def read_file(path: Path | None) -> dict[str, object]:
    """As TOML has it; empty without a path. Raises ConfigError."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def put(tree: dict[str, object], section: str, key: str, value: object) -> None:
    """Sets ``[section] key``. Raises ConfigError where the file has something else there."""
    table = tree.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(
            f"The configuration is wrong: '{section}' has to be a table, [{section}]."
        )
    table[key] = value


def read_template(path: str) -> str | None:
    """A chat template's text; None where no file is named. Raises ConfigError."""
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"engine.chat_template: {path} cannot be read: {error}.") from None
