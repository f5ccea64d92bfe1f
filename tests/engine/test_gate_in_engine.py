"""The gate's last part with real PEFT adapters: what loads well and is not what was trained.

Every folder here passes the gate's static part, which reads files; in float32, so that an honest
adapter is within a thousandth of its reference. bfloat16 would need an engine of its own.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from loragate.adapters.base_models.preparation import load
from loragate.adapters.format.files import CONFIG, MANIFEST, WEIGHTS, inspect
from loragate.adapters.format.reference import Reference
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.records import VersionRecord
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.states import AdapterState
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.store import ArtifactStore
from loragate.server.cli.main import build
from loragate.trainer.publishing.reference import compute_reference, reference_of
from support.engines.questions import QUESTIONS, Job
from support.models.random_adapters import make_random_adapter
from support.server.real_server import Served
from support.waiting import wait_for

MODEL = "smollm2-135m-instruct"
SETTLED = {AdapterState.READY, AdapterState.FAILED}
SETTLES_IN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Trained:
    """Folders as a training leaves them, and what they said there."""

    base: Path
    plain: Path
    rslora: Path
    plain_reference: Reference
    rslora_reference: Reference
    elsewhere_reference: Reference  # of the plain one, on another base model of the same shapes


@dataclass(frozen=True, slots=True)
class Gated:
    """An adapter whose champion is sound, on the running server."""

    served: Served
    registry: Registry
    name: AdapterName
    key: str

    def promote(self, folder: Path) -> VersionRecord:
        """Publishes and promotes it, and waits for what the server makes of it."""
        version = self.registry.versions.publish(self.name, folder)
        self.registry.aliases.set(self.name, "champion", version.number)
        assert wait_for(lambda: self.newest().state in SETTLED, SETTLES_IN_SECONDS), self.newest()
        return self.newest()

    def newest(self) -> VersionRecord:
        return self.registry.versions.show(self.name).versions[0]

    def answers(self) -> str:
        """The version that answers requests by the adapter's plain name."""
        reply = httpx.post(
            f"{self.served.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {self.key}"},
            json={
                "model": self.name.name,
                "messages": Job("", QUESTIONS[0]).messages,
                "max_tokens": 1,
            },
            timeout=60,
        )
        assert reply.is_success, reply.text
        return reply.headers["x-loragate-adapter"]

    def page(self) -> str:
        environment = {"LORAGATE_HOME": str(self.served.world.home.root)}
        shown = CliRunner().invoke(build(), ["adapter", "show", str(self.name)], env=environment)
        assert shown.exit_code == 0, shown.output
        return shown.stdout


@pytest.fixture(scope="module")
def trained(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    base, root = served.world.home.models / MODEL, tmp_path_factory.mktemp("trained")
    renderer = Renderer.load(base)
    prompts = [renderer.render(Job("", question).messages) for question in QUESTIONS[:4]]
    # As far from the base as trained ones, on the last words of a prompt too.
    plain = make_random_adapter(root / "plain", base, rank=16, seed=11, strength=1.2)
    rslora = make_random_adapter(
        root / "rslora", base, rank=16, seed=12, use_rslora=True, strength=1.2
    )
    elsewhere = PeftModel.from_pretrained(_other_base(base), str(plain))
    return Trained(
        base,
        plain,
        rslora,
        compute_reference(base, plain, prompts),
        compute_reference(base, rslora, prompts),
        reference_of(elsewhere, prompts),
    )


def _other_base(base: Path) -> torch.nn.Module:
    """A model of the same shapes, as after some more training: each layer a little different."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear) and layer is not model.lm_head:
                layer.weight.add_(torch.randn_like(layer.weight) * layer.weight.std() * 0.1)
    return model


@pytest.fixture(scope="module")
def gated(
    served: Served, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gated]:
    home = served.world.home
    with Registry(home.database_url, ArtifactStore(home.artifacts)) as registry:
        key = registry.tenants.create("gatehouse").key
        gated = Gated(served, registry, AdapterName("gatehouse", "clerk"), key)
        sound = folder_of(trained.plain, tmp_path_factory.mktemp("sound") / "v1")
        first = gated.promote(refer(sound, trained.plain_reference))
        assert first.state is AdapterState.READY, first.reason
        yield gated
        registry.tenants.delete("gatehouse")


def folder_of(adapter: Path, copy: Path) -> Path:
    return Path(shutil.copytree(adapter, copy))


def refer(folder: Path, reference: Reference, base_model_digest: str = "") -> Path:
    manifest = inspect(folder).manifest
    manifest = replace(manifest, reference=reference, base_model_digest=base_model_digest)
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def configure(folder: Path, **settings: object) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def scale_b(folder: Path, factor: float) -> Path:
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t * factor if "lora_B" in n else t for n, t in tensors.items()}, folder / WEIGHTS)
    return folder


def assert_refused(gated: Gated, folder: Path, code: str, sentence: str) -> None:
    before = gated.answers()

    refused = gated.promote(folder)

    assert refused.state is AdapterState.FAILED
    assert refused.reason.startswith(f"{code}: ")
    assert sentence in refused.reason
    page = gated.page()
    assert f"{refused.version.version} was to serve as champion and failed ({code})" in page
    assert sentence in page
    assert gated.answers() == before
    assert gated.registry.versions.show(gated.name).aliases["champion"].serving != refused.version


def test_rslora_adapter_is_served_as_it_was_trained(
    gated: Gated, trained: Trained, tmp_path: Path
) -> None:
    folder = refer(folder_of(trained.rslora, tmp_path / "copy"), trained.rslora_reference)

    version = gated.promote(folder)

    assert version.state is AdapterState.READY, version.reason
    assert wait_for(lambda: gated.answers() == str(version.version), 10)


def test_rslora_adapter_that_is_read_as_plain_is_refused(
    gated: Gated, trained: Trained, tmp_path: Path
) -> None:
    folder = configure(folder_of(trained.rslora, tmp_path / "copy"), use_rslora=False)

    refer(folder, trained.rslora_reference)

    assert_refused(gated, folder, "reference_mismatch", "its scale is read wrongly: use_rslora")


def test_plain_adapter_that_is_read_as_rslora_is_refused(
    gated: Gated, trained: Trained, tmp_path: Path
) -> None:
    folder = configure(folder_of(trained.plain, tmp_path / "copy"), use_rslora=True)

    refer(folder, trained.plain_reference)

    assert_refused(gated, folder, "reference_mismatch", "its scale is read wrongly: use_rslora")


def test_adapter_of_another_base_of_the_same_shapes_is_refused_whatever_its_manifest_says(
    gated: Gated, trained: Trained, tmp_path: Path
) -> None:
    folder = folder_of(trained.plain, tmp_path / "copy")

    refer(folder, trained.elsewhere_reference, load(trained.base).digest)

    assert_refused(gated, folder, "reference_mismatch", "The base model alone differs")


def test_weights_of_another_run_are_refused(gated: Gated, trained: Trained, tmp_path: Path) -> None:
    folder = make_random_adapter(tmp_path / "other", trained.base, rank=16, seed=99)

    refer(folder, trained.plain_reference)

    assert_refused(gated, folder, "reference_mismatch", "differ from the manifest's reference")


def test_adapter_that_changes_nothing_is_refused(
    gated: Gated, trained: Trained, tmp_path: Path
) -> None:
    folder = scale_b(folder_of(trained.plain, tmp_path / "copy"), 1e-6)

    assert_refused(gated, folder, "no_effect", "says what the base model says")
