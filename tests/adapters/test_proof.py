"""What PEFT says of an adapter is published with it, or why it says nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.certificate import Certificate
from loragate.adapters.format.files import CONFIG, MANIFEST, WEIGHTS, inspect
from loragate.adapters.format.reference import Reference
from loragate.adapters.importing import proof
from loragate.adapters.importing.importing import Importer
from loragate.adapters.importing.program import convert
from loragate.adapters.importing.proof import Prover
from loragate.trainer.publishing.proof_program import prove
from loragate.trainer.publishing.reference import compute_reference
from support.models.tiny_llama import adapt, save, tiny_llama, train
from support.training.tiny_runs import write_model

SIZES = {"vocab_size": 320, "intermediate_size": 128, "tie_word_embeddings": True}


class Counted:
    """The program's function in this process, since starting one takes seconds."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        self.jobs.append(job)
        return prove(job)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("base")
    write_model(folder)
    # Of the same shapes, with opinions that a wrong scale changes.
    tiny_llama(**SIZES, eos_token_id=256, pad_token_id=256).save_pretrained(folder)
    return BaseModel("tiny", folder, "sha256:base")


@pytest.fixture
def asked() -> Counted:
    return Counted()


@pytest.fixture
def prover(base: BaseModel, asked: Counted, tmp_path: Path) -> Prover:
    return Prover(base, tmp_path / "cache", do=asked)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save(adapt(tiny_llama(**SIZES)), tmp_path / "adapter")


