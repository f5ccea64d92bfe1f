import tomllib
from pathlib import Path

import msgspec
import pytest

from loragate.server.config import (
    RANGES,
    Config,
    ConfigError,
    are_metrics_closed,
    cors_origins,
    load_config,
)

SAMPLE = Path(__file__).parents[2] / "examples" / "loragate.toml"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file and no variable of this machine takes part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAGATE_HOME", str(tmp_path))
    monkeypatch.delenv("LORAGATE_CONFIG", raising=False)


def written(text: str, tmp_path: Path) -> Path:
    file = tmp_path / "some.toml"
    file.write_text(text)
    return file


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(None) == Config()


def test_the_sample_has_every_setting_with_its_default_and_a_comment() -> None:
    assert load_config(SAMPLE) == Config()
    said = tomllib.loads(SAMPLE.read_text())
    for section in msgspec.structs.fields(Config):
        keys = [field.name for field in msgspec.structs.fields(type(section.default))]
        assert list(said[section.name]) == keys
    lines = SAMPLE.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("["):
            assert lines[number + 1].startswith("#"), line


def test_the_file_is_found_by_its_name_or_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loragate.toml").write_text("[engine]\nmax_loras = 3")
    assert load_config(None).engine.max_loras == 3
    monkeypatch.setenv("LORAGATE_CONFIG", str(written("[engine]\nmax_loras = 4", tmp_path)))
    assert load_config(None).engine.max_loras == 4


def test_the_environment_overrides_the_file_and_flags_override_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written('[server]\nhttp = "a:1"\ngrpc = "a:2"\nlog_level = "debug"', tmp_path)
    monkeypatch.setenv("LORAGATE_SERVER_HTTP", "b:1")
    monkeypatch.setenv("LORAGATE_SERVER_GRPC", "b:2")
    server = load_config(file, {"server.http": "c:1"}).server
    assert (server.http, server.grpc, server.log_level) == ("c:1", "b:2", "debug")


