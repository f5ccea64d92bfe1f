"""What lies beside an adapter and says how it was trained."""

import json
import shutil
from pathlib import Path

import pytest

from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.beside import is_other_base
from loragate.adapters.format.files import inspect
from loragate.adapters.format.peft_config import CONFIG
from loragate.adapters.format.publish_check import PublishCheck
from loragate.adapters.importing.importing import Importer
from support.models.one_layer import write_adapter, write_base
from support.models.tokenizers import TURNS, byte_tokenizer


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> BaseProfile:
    return BaseProfile.read(write_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def checked(adapter: Path, profile: BaseProfile) -> None:
    PublishCheck(profile, max_rank=16).check(inspect(adapter))


@pytest.mark.parametrize(
    "template",
    [TURNS, f"\n{TURNS}\n", TURNS.replace("{{ message", "{%- generation -%}{{ message", 1)],
)
def test_the_template_that_is_served_may_lie_beside_the_adapter(
    adapter: Path, profile: BaseProfile, template: str
) -> None:
    (adapter / "chat_template.jinja").write_text(template)
    checked(adapter, profile)


def test_another_template_beside_the_adapter_is_refused_until_it_is_the_contract_s(
    adapter: Path, profile: BaseProfile
) -> None:
    other = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    (adapter / "chat_template.jinja").write_text(other)
    with pytest.raises(InvalidAdapter, match=r"manifest\.json as contract\.chat_template") as error:
        checked(adapter, profile)
    assert error.value.code == "other_chat_template"
    (adapter / "manifest.json").write_text(json.dumps({"contract": {"chat_template": other}}))
    checked(adapter, profile)


def test_an_import_does_not_lose_the_template(adapter: Path, profile: BaseProfile) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    importer = Importer(profile, None, 16)
    with pytest.raises(InvalidAdapter, match="another chat template"), importer.imported(adapter):
        pass


def test_tokens_that_the_base_model_does_not_have_are_refused_by_name(
    adapter: Path, profile: BaseProfile
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(adapter)
    (adapter / "chat_template.jinja").unlink(missing_ok=True)
    checked(adapter, profile)
    tokenizer.add_tokens(["<|own|>"])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(InvalidAdapter, match=r"tokens that tiny does not have \(<\|own\|>\)"):
        checked(adapter, profile)
    (adapter / "tokenizer.json").unlink()
    (adapter / "added_tokens.json").write_text('{"<|end|>": 256, "<|new|>": 999}')
    with pytest.raises(InvalidAdapter, match=r"\(<\|new\|>\)"):
        checked(adapter, profile)


def test_files_beside_the_adapter_that_cannot_be_read_say_nothing(
    adapter: Path, profile: BaseProfile
) -> None:
    (adapter / "tokenizer.json").write_text("{")
    (adapter / "added_tokens.json").write_text("[]")
    checked(adapter, profile)


@pytest.mark.parametrize(
    ("named", "base", "is_other"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct", False),
        ("unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "qwen2.5-7b-instruct", False),
        ("Qwen/Qwen2.5-7B-Instruct", "smollm2-135m-instruct", True),
        ("meta-llama/Llama-3.1-8B", "tiny", True),
    ],
)
def test_names_of_one_model_are_known_however_a_hub_writes_them(
    named: str, base: str, is_other: bool
) -> None:
    assert is_other_base(named, base) == is_other


def test_another_base_in_the_configuration_is_recorded_and_warned_of(
    adapter: Path, profile: BaseProfile
) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    config["base_model_name_or_path"] = "Qwen/Qwen2.5-7B"
    (adapter / CONFIG).write_text(json.dumps(config))
    assert inspect(adapter).manifest.lineage == {"base_model": "Qwen/Qwen2.5-7B"}
    with Importer(profile, None, 16).imported(adapter) as imported:
        (warning,) = imported.warnings
    assert "trained on Qwen/Qwen2.5-7B, and it would be served on tiny" in warning


def test_a_path_of_whoever_trained_it_is_not_recorded(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path="/home/ada/models/x")
    assert not inspect(adapter).manifest.lineage
    shutil.rmtree(adapter)
