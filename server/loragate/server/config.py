"""The server's settings: one frozen tree, from `loragate.toml`, then `LORAGATE_*`, then flags.

`[engine] max_loras` is `LORAGATE_ENGINE_MAX_LORAS`. A key that nobody reads is refused by name:
a setting with a typing error in it must not look as if it were in force. The commented sample is
`examples/loragate.toml`.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_type_hints

import msgspec

from loragate.adapters import settings
from loragate.adapters.errors import ConfigError

# Read elsewhere: by Home, by the command line, or to find the configuration itself.
_OTHER_VARIABLES = frozenset(
    {
        "LORAGATE_HOME",
        "LORAGATE_ADMIN_KEY",
        "LORAGATE_API_KEY",
        "LORAGATE_URL",
        settings.FILE_VARIABLE,
    }
)
_PREFIX = "LORAGATE_"
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#*]+", re.IGNORECASE)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration file."""


class ServerConfig(Section, frozen=True):
    """Addresses and the life of the process. Times are in seconds."""

    http: str = "127.0.0.1:8000"
    grpc: str = "127.0.0.1:9000"
    cors_origins: tuple[str, ...] | str = ()
    max_body_bytes: int = 4 * 2**20
    max_adapter_bytes: int = 2 * 2**30
    lora_path_root: str = ""
    max_connections: int = 1000
    head_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 30.0
    write_timeout_seconds: float = 60.0
    request_timeout_seconds: float = 600.0
    drain_seconds: float = 30.0
    degraded_after_seconds: float = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class EngineConfig(Section, frozen=True):
    """What vLLM is started with. 0 or "" means: what the model or vLLM has as its own default."""

    model: str = "smollm2-135m-instruct"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    isa: Literal["auto", "avx512_bf16", "avx512", "avx2", "neon", "portable"] = "auto"
    weights: Literal["dtype", "int8"] = "dtype"
    quantization: str = ""
    tensor_parallel_size: int = 1
    max_loras: int = 8
    max_cpu_loras: int = 64
    max_lora_rank: settings.MaxLoraRank = settings.DEFAULT_MAX_LORA_RANK
    max_model_len: int = 0
    max_num_seqs: int = 80
    max_num_batched_tokens: int = 0
    max_logprobs: int = 20
    kv_cache_gib: float = 2.0
    gpu_memory_utilization: float = 0.9
    tool_call_parser: str = "hermes"
    reasoning_parser: str = ""
    chat_template: str = ""
    special_tokens_in_text: settings.SpecialTokensInText = "text"
    grammar_timeout_seconds: float = 10.0
    check_slots: Literal["idle", "step"] = "idle"
    load_timeout_seconds: float = 120.0
    seed: int = 0


class LimitsConfig(Section, frozen=True):
    """What one tenant may use (0: no limit; `tenant limit` overrides it), and all together.

    `…_per_tenant` is what one tenant may hold of what all share; 0 leaves room for the others.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_concurrent: int = 0
    max_in_flight: int = 256
    max_sequences_per_tenant: int = 0
    max_loras_per_tenant: int = 0
    max_queued: int = 512
    max_queued_per_tenant: int = 0
    max_queued_per_adapter: int = 128
    queue_timeout_seconds: float = 60.0
    slot_turn_seconds: float = 1.0
    max_choices: int = 64
    max_prompt_logprobs: int = 65_536


class RegistryConfig(Section, frozen=True):
    """Where the registry is. An empty URL means SQLite in LORAGATE_HOME. How often a server
    removes artifacts that were put for so long without a version coming to refer to them.
    """

    url: str = ""
    poll_seconds: float = 0.2
    collect_seconds: float = 3600.0
    orphans_after_seconds: float = settings.DEFAULT_ORPHANS_AFTER_SECONDS


class MetricsConfig(Section, frozen=True):
    """Bounds on Prometheus's labels, see `metrics.Metrics`; and who may read them."""

    max_adapters: int = 1000
    require_admin_key: bool | Literal["auto"] = "auto"


class ExperimentsConfig(Section, frozen=True):
    """How often rollouts and experiments are looked at, and what all shadows together may use of
    the engine (0: nothing).
    """

    look_seconds: float = 1.0
    shadow_tokens_per_minute: int = 20_000


class RetentionConfig(Section, frozen=True):
    """For how many days the registry keeps what only grows; 0 is for ever. See
    `retention.Retention`.
    """

    observations_days: int = 90
    usage_days: int = 90
    audit_days: int = 400


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
    retention: RetentionConfig = RetentionConfig()


