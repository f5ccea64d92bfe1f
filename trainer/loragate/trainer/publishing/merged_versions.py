"""Merges a published version, checks the result, and attaches it to the version in the registry."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.files import inspect
from loragate.adapters.format.manifest import AdapterManifest
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import ArtifactRecord, Registry
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.settings import read_settings
from loragate.adapters.store import ArtifactStore
from loragate.trainer.data.example import Example
from loragate.trainer.evaluation.losses import general_paragraphs
from loragate.trainer.publishing.merging import MergeRefused, MergeReport, merge
from loragate.trainer.publishing.model_card import merged_card
from loragate.trainer.run.file import parse_run_file
from loragate.trainer.settings import MergeDtype, MethodSettings
from loragate.trainer.training.encoding import supervised

_GENERAL_PARAGRAPHS: Final = 4
_ROWS: Final = 16
_PROMPT_TOKENS: Final = 256


@dataclass(frozen=True, slots=True)
class MergedVersion:
    """A merged model in the store. `folder` is read-only and named by `artifact.digest`."""

    version: AdapterVersion
    artifact: ArtifactRecord
    folder: Path
    report: MergeReport


def merge_version(
    registry: Registry,
    version: AdapterVersion,
    base: BaseModel,
    home: Home,
    *,
    dtype: MergeDtype = "bfloat16",
    max_shard_size: str = "4GB",
    rows: Sequence[Example] = (),
    out: Path | None = None,
) -> MergedVersion:
    """Merge, check the result on the version's reference prompts, general text and `rows`, and
    attach it to the version.

    `out`, which must not exist, gets a copy. Raises MergeRefused, AdapterNotApplied, and what the
    registry and the store raise; nothing is attached then.
    """
    store = ArtifactStore(home.artifacts)
    weights = store.path(version.digest)
    manifest = inspect(weights).manifest
    _require_base(version, manifest, base)
    if out is not None and out.exists():
        raise MergeRefused(f"{out} exists already; give a folder that does not, or remove it")
    shared = read_settings()
    template = manifest.contract.chat_template or shared.read_template()
    renderer = Renderer.load(
        base.path,
        template,
        shared.special_tokens_in_text,
        variables=manifest.contract.chat_template_kwargs,
    )
    adapter = AdapterName(version.tenant, version.name)
    with store.scratch() as scratch:  # the store removes what a killed merge leaves
        folder = scratch / "merged"
        report = merge(
            base.path,
            weights,
            folder,
            _prompts(manifest, renderer, rows),
            dtype=dtype,
            max_shard_size=max_shard_size,
            method=_method(manifest),
            chat_template=template,
        )
        (folder / "README.md").write_text(merged_card(version, base.name, report), "utf-8")
        artifact = registry.merges.attach(adapter, version.number, folder, "trainer")
        if out is not None:
            shutil.move(folder, out)
    return MergedVersion(version, artifact, store.path(artifact.digest), report)


def _require_base(version: AdapterVersion, manifest: AdapterManifest, base: BaseModel) -> None:
    trained_on = manifest.base_model_digest
    if trained_on not in ("", base.digest):
        raise MergeRefused(
            f"{version} was trained on another base model ({trained_on}) than {base.name} "
            f"({base.digest}); name the one it was trained on with --base"
        )


def _prompts(
    manifest: AdapterManifest, renderer: Renderer, rows: Sequence[Example]
) -> list[tuple[int, ...]]:
    reference = manifest.reference.prompts if manifest.reference else ()
    general = [
        renderer.encode(text, add_special_tokens=True)
        for text in general_paragraphs()[:_GENERAL_PARAGRAPHS]
    ]
    held_out = [supervised(renderer, row)[-1].input_ids for row in rows[:_ROWS]]
    return [
        ids[:_PROMPT_TOKENS]
        for ids in (*(each.token_ids for each in reference), *held_out, *general)
    ]


def _method(manifest: AdapterManifest) -> MethodSettings | None:
    """The settings of the training, where the lineage has them."""
    settings = manifest.lineage.get("resolved_toml")
    return parse_run_file(settings, Path("lineage")).method if isinstance(settings, str) else None
