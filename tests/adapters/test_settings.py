"""What the trainer and the server both read: the same file, the same variables, the same order."""

import tomllib
from pathlib import Path

import pytest

from loragate.adapters.errors import ConfigError
from loragate.adapters.home import Home
from loragate.adapters.settings import DEFAULT_MAX_LORA_RANK, read_settings

FILE = """
[server]
http = "127.0.0.1:1"  # another's, and so is what nobody knows

[engine]
max_loras = 3
chat_template = "template.jinja"
max_lora_rank = 16

[registry]
url = "sqlite:////srv/registry.db"
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_file_the_registry_is_the_home_s(tmp_path: Path) -> None:
    settings = read_settings({})
    assert settings.database_url(Home(tmp_path)) == Home(tmp_path).database_url
    assert settings.read_template() is None
    assert settings.max_lora_rank == DEFAULT_MAX_LORA_RANK


def test_file_of_the_working_directory_counts_and_only_what_is_shared_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "loragate.toml").write_text(FILE)
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    settings = read_settings({})
    assert settings.database_url(Home(tmp_path)) == "sqlite:////srv/registry.db"
    assert settings.max_lora_rank == 16
    assert settings.chat_template == str(tmp_path / "template.jinja")
    assert settings.read_template() == "{{ messages }}"


def test_environment_overrides_the_file_also_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "loragate.toml").write_text(FILE)
    settings = read_settings(
        {
            "LORAGATE_REGISTRY_URL": "postgresql+psycopg://db/lora",
            "LORAGATE_ENGINE_MAX_LORA_RANK": "128",
            "LORAGATE_ENGINE_CHAT_TEMPLATE": "",
        }
    )
    assert settings.registry_url == "postgresql+psycopg://db/lora"
    assert settings.max_lora_rank == 128
    assert settings.read_template() is None


def test_file_is_named_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "loragate.toml").write_text("[engine]\nmax_lora_rank = 8")
    (tmp_path / "other.toml").write_text(FILE)
    assert read_settings({"LORAGATE_CONFIG": str(tmp_path / "other.toml")}).max_lora_rank == 16
    with pytest.raises(ConfigError, match="no configuration file"):
        read_settings({"LORAGATE_CONFIG": "/nowhere.toml"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[engine]\nmax_lora_rank = 7", r"engine\.max_lora_rank"),
        ("[registry]\nurl = 3", r"registry\.url"),
        ("registry = 3", "registry"),
        ("[engine", "not valid TOML"),
    ],
)
def test_wrong_setting_is_refused_by_its_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "loragate.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings({})
    if "registry = 3" in text:
        with pytest.raises(ConfigError, match=r"has to be a table, \[registry\]"):
            read_settings({"LORAGATE_REGISTRY_URL": "sqlite:///x"})


def test_template_that_cannot_be_read_is_told_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_bytes(b"\xff\xfe")
    for path in ("missing.jinja", "bad.jinja", "."):
        with pytest.raises(ConfigError, match=r"engine\.chat_template: .* cannot be read"):
            read_settings({"LORAGATE_ENGINE_CHAT_TEMPLATE": path}).read_template()


def test_server_reads_the_same_of_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loragate.server.config import load_config

    (tmp_path / "loragate.toml").write_text(FILE)
    monkeypatch.setenv("LORAGATE_ENGINE_MAX_LORA_RANK", "32")
    monkeypatch.setenv("LORAGATE_ENGINE_SPECIAL_TOKENS_IN_TEXT", "control")
    config, settings = load_config(None), read_settings()
    assert config.engine.special_tokens_in_text == settings.special_tokens_in_text == "control"
    assert config.registry.url == settings.registry_url == tomllib.loads(FILE)["registry"]["url"]
    assert config.engine.max_lora_rank == settings.max_lora_rank == 32
    assert Path(config.engine.chat_template).absolute() == Path(settings.chat_template)