def load_config(path: Path | None, overrides: Mapping[str, object] | None = None) -> Config:
    """Reads the file (none is fine), the environment, then `overrides` such as {"server.http": …}.

    Without a path, `LORAGATE_CONFIG` or a `loragate.toml` in the working directory is taken.
    Raises ConfigError, naming the key.
    """
    tree = settings.read_file(settings.find_file(path))
    _put_environment(tree, os.environ)
    for dotted, value in (overrides or {}).items():
        section, key = dotted.split(".")
        settings.put(tree, section, key, value)
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"The configuration is wrong: {_plain(error)}") from None
    _check(config)
    return config


def read_chat_template(engine: EngineConfig) -> str | None:
    """The template that replaces the model's own, if one is set. Raises ConfigError."""
    return settings.read_template(engine.chat_template)


def are_metrics_closed(config: Config) -> bool:
    """Whether /metrics, which names all tenants, wants the admin key. Unless it is said, it does
    where others than this machine can reach it.
    """
    if config.metrics.require_admin_key != "auto":
        return config.metrics.require_admin_key
    host, _ = split_address("server.http", config.server.http)
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def cors_origins(server: ServerConfig) -> tuple[str, ...]:
    """The pages' origins that browsers may call from; the environment has them in one text, with
    commas between.
    """
    said = server.cors_origins
    sent = said.split(",") if isinstance(said, str) else said
    return tuple(origin.strip() for origin in sent if origin.strip())


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
        settings.put(tree, section, key, value)


def _plain(error: msgspec.ValidationError) -> str:
    """`Object contains unknown field `x` - at `$.engine`` → `unknown setting 'x' in [engine]`."""
    text = str(error)
    what, _, where = text.partition(" - at ")
    place = where.strip("`").removeprefix("$").lstrip(".")
    if what.startswith("Object contains unknown field"):
        key = what.rsplit(" ", 1)[-1].strip("`")
        return f"unknown setting '{key}' in [{place}]." if place else f"unknown section [{key}]."
    if what.startswith("Invalid enum value"):
        return f"{place} has to be one of {', '.join(map(str, _choices(place)))}."
    return f"{what} at '{place}'."


def _choices(dotted: str) -> tuple[object, ...]:
    """What a setting with a fixed list of values may be."""
    section, key = dotted.split(".")
    allowed = get_args(get_type_hints(get_type_hints(Config)[section])[key])
    if bool in allowed:  # or a word
        return ("true", "false", *(word for each in allowed for word in get_args(each)))
    return allowed


