"""The server's settings: one frozen tree, from `loragate.toml`, then `LORAGATE_*`, then flags.

`[engine] max_loras` is `LORAGATE_ENGINE_MAX_LORAS`. A key that nobody reads is refused by name:
a setting with a typing error in it must not look as if it were in force. The commented sample is
`examples/loragate.toml`.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from loragate.adapters.errors import LoragateError

# Read elsewhere: by Home, by the command line, or to find the configuration itself.
_OTHER_VARIABLES = frozenset(
    {
        "LORAGATE_HOME",
        "LORAGATE_ADMIN_KEY",
        "LORAGATE_API_KEY",
        "LORAGATE_URL",
        "LORAGATE_CONFIG",
    }
)
_PREFIX = "LORAGATE_"


class ConfigError(LoragateError):
    """A setting that is unknown, of the wrong type, or out of range."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""


class ServerConfig(Section, frozen=True):
    """Addresses and the life of the process. Times are in seconds."""

    http: str = "127.0.0.1:8000"
    grpc: str = "127.0.0.1:9000"
    max_body_bytes: int = 4 * 2**20
    max_adapter_bytes: int = 2 * 2**30
    request_timeout_seconds: float = 600.0
    drain_seconds: float = 30.0
    degraded_after_seconds: float = 30.0
    log_level: str = "info"


class EngineConfig(Section, frozen=True):
    """What vLLM is started with. 0 or "" means: what the model or vLLM has as its own default."""

    model: str = "smollm2-135m-instruct"
    dtype: str = "auto"
    max_loras: int = 8
    max_cpu_loras: int = 64
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 64
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 0
    max_logprobs: int = 20
    kv_cache_gib: float = 2.0
    gpu_memory_utilization: float = 0.9
    tool_call_parser: str = "hermes"
    chat_template: str = ""
    check_slots: Literal["idle", "step"] = "idle"
    seed: int = 0


class LimitsConfig(Section, frozen=True):
    """What one tenant may use (0: no limit; `tenant limit` overrides it), and all together."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_concurrent: int = 0
    max_in_flight: int = 256
    max_queued: int = 512
    max_queued_per_adapter: int = 128
    queue_timeout_seconds: float = 60.0
    slot_turn_seconds: float = 1.0
    max_choices: int = 64


class RegistryConfig(Section, frozen=True):
    """Where the truth is kept. An empty URL means SQLite in LORAGATE_HOME."""

    url: str = ""
    poll_seconds: float = 0.2


class MetricsConfig(Section, frozen=True):
    """Bounds on Prometheus's labels; see `metrics.Metrics`."""

    max_adapters: int = 1000
    require_admin_key: bool = False


class ExperimentsConfig(Section, frozen=True):
    """How often rollouts and experiments are looked at, and what all shadows together may use of
    the engine (0: nothing).
    """

    look_seconds: float = 1.0
    shadow_tokens_per_minute: int = 20_000


class MergedConfig(Section, frozen=True):
    """Merged models, each in an engine of its own: its cache, what stays free beside them, and how
    long the making of one may take.
    """

    kv_cache_gib: float = 1.0
    reserve_gib: float = 1.0
    merge_timeout_seconds: float = 7200.0


class Config(Section, frozen=True):
    """The whole tree."""

    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    registry: RegistryConfig = RegistryConfig()
    metrics: MetricsConfig = MetricsConfig()
    experiments: ExperimentsConfig = ExperimentsConfig()
    merged: MergedConfig = MergedConfig()


def load_config(path: Path | None, overrides: Mapping[str, object] | None = None) -> Config:
    """Reads the file (none is fine), the environment, then `overrides` such as {"server.http": …}.

    Without a path, `LORAGATE_CONFIG` or a `loragate.toml` in the working directory is taken.
    Raises ConfigError, naming the key.
    """
    tree = _read_file(_find_file(path))
    _put_environment(tree, os.environ)
    for dotted, value in (overrides or {}).items():
        section, key = dotted.split(".")
        _section(tree, section)[key] = value
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"The configuration is wrong: {_plain(error)}") from None
    _check_ranges(config)
    return config


def read_chat_template(engine: EngineConfig) -> str | None:
    """The template that replaces the model's own, if one is set. Raises ConfigError."""
    if not engine.chat_template:
        return None
    path = Path(engine.chat_template)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"engine.chat_template: {path} cannot be read: {error}.") from None


def _find_file(path: Path | None) -> Path | None:
    if path is not None:
        return path
    if named := os.environ.get("LORAGATE_CONFIG"):
        return Path(named)
    default = Path("loragate.toml")
    return default if default.is_file() else None


def _read_file(path: Path | None) -> dict[str, object]:
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