def proved(
    prover: Prover, folder: Path, source: Path | None = None, chats: Path | None = None
) -> tuple[Certificate, Reference | None]:
    with prover.proved(folder, source or folder, chats) as found:
        assert found.certificate is not None
        manifest = inspect(found.folder).manifest
        assert manifest.certificate == found.certificate
        assert (found.folder / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
        return found.certificate, manifest.reference


def refusal(prover: Prover, folder: Path, source: Path | None = None) -> str:
    with (
        pytest.raises(InvalidAdapter) as refused,
        prover.proved(folder, source or folder),
    ):
        pass
    return refused.value.code


def copied(folder: Path, copy: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(folder, copy)
    settings = json.loads((copy / CONFIG).read_text())
    change(settings)
    (copy / CONFIG).write_text(json.dumps(settings))
    return copy


def scaled(folder: Path, copy: Path, factor: float) -> Path:
    shutil.copytree(folder, copy)
    tensors = load_file(copy / WEIGHTS)
    save_file({n: t * factor if "lora_B" in n else t for n, t in tensors.items()}, copy / WEIGHTS)
    return copy


def test_adapter_without_a_reference_gets_what_peft_says(
    prover: Prover, base: BaseModel, adapter: Path
) -> None:
    certificate, reference = proved(prover, adapter)

    assert reference is not None
    again = compute_reference(
        base.path, adapter, [prompt.token_ids for prompt in reference.prompts], 8
    )
    assert reference.adapter == pytest.approx(again.adapter, abs=2e-4)
    assert reference.base == pytest.approx(again.base, abs=2e-4)
    assert certificate.loaded == "source"
    assert "peft" in certificate.libraries
    assert certificate.effect == pytest.approx(reference.effect, abs=1e-3)


def test_certificate_says_how_far_half_and_twice_the_scale_are(
    prover: Prover, base: BaseModel, adapter: Path, tmp_path: Path
) -> None:
    certificate, reference = proved(prover, adapter)
    assert reference is not None

    for factor, said in ((0.5, certificate.half), (2.0, certificate.double)):
        folder = scaled(adapter, tmp_path / str(factor), factor)
        prompts = [prompt.token_ids for prompt in reference.prompts]
        other = compute_reference(base.path, folder, prompts, 8)
        difference = sum(map(abs, map(float.__sub__, other.adapter, reference.adapter)))
        assert said == pytest.approx(difference / len(other.adapter), abs=1e-3)
        assert said > reference.allowed_at(0.0)


def test_adapter_that_brings_its_reference_is_published_as_it_is(
    prover: Prover, asked: Counted, adapter: Path
) -> None:
    _, reference = proved(prover, adapter)
    manifest = replace(inspect(adapter).manifest, reference=reference)
    (adapter / MANIFEST).write_text(manifest.to_json())
    asked.jobs.clear()

    with prover.proved(adapter, adapter) as found:
        assert (found.folder, found.certificate) == (adapter, None)
    assert asked.jobs == []


def test_same_adapter_is_computed_once_and_its_manifest_is_the_same(
    prover: Prover, asked: Counted, adapter: Path
) -> None:
    assert prover.will_compute(adapter, adapter)
    first = proved(prover, adapter)
    assert not prover.will_compute(adapter, adapter)

    assert proved(prover, adapter) == first
    assert len(asked.jobs) == 1
    assert prover.will_compute(copied(adapter, adapter.with_name("b"), weaken), adapter)


def weaken(settings: dict[str, Any]) -> None:
    settings["lora_alpha"] = 4


def test_repair_is_held_against_what_peft_makes_of_the_source(
    prover: Prover, base: BaseModel, asked: Counted, tmp_path: Path
) -> None:
    vera = get_peft_model(tiny_llama(**SIZES), VeraConfig(r=8, target_modules=["q_proj"]))
    torch.manual_seed(4)
    train(vera, 0.5)  # pyright: ignore[reportArgumentType]
    vera.save_pretrained(str(tmp_path / "vera"))
    importer = Importer(BaseProfile.read(base), base.path, 64, convert)

    with importer.imported(tmp_path / "vera") as imported:
        certificate, _ = proved(prover, imported.folder, tmp_path / "vera")

    assert certificate.loaded == "source"
    assert certificate.conversion == pytest.approx(0, abs=1e-4)


def test_adapter_that_is_not_what_its_source_is_is_refused(
    prover: Prover, adapter: Path, tmp_path: Path
) -> None:
    assert refusal(prover, copied(adapter, tmp_path / "b", weaken), adapter) == "inexact_import"


def test_where_peft_cannot_load_the_source_the_reason_stands_in_the_certificate(
    prover: Prover, adapter: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(adapter, bare)
    tensors = load_file(adapter / WEIGHTS)
    save_file({n.removeprefix("base_model.model."): t for n, t in tensors.items()}, bare / WEIGHTS)

    certificate, reference = proved(prover, adapter, bare)

    assert certificate.loaded == "published"
    assert "belong to no module" in certificate.reason
    assert reference is not None


@pytest.mark.parametrize(("factor", "code"), [(0.0, "no_effect"), (1e38, "not_finite")])
def test_adapter_without_effect_or_numbers_is_refused(
    prover: Prover, adapter: Path, tmp_path: Path, factor: float, code: str
) -> None:
    assert refusal(prover, scaled(adapter, tmp_path / "b", factor)) == code


def test_given_chats_are_scored_beside_the_fixed_ones(
    prover: Prover, adapter: Path, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes, hello."}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": turns}) + "\n")

    certificate, reference = proved(prover, adapter, chats=chats)

    assert reference is not None
    said = [bytes(i for i in p.token_ids if 0 < i < 128) for p in reference.prompts]
    assert len(said) == certificate.prompts == 4
    assert proved(prover, adapter)[1] != reference
    chats.write_text("no JSON\n")
    with pytest.raises(InvalidAdapter, match="line 1"), prover.proved(adapter, adapter, chats):
        pass


def test_without_a_base_model_or_peft_the_certificate_says_so(
    base: BaseModel, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere, reference = proved(Prover(None, tmp_path), adapter)
    assert (nowhere.loaded, reference) == ("nothing", None)
    assert "base model is not prepared" in nowhere.reason

    monkeypatch.setattr(proof, "find_spec", lambda name: None if name == "peft" else object())
    without, reference = proved(Prover(base, tmp_path), adapter)
    assert (without.loaded, reference) == ("nothing", None)
    assert "peft is not installed" in without.reason
    assert "not computed by PEFT" in without.sentence


def test_process_of_its_own_computes_the_same_and_reaches_no_network(
    prover: Prover, base: BaseModel, adapter: Path, tmp_path: Path
) -> None:
    apart = Prover(base, tmp_path / "other")

    assert proved(apart, adapter) == proved(prover, adapter)
