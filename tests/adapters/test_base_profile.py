import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch import nn

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import BaseModelError
from loragate.adapters.format.base_profile import BaseProfile, tokenizer_hash
from loragate.adapters.rendering.renderer import Renderer
from support.models.tiny_llama import tiny_llama, write_base
from support.models.tokenizers import WORD_TURNS

READ_WITHOUT_TORCH = """
import sys
from pathlib import Path
from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.base_profile import BaseProfile
assert BaseProfile.read(BaseModel("tiny", Path(sys.argv[1]), "sha256:base")).modules
print(sorted({"torch", "transformers", "numpy"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copied(base: BaseModel, tmp_path: Path) -> BaseModel:
    return BaseModel("tiny", shutil.copytree(base.path, tmp_path / "copy"), base.digest)


def test_modules_are_the_linear_layers_of_the_model_with_their_shapes(base: BaseModel):
    profile = BaseProfile.read(base)

    assert profile.modules == {
        name: tuple(module.weight.shape)
        for name, module in tiny_llama().named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert (profile.name, profile.digest) == ("tiny", "sha256:base")


def test_sharded_model_has_the_same_modules(base: BaseModel, tmp_path: Path):
    sharded = write_base(tmp_path / "sharded", max_shard_size="50KB")

    assert len(list(sharded.path.glob("*.safetensors"))) > 1
    assert BaseProfile.read(sharded).modules == BaseProfile.read(base).modules


def test_second_copy_of_the_weights_in_another_layout_is_not_read(copied: BaseModel):
    before = BaseProfile.read(copied)
    save_file(
        {"layers.0.wq.weight": np.zeros((4, 4), np.float32)},
        copied.path / "consolidated.safetensors",
    )

    assert BaseProfile.read(copied) == before


def test_template_hash_is_the_renderers(base: BaseModel):
    renderer = Renderer.load(base.path)

    assert BaseProfile.read(base).chat_template_hash == renderer.template_hash()
    assert (
        BaseProfile.read(base, "{{ messages }}").chat_template_hash
        == Renderer(renderer.tokenizer, "{{ messages }}").template_hash()
    )


@pytest.mark.parametrize(
    "written",
    [WORD_TURNS, [{"name": "default", "template": WORD_TURNS}, {"name": "x", "template": ""}]],
)
def test_template_in_the_tokenizers_configuration_counts_too(
    base: BaseModel, copied: BaseModel, written: object
):
    (copied.path / "chat_template.jinja").unlink()
    config = copied.path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": written}))

    assert BaseProfile.read(copied).chat_template_hash == BaseProfile.read(base).chat_template_hash


def test_model_without_a_template_has_the_hash_that_the_renderer_gives(copied: BaseModel):
    (copied.path / "chat_template.jinja").unlink()
    profile = BaseProfile.read(copied)
    (copied.path / "tokenizer_config.json").write_text("{}")

    assert profile.chat_template_hash == Renderer.load(copied.path).template_hash()
    assert BaseProfile.read(copied).chat_template_hash == profile.chat_template_hash


def test_tokenizer_hash_follows_what_makes_the_tokenizer(copied: BaseModel):
    before = tokenizer_hash(copied.path)
    (copied.path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_hash(copied.path) == before

    (copied.path / "tokenizer.json").write_text("{}")
    assert tokenizer_hash(copied.path) != before


def test_tokenizer_without_tokenizer_json_is_hashed_by_its_vocabulary(tmp_path: Path):
    assert tokenizer_hash(tmp_path) == ""
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")

    assert tokenizer_hash(tmp_path) != ""


def test_shapes_that_quantisation_hides_are_unknown_and_the_names_are_not(copied: BaseModel):
    save_file(
        {
            "model.layers.0.mlp.up_proj.qweight": np.zeros((4, 4), np.int32),
            "model.layers.0.mlp.down_proj.weight": np.zeros((8, 1), np.uint8),
            "model.layers.0.mlp.gate_proj.weight": np.zeros((8, 4), np.float16),
            "model.layers.0.mlp.experts.0.up_proj.weight": np.zeros((8, 4), np.float16),
        },
        copied.path / "model.safetensors",
    )

    assert BaseProfile.read(copied).modules == {
        "model.layers.0.mlp.up_proj": None,
        "model.layers.0.mlp.down_proj": None,
        "model.layers.0.mlp.gate_proj": (8, 4),
    }


def test_modules_of_a_model_of_text_and_images_are_not_guessed(copied: BaseModel):
    config = copied.path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vision_config": {}}))

    assert BaseProfile.read(copied).modules == {}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff"),
        ("model.safetensors", b"\0" * 20),
        ("model.safetensors.index.json", b"{}"),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_damaged_model_is_refused_with_the_files_name(copied: BaseModel, file: str, content: bytes):
    (copied.path / "chat_template.jinja").unlink()
    (copied.path / file).write_bytes(content)

    with pytest.raises(BaseModelError, match=file):
        BaseProfile.read(copied)


def test_missing_file_is_refused_with_its_name(copied: BaseModel):
    (copied.path / "config.json").unlink()

    with pytest.raises(BaseModelError, match=r"config\.json"):
        BaseProfile.read(copied)


def test_reading_loads_no_heavy_library(base: BaseModel):
    read = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_TORCH, str(base.path)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert read.stdout == "[]\n"
