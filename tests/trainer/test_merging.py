"""Merging: the same answers as unmerged, or no merged model at all."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.files import WEIGHTS
from loragate.adapters.format.lora_tensors import PREFIX
from loragate.adapters.format.merged_files import REPORT
from loragate.trainer.publishing.merging import (
    BOUNDS,
    EXACT,
    Agreement,
    Bounds,
    MergeRefused,
    merge,
    unmerged_logits,
    verify,
)
from loragate.trainer.settings import MergeDtype, MethodSettings
from loragate.trainer.training.models import AdapterNotApplied
from support.training.finished_runs import write_adapter

PROMPTS = [[2, 5, 6, 7, 8, 1, 3, 21], [2, 9, 10, 11, 12, 1, 3, 22], [2, 13, 14, 15]]


def logits(folder: Path) -> Iterator[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.inference_mode():
        for prompt in PROMPTS:
            yield model(input_ids=torch.tensor([prompt])).logits[0]


def test_merge_in_float32_is_within_a_ten_thousandth_of_the_unmerged_logits(
    base: BaseModel, adapter: Path, tmp_path: Path
):
    merge(base.path, adapter, tmp_path / "merged", PROMPTS, dtype="float32")

    plain = AutoModelForCausalLM.from_pretrained(str(base.path), dtype=torch.float32)
    beside = PeftModel.from_pretrained(plain, str(adapter)).eval()
    with torch.inference_mode():
        for prompt, merged in zip(PROMPTS, logits(tmp_path / "merged"), strict=True):
            expected = beside(input_ids=torch.tensor([prompt])).logits[0]
            assert (merged - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merged_model_is_whole_and_says_how_it_was_proved(
    base: BaseModel, adapter: Path, tmp_path: Path, dtype
):
    report = merge(base.path, adapter, tmp_path / "merged", PROMPTS, dtype=dtype)

    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    assert str(model.dtype) == f"torch.{dtype}"
    assert AutoTokenizer.from_pretrained(str(tmp_path / "merged")).chat_template
    written = json.loads((tmp_path / "merged" / REPORT).read_text())
    assert written["saved"]["positions"] == sum(map(len, PROMPTS)) == report.saved.positions
    assert report.merged.largest_logit_difference < 1e-4


def test_float16_rounds_less_than_bfloat16_and_both_pass(
    base: BaseModel, adapter: Path, tmp_path: Path
):
    half = merge(base.path, adapter, tmp_path / "half", PROMPTS, dtype="float16").saved
    brain = merge(base.path, adapter, tmp_path / "brain", PROMPTS, dtype="bfloat16").saved

    assert 0 < half.mean_kl < brain.mean_kl < BOUNDS["bfloat16"].mean_kl


def renamed(adapter: Path, folder: Path, rename: Callable[[str], str | None]) -> Path:
    """The adapter with other names of tensors; None leaves one out."""
    shutil.copytree(adapter, folder)
    tensors = load_file(adapter / WEIGHTS)
    kept = {new: tensors[name] for name in tensors if (new := rename(name)) is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda name: name.removeprefix(PREFIX), "put base_model.model. before the names"),
        (lambda name: name.replace("layers.1.", "layers.7."), "belong to no module"),
        (lambda name: None if "layers.1." in name else name, "has no tensors"),
    ],
)
def test_merge_of_an_adapter_that_is_not_applied_whole_is_refused(
    base: BaseModel,
    adapter: Path,
    tmp_path: Path,
    rename: Callable[[str], str | None],
    words: str,
):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        with pytest.raises(AdapterNotApplied, match=words):
            merge(
                base.path,
                renamed(adapter, tmp_path / "renamed", rename),
                tmp_path / "merged",
                PROMPTS,
            )
    assert not (tmp_path / "merged").exists()


def test_large_model_is_written_in_shards(base: BaseModel, adapter: Path, tmp_path: Path):
    merge(base.path, adapter, tmp_path / "merged", PROMPTS, max_shard_size="100KB")

    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()


def test_merge_with_a_wrong_scale_is_refused(base: BaseModel, tmp_path: Path):
    honest = write_adapter(tmp_path / "honest", use_rslora=True)
    flipped = write_adapter(tmp_path / "flipped", use_rslora=False)
    merge(base.path, flipped, tmp_path / "merged", PROMPTS, dtype="float32")
    reference = unmerged_logits(base.path, honest, PROMPTS)

    with pytest.raises(MergeRefused, match=r"KL divergence .* a logit differs by"):
        verify(tmp_path / "merged", reference, PROMPTS, BOUNDS["bfloat16"])


def test_refused_merge_leaves_nothing_behind(base: BaseModel, adapter: Path, tmp_path: Path):
    strict: dict[MergeDtype, Bounds] = {"bfloat16": Bounds(0.0, 1.0, 0.0)}
    before = sorted(tmp_path.iterdir())

    with pytest.raises(MergeRefused, match="as it was written"):
        merge(base.path, adapter, tmp_path / "merged", PROMPTS, dtype="bfloat16", bounds=strict)

    assert sorted(tmp_path.iterdir()) == before


def test_quantised_base_is_refused(adapter: Path, tmp_path: Path):
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(MergeRefused, match="full-precision model"):
        merge(tmp_path, adapter, tmp_path / "merged", PROMPTS)


def test_folder_that_exists_is_not_written_over(base: BaseModel, adapter: Path, tmp_path: Path):
    with pytest.raises(MergeRefused, match="exists already"):
        merge(base.path, adapter, adapter, PROMPTS)


def test_merge_without_prompts_is_refused(base: BaseModel, adapter: Path, tmp_path: Path):
    with pytest.raises(MergeRefused, match="at least one"):
        merge(base.path, adapter, tmp_path / "merged", [])


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_qlora_adapter_is_measured_on_both_bases(
    base: BaseModel, adapter: Path, tmp_path: Path, quantization
):
    method = MethodSettings(name="qlora", quantization=quantization)

    report = merge(base.path, adapter, tmp_path / "merged", PROMPTS, method=method)

    compared = report.quantized
    assert compared is not None
    assert compared.closer == "dequantised"
    assert compared.onto_dequantized.mean_kl < 1e-6 < compared.onto_full.mean_kl
    assert "closer to what training saw" in compared.sentence


def test_agreement_that_is_no_number_breaks_every_bound():
    nothing = Agreement(1, float("nan"), float("nan"), float("nan"), float("nan"), 1.0)

    assert len(EXACT.broken_by(nothing)) == 3