def split_address(setting: str, address: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8000` or `[::1]:8000`. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{setting} is '{address}'; it has to be HOST:PORT.")
    return host.strip("[]"), int(port)


class Range(NamedTuple):
    """Both ends included, but for a `least` that is to be exceeded."""

    least: float
    most: float
    is_above: bool = False

    def __contains__(self, value: object) -> bool:
        # Written so that NaN, which compares as false, is outside.
        return isinstance(value, int | float) and (
            self.least < value <= self.most if self.is_above else self.least <= value <= self.most
        )

    def __str__(self) -> str:
        start = f"above {self.least:g}" if self.is_above else f"{self.least:g} or more"
        return f"{start}, and {self.most:,} at most"


_DAY_SECONDS = 86_400
_MOST_GIB = 65_536
_MOST_DAYS = 36_500
# Of every number. The upper ends are far above what makes sense: they keep a slip of a digit, or a
# number that the libraries below cannot hold, from looking like a setting.
RANGES: Mapping[str, Range] = {
    "server.max_body_bytes": Range(1024, 2**31 - 1),  # gRPC holds it in 32 bits
    "server.max_adapter_bytes": Range(1024, 2**40),
    "server.max_connections": Range(16, 10**6),
    "server.head_timeout_seconds": Range(0, 3600, is_above=True),
    "server.body_timeout_seconds": Range(0, _DAY_SECONDS, is_above=True),
    "server.write_timeout_seconds": Range(0, _DAY_SECONDS, is_above=True),
    "server.request_timeout_seconds": Range(0, _DAY_SECONDS, is_above=True),
    "server.drain_seconds": Range(0, _DAY_SECONDS),
    "server.degraded_after_seconds": Range(0, _DAY_SECONDS),
    "engine.tensor_parallel_size": Range(1, 64),
    "engine.max_loras": Range(1, 1024),
    "engine.max_cpu_loras": Range(1, 100_000),
    "engine.max_lora_rank": Range(1, 512),
    "engine.max_model_len": Range(0, 2**24),
    "engine.max_num_seqs": Range(1, 65_536),
    "engine.max_num_batched_tokens": Range(0, 2**24),
    "engine.max_logprobs": Range(0, 2**18),
    "engine.grammar_timeout_seconds": Range(0.1, 600),
    "engine.kv_cache_gib": Range(0, _MOST_GIB, is_above=True),
    "engine.gpu_memory_utilization": Range(0, 1, is_above=True),
    "engine.load_timeout_seconds": Range(0, _DAY_SECONDS, is_above=True),
    "engine.seed": Range(0, 2**32 - 1),  # NumPy takes no larger one
    "limits.requests_per_minute": Range(0, 10**9),
    "limits.tokens_per_minute": Range(0, 10**12),
    "limits.max_concurrent": Range(0, 10**6),
    "limits.max_in_flight": Range(1, 10**6),
    "limits.max_sequences_per_tenant": Range(0, 10**6),
    "limits.max_loras_per_tenant": Range(0, 1024),
    "limits.max_queued": Range(0, 10**6),
    "limits.max_queued_per_tenant": Range(0, 10**6),
    "limits.max_queued_per_adapter": Range(0, 10**6),
    "limits.queue_timeout_seconds": Range(0, _DAY_SECONDS, is_above=True),
    "limits.slot_turn_seconds": Range(0, 3600),
    "limits.max_choices": Range(1, 4096),
    "limits.max_prompt_logprobs": Range(1, 10**9),
    "registry.poll_seconds": Range(0.01, 3600),
    "registry.collect_seconds": Range(0, 7 * _DAY_SECONDS),
    # Less than a publication may take would take it for dead.
    "registry.orphans_after_seconds": Range(600, 366 * _DAY_SECONDS),
    "retention.observations_days": Range(0, _MOST_DAYS),
    "retention.usage_days": Range(0, _MOST_DAYS),
    "retention.audit_days": Range(0, _MOST_DAYS),
    "metrics.max_adapters": Range(0, 10**6),
    "experiments.look_seconds": Range(0.01, 3600),
    "experiments.shadow_tokens_per_minute": Range(0, 10**9),
    "merged.kv_cache_gib": Range(0, _MOST_GIB, is_above=True),
    "merged.reserve_gib": Range(0, _MOST_GIB),
    "merged.merge_timeout_seconds": Range(0, 7 * _DAY_SECONDS, is_above=True),
}


def _check(config: Config) -> None:
    """Raises ConfigError, naming the first setting that is out of its range."""
    for dotted, allowed in RANGES.items():
        section, key = dotted.split(".")
        value = getattr(getattr(config, section), key)
        if value not in allowed:
            raise ConfigError(
                f"The configuration is wrong: {dotted} is {value}; it has to be {allowed}."
            )
    engine, server = config.engine, config.server
    for setting, address in (("server.http", server.http), ("server.grpc", server.grpc)):
        split_address(setting, address)
    checks = [
        (
            engine.max_cpu_loras >= engine.max_loras,
            "engine.max_cpu_loras has to be at least engine.max_loras",
        ),
        (
            server.lora_path_root == "" or Path(server.lora_path_root).is_absolute(),
            f"server.lora_path_root is '{server.lora_path_root}'; it has to be a path from the "
            "root, or empty",
        ),
        (engine.model.strip() != "", "engine.model is empty; it has to name the base model"),
        (
            re.fullmatch(r"[a-z0-9_-]*", engine.quantization) is not None,
            f"engine.quantization is '{engine.quantization}'; it has to be a method's name, such "
            "as awq or fp8, or empty",
        ),
        *(
            (
                _ORIGIN.fullmatch(origin) is not None,
                f"server.cors_origins has '{origin}'; an origin is a scheme, a host and perhaps a "
                "port, such as https://chat.example.org, without a path, or * for every origin",
            )
            for origin in cors_origins(server)
        ),
        (
            engine.weights == "dtype"
            or (not engine.quantization and engine.dtype in {"auto", "bfloat16"}),
            "engine.weights is 'int8', which rounds bfloat16 weights; it goes with engine.dtype "
            "'auto' or 'bfloat16' and without engine.quantization",
        ),
    ]
    for holds, sentence in checks:
        if not holds:
            raise ConfigError(f"The configuration is wrong: {sentence}.")