def test_the_environment_s_words_become_what_a_setting_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAGATE_ENGINE_MAX_LORA_RANK", "32")
    monkeypatch.setenv("LORAGATE_ENGINE_KV_CACHE_GIB", "0.5")
    monkeypatch.setenv("LORAGATE_METRICS_REQUIRE_ADMIN_KEY", "true")
    monkeypatch.setenv("LORAGATE_ENGINE_MODEL", "7")
    config = load_config(None)
    assert config.engine.max_lora_rank == 32
    assert config.engine.kv_cache_gib == 0.5
    assert config.metrics.require_admin_key is True
    assert config.engine.model == "7"
    assert cors_origins(config.server) == ()
    monkeypatch.setenv("LORAGATE_SERVER_CORS_ORIGINS", "https://a.example, http://localhost:3000")
    origins = cors_origins(load_config(None).server)
    assert origins == ("https://a.example", "http://localhost:3000")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[engine]\nmax_lora = 3", r"unknown setting 'max_lora' in \[engine\]"),
        ("[engin]\nmax_loras = 3", r"unknown section \[engin\]"),
        ("engine = 3", "engine"),
        ('[engine]\nmax_loras = "many"', "engine.max_loras"),
        ("[engine]\nmax_lora_rank = 7", "engine.max_lora_rank"),
        ("[server]\nhttp = 8000", "server.http"),
        ('[server]\ncors_origins = ["a.example"]', "server.cors_origins has 'a.example'"),
        ('[server]\ncors_origins = ["https://a.example/page"]', "without a path"),
        ("[server]\ncors_origins = [1]", "server.cors_origins"),
        ("[engine", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_the_setting_s_name(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(text, tmp_path))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("LORAGATE_ENGINE_MAX_LORA", "3", "unknown setting 'max_lora'"),
        ("LORAGATE_ENGIN_MAX_LORAS", "3", "LORAGATE_ENGIN_MAX_LORAS"),
        ("LORAGATE_ENGINE", "3", "LORAGATE_ENGINE"),
        ("LORAGATE_ENGINE_MAX_LORAS", "many", "engine.max_loras"),
        ("LORAGATE_ENGINE_MAX_LORAS", "", "engine.max_loras"),
        ("LORAGATE_CONFIG", "/nowhere/loragate.toml", "no configuration file"),
        ("LORAGATE_CONFIG", "/", "cannot be read"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message):
        load_config(None)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("engine.max_loras", 0),
        ("engine.max_cpu_loras", 7),
        ("engine.kv_cache_gib", 0),
        ("engine.kv_cache_gib", float("nan")),
        ("engine.gpu_memory_utilization", 1.1),
        ("engine.max_num_seqs", 0),
        ("engine.max_model_len", -1),
        ("engine.max_logprobs", -1),
        ("limits.max_in_flight", 0),
        ("limits.max_sequences_per_tenant", -1),
        ("limits.max_loras_per_tenant", -1),
        ("limits.max_queued", -1),
        ("limits.max_queued_per_tenant", -1),
        ("limits.max_queued_per_adapter", -1),
        ("limits.slot_turn_seconds", -0.1),
        ("limits.requests_per_minute", -1),
        ("limits.tokens_per_minute", -1),
        ("limits.max_concurrent", -1),
        ("limits.queue_timeout_seconds", 0),
        ("limits.max_choices", 0),
        ("server.max_body_bytes", 10),
        ("server.request_timeout_seconds", 0),
        ("server.drain_seconds", -1),
        ("server.http", "8000"),
        ("server.http", "127.0.0.1:http"),
        ("server.grpc", "127.0.0.1:65536"),
        ("server.log_level", "loud"),
        ("registry.poll_seconds", 0),
        ("metrics.max_adapters", -1),
        ("experiments.look_seconds", 0),
        ("experiments.shadow_tokens_per_minute", -1),
        ("engine.dtype", "float64"),
        ("engine.dtype", "bfloat_16"),
        ("engine.quantization", "awq; rm"),
        ("engine.model", " "),
        ("engine.seed", -1),
        ("engine.tensor_parallel_size", 0),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_the_setting_s_name(
    setting: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=setting):
        load_config(None, {setting: value})


def numbers() -> list[tuple[str, type]]:
    return [
        (f"{section.name}.{field.name}", type(field.default))
        for section in msgspec.structs.fields(Config)
        for field in msgspec.structs.fields(type(section.default))
        if type(field.default) in (int, float)
    ]


def test_every_number_has_its_range() -> None:
    assert {setting for setting, _ in numbers()} == set(RANGES)


@pytest.mark.parametrize(("setting", "kind"), numbers())
def test_a_number_beyond_its_range_is_refused_with_the_range(setting: str, kind: type) -> None:
    allowed = RANGES[setting]
    beyond: list[object] = [allowed.most * 2 + 1, "1e400"]
    beyond += [float("inf"), float("-inf"), float("nan")] if kind is float else []
    beyond += [allowed.least if allowed.is_above else allowed.least - 1]
    for value in beyond:
        with pytest.raises(ConfigError, match=setting):
            load_config(None, {setting: value})


@pytest.mark.parametrize("setting", ["engine.dtype", "server.log_level", "engine.max_lora_rank"])
def test_a_word_that_is_not_in_the_list_is_answered_with_the_list(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting} has to be one of \w+, \w+, \w+"):
        load_config(None, {setting: "7"})


def test_infinity_in_a_file_is_no_timeout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="request_timeout_seconds"):
        load_config(written("[server]\nrequest_timeout_seconds = inf", tmp_path))


@pytest.mark.parametrize(
    ("http", "setting", "are_closed"),
    [
        ("127.0.0.1:8000", "auto", False),
        ("127.9.9.9:8000", "auto", False),
        ("localhost:8000", "auto", False),
        ("[::1]:8000", "auto", False),
        ("0.0.0.0:8000", "auto", True),
        ("[::]:8000", "auto", True),
        ("10.0.0.7:8000", "auto", True),
        ("gateway.example:8000", "auto", True),
        ("127.0.0.1:8000", "true", True),
        ("0.0.0.0:8000", "false", False),
    ],
)
def test_metrics_are_closed_where_others_can_reach_them(
    monkeypatch: pytest.MonkeyPatch, http: str, setting: str, are_closed: bool
) -> None:
    monkeypatch.setenv("LORAGATE_SERVER_HTTP", http)
    monkeypatch.setenv("LORAGATE_METRICS_REQUIRE_ADMIN_KEY", setting)
    assert are_metrics_closed(load_config(None)) == are_closed