def _put_environment(tree: dict[str, object], environment: Mapping[str, str]) -> None:
    sections = {field.name for field in msgspec.structs.fields(Config)}
    for variable, value in environment.items():
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        section, _, key = variable.removeprefix(_PREFIX).lower().partition("_")
        if section not in sections or not key:
            raise ConfigError(
                f"The environment variable {variable} is no setting; "
                f"settings are {_PREFIX}<SECTION>_<KEY> with a section of {sorted(sections)}."
            )
        _section(tree, section)[key] = value


def _section(tree: dict[str, object], name: str) -> dict[str, object]:
    table = tree.setdefault(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"The configuration is wrong: '{name}' has to be a table, [{name}].")
    return table


def _plain(error: msgspec.ValidationError) -> str:
    """`Object contains unknown field `x` - at `$.engine`` → `unknown setting 'x' in [engine]`."""
    text = str(error)
    what, _, where = text.partition(" - at ")
    place = where.strip("`").removeprefix("$").lstrip(".")
    if what.startswith("Object contains unknown field"):
        key = what.rsplit(" ", 1)[-1].strip("`")
        return f"unknown setting '{key}' in [{place}]." if place else f"unknown section [{key}]."
    return f"{what} at '{place}'."


def split_address(setting: str, address: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8000` or `[::1]:8000`. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{setting} is '{address}'; it has to be HOST:PORT.")
    return host.strip("[]"), int(port)


def _check_ranges(config: Config) -> None:
    engine, limits, server = config.engine, config.limits, config.server
    for setting, address in (("server.http", server.http), ("server.grpc", server.grpc)):
        split_address(setting, address)
    checks = [
        (engine.max_loras >= 1, "engine.max_loras has to be 1 or more"),
        (
            engine.max_cpu_loras >= engine.max_loras,
            "engine.max_cpu_loras has to be at least engine.max_loras",
        ),
        (engine.kv_cache_gib > 0, "engine.kv_cache_gib has to be above 0"),
        (
            0 < engine.gpu_memory_utilization <= 1,
            "engine.gpu_memory_utilization has to be above 0 and at most 1",
        ),
        (engine.max_num_seqs >= 1, "engine.max_num_seqs has to be 1 or more"),
        (engine.max_model_len >= 0, "engine.max_model_len has to be 0 or more"),
        (engine.max_num_batched_tokens >= 0, "engine.max_num_batched_tokens has to be 0 or more"),
        (engine.max_logprobs >= 0, "engine.max_logprobs has to be 0 or more"),
        (limits.requests_per_minute >= 0, "limits.requests_per_minute has to be 0 or more"),
        (limits.tokens_per_minute >= 0, "limits.tokens_per_minute has to be 0 or more"),
        (limits.max_concurrent >= 0, "limits.max_concurrent has to be 0 or more"),
        (limits.queue_timeout_seconds > 0, "limits.queue_timeout_seconds has to be above 0"),
        (limits.max_in_flight >= 1, "limits.max_in_flight has to be 1 or more"),
        (limits.max_queued >= 0, "limits.max_queued has to be 0 or more"),
        (limits.max_queued_per_adapter >= 0, "limits.max_queued_per_adapter has to be 0 or more"),
        (limits.slot_turn_seconds >= 0, "limits.slot_turn_seconds has to be 0 or more"),
        (limits.max_choices >= 1, "limits.max_choices has to be 1 or more"),
        (server.max_body_bytes >= 1024, "server.max_body_bytes has to be 1024 or more"),
        (server.max_adapter_bytes >= 1024, "server.max_adapter_bytes has to be 1024 or more"),
        (server.request_timeout_seconds > 0, "server.request_timeout_seconds has to be above 0"),
        (config.metrics.max_adapters >= 0, "metrics.max_adapters has to be 0 or more"),
        (config.experiments.look_seconds > 0, "experiments.look_seconds has to be above 0"),
        (
            config.experiments.shadow_tokens_per_minute >= 0,
            "experiments.shadow_tokens_per_minute has to be 0 or more",
        ),
        (server.drain_seconds >= 0, "server.drain_seconds has to be 0 or more"),
        (
            0 <= server.degraded_after_seconds <= 86_400,
            "server.degraded_after_seconds has to be from 0 to 86400",
        ),
        (config.merged.kv_cache_gib > 0, "merged.kv_cache_gib has to be above 0"),
        (config.merged.reserve_gib >= 0, "merged.reserve_gib has to be 0 or more"),
        (
            config.merged.merge_timeout_seconds > 0,
            "merged.merge_timeout_seconds has to be above 0",
        ),
        (config.registry.poll_seconds > 0, "registry.poll_seconds has to be above 0"),
        (
            server.log_level in {"debug", "info", "warning", "error"},
            "server.log_level has to be one of debug, info, warning, error",
        ),
    ]
    for holds, claim in checks:
        if not holds:
            raise ConfigError(f"The configuration is wrong: {claim}.")
