import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from peft import PeftModel
from rich.progress import Progress
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from loragate.adapters.base_models.preparation import prepare
from loragate.adapters.format.files import CONFIG, MANIFEST, inspect
from loragate.adapters.format.reference import mean_difference
from loragate.adapters.home import Home
from loragate.trainer.cli.reference import add_to
from loragate.trainer.errors import TrainingError
from loragate.trainer.publishing.reference import PROMPT_TOKENS, compute_reference, write_reference
from support.models.tiny_llama import adapt, save, tiny_llama
from support.models.tokenizers import word_tokenizer

PROMPTS = [tuple((seed * 7 + step * 13) % 128 for step in range(24)) for seed in range(6)]
SaveAdapter = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture
def save_adapter(tmp_path: Path) -> SaveAdapter:
    def write(strength: float = 0.5, **config: Any) -> Path:
        adapted = adapt(strength=strength, r=16, lora_alpha=16, **config)
        return save(adapted, tmp_path / "adapter")

    return write


def test_reference_is_what_the_saved_adapter_says(base: Path, save_adapter: SaveAdapter):
    folder = save_adapter()

    reference = compute_reference(base, folder, PROMPTS)

    model = LlamaForCausalLM.from_pretrained(base)
    alone = said(model, PROMPTS[0])
    adapted = said(PeftModel.from_pretrained(model, folder), PROMPTS[0])
    assert len(reference.prompts) == 2
    assert reference.prompts[0].token_ids == PROMPTS[0]
    assert reference.prompts[0].base == pytest.approx(alone, abs=1e-4)
    assert reference.prompts[0].adapter == pytest.approx(adapted, abs=1e-4)
    assert reference.effect > 0.2


def said(model: torch.nn.Module, ids: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [scores[place, token].item() for place, token in enumerate(ids[1:])]


def test_adapter_loaded_again_is_within_a_tenth_of_the_tolerance(
    base: Path, save_adapter: SaveAdapter
):
    folder = save_adapter()

    once, again = (compute_reference(base, folder, PROMPTS) for _ in range(2))

    assert mean_difference(once.adapter, again.adapter) < once.allowed / 10


@pytest.mark.parametrize(
    ("trained", "read"), [({"use_rslora": True}, False), ({"use_rslora": False}, True)]
)
def test_flipped_rslora_is_beyond_the_tolerance(
    base: Path, save_adapter: SaveAdapter, trained: dict[str, bool], read: bool
):
    folder = save_adapter(**trained)
    honest = compute_reference(base, folder, PROMPTS)

    configure(folder, use_rslora=read)

    flipped = compute_reference(base, folder, PROMPTS)
    assert mean_difference(flipped.adapter, honest.adapter) > honest.allowed


def test_other_base_model_is_beyond_the_tolerance(
    base: Path, save_adapter: SaveAdapter, tmp_path: Path
):
    folder = save_adapter()
    tiny_llama(seed=9).save_pretrained(tmp_path / "other")

    here = compute_reference(base, folder, PROMPTS)
    there = compute_reference(tmp_path / "other", folder, PROMPTS)

    assert mean_difference(there.adapter, here.adapter) > here.allowed


def test_adapter_that_says_too_little_gets_no_reference(base: Path, save_adapter: SaveAdapter):
    with pytest.raises(TrainingError, match="could not be told from rounding"):
        compute_reference(base, save_adapter(strength=1e-4), PROMPTS)


def test_reference_without_prompts_is_refused(base: Path, save_adapter: SaveAdapter):
    with pytest.raises(TrainingError, match="at least one prompt"):
        compute_reference(base, save_adapter(), [])


def test_end_of_a_long_prompt_is_what_counts(base: Path, save_adapter: SaveAdapter):
    long = tuple(step % 128 for step in range(PROMPT_TOKENS + 9))

    (scored,) = compute_reference(base, save_adapter(), [long]).prompts

    assert scored.token_ids == long[-PROMPT_TOKENS:]


def test_written_reference_leaves_the_rest_of_the_manifest(base: Path, save_adapter: SaveAdapter):
    folder = save_adapter()
    (folder / MANIFEST).write_text('{"contract": {"system_prompt": "Be brief."}}')
    reference = compute_reference(base, folder, PROMPTS)

    write_reference(folder, reference)

    manifest = inspect(folder).manifest
    assert manifest.reference == reference
    assert manifest.contract.system_prompt == "Be brief."


def test_command_writes_the_reference_of_some_chats(
    save_adapter: SaveAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tmp_path / "tiny"
    tiny_llama().save_pretrained(source)
    word_tokenizer(("<user>", "<assistant>", "a", "b")).save_pretrained(source)
    home = Home(tmp_path / "home").ensure()
    monkeypatch.setenv("LORAGATE_HOME", str(home.root))
    with Progress(disable=True) as progress:
        prepare(str(source), home.models, progress)
    turns = [{"role": "user", "content": "a b a"}, {"role": "assistant", "content": "b a"}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(f"{json.dumps({'messages': turns})}\n" * 6)
    folder = save_adapter()
    app = typer.Typer()
    app.callback()(lambda: None)
    add_to(app)

    command = ["reference", str(folder), "--chats", str(chats), "--model", str(source), "--json"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)

    assert done.exit_code == 0, done.output
    reference = inspect(folder).manifest.reference
    assert reference is not None
    assert json.loads(done.stdout)["prompts"] == len(reference.prompts) == 2
    assert reference.prompts[0].token_ids == (2, 4, 5, 4, 1, 3, 5, 4, 1)


def configure(folder: Path, **settings: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
