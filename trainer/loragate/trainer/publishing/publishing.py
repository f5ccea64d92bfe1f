"""Publishes a run's adapter as a version, with lineage, reference and model card."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from loragate.adapters.errors import LoragateError, NotMerged
from loragate.adapters.format.files import CONFIG, MANIFEST, WEIGHTS, inspect
from loragate.adapters.format.manifest import Contract, Fact
from loragate.adapters.names import CHAMPION, AdapterName, AdapterVersion
from loragate.adapters.registry.registry import Registry
from loragate.adapters.store import ArtifactStore
from loragate.adapters.temporary_folders import temporary_folder
from loragate.trainer.data.seen import SeenRows
from loragate.trainer.data.splits import SplitFolder
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.publishing.merged_versions import MergedVersion, merge_version
from loragate.trainer.publishing.model_card import model_card
from loragate.trainer.publishing.reference import compute_reference, write_reference
from loragate.trainer.registry import find_version, open_registry
from loragate.trainer.run.file import RunFile, for_others, read_run_file, template_of
from loragate.trainer.run.folder import RunFolder, RunResult, write_whole
from loragate.trainer.run.run import Run
from loragate.trainer.training.encoding import supervised

_ACTOR = "trainer"


class PublishRefused(LoragateError):
    """A run that has nothing to publish, or does not meet its requirements."""


class _Noted(msgspec.Struct, frozen=True):
    """What published.json holds."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Published:
    """What was added to the registry; `merged` where the run's settings ask for it."""

    version: AdapterVersion
    merged: MergedVersion | None


def publish_run(run: Run, evaluation: Evaluation | None) -> Published:
    """Assemble, compute the reference for the publish check, publish, and merge where asked for.

    A run that was published already, as when its merge failed, is not published again. The settings
    of `run` are resolved. Raises PublishRefused, TrainingError for an adapter whose
    effect is too small to check, what `registry.versions.publish` raises, and MergeRefused once the
    version is published.
    """
    wanted, base = run.settings.publish, run.base()
    rows = run.test_rows()
    renderer = run.renderer(base)
    with (
        open_registry(run.home, base) as registry,
        temporary_folder("publish", run.home.root) as scratch,
    ):
        version = published_as(registry, run)
        if version is None:
            folder = assemble(run.folder, scratch / "adapter", evaluation)
            trained_rows(run, registry).write(folder)
            if wanted.reference_prompts:
                prompts = [supervised(renderer, row)[-1].input_ids for row in rows]
                reference = compute_reference(base.path, folder, prompts, wanted.reference_prompts)
                write_reference(folder, reference)
            version = publish(registry, folder, run.settings, evaluation)
            _note(run.folder, version)
        merged = None
        if wanted.merge and not _is_merged(registry, version):
            merged = merge_version(
                registry,
                version,
                base,
                run.home,
                dtype=wanted.merge_dtype,
                max_shard_size=wanted.max_shard_size,
                rows=rows,
            )
    return Published(version, merged)


def trained_rows(run: Run, registry: Registry) -> SeenRows:
    """What the run's adapter has seen: the rows that it was trained on, those it could replay, and
    what the version that it goes on from has seen.
    """
    settings = run.settings
    seen = SeenRows.of(run.splits().splits["train"])
    if settings.data.replay:
        seen |= SeenRows.of(SplitFolder.read(run.root / settings.data.replay).splits["train"])
    if settings.model.continue_from:
        parent = find_version(registry, settings.model.continue_from)
        seen |= SeenRows.read(ArtifactStore(run.home.artifacts).path(parent.digest)) or SeenRows()
    return seen


def with_adapter(folder: RunFolder, adapter: str) -> None:
    """Has a trained run be published as this adapter. Raises InvalidName and RunFolderError."""
    AdapterName.parse(adapter)
    settings = folder.resolved()
    wanted = msgspec.structs.replace(settings.publish, adapter=adapter)
    folder.write_resolved(msgspec.structs.replace(settings, publish=wanted))


def published_as(registry: Registry, run: Run) -> AdapterVersion | None:
    """The version of [publish] adapter that the run was published as earlier, if it was and the
    registry still has it.
    """
    path = run.folder.published_file
    try:
        noted = msgspec.json.decode(path.read_bytes(), type=_Noted)
        adapter = AdapterName.parse(run.settings.publish.adapter)
        versions = registry.versions.show(adapter).versions
    except (OSError, msgspec.MsgspecError, LookupError):
        return None
    found = (each.version for each in versions if str(each.version) == noted.version)
    return next((each for each in found if each.digest == noted.digest), None)


def _note(folder: RunFolder, version: AdapterVersion) -> None:
    noted = _Noted(version=str(version), digest=version.digest)
    write_whole(folder.published_file, msgspec.json.encode(noted) + b"\n")


def _is_merged(registry: Registry, version: AdapterVersion) -> bool:
    try:
        registry.merges.folder(AdapterName(version.tenant, version.name), version.number)
    except NotMerged:
        return False
    return True


def assemble(run: RunFolder, out: Path, evaluation: Evaluation | None = None) -> Path:
    """Write weights, configuration, manifest and card into `out`, which must not exist, and return
    it. Raises PublishRefused for a full training, which makes no adapter.
    """
    settings, result = run.resolved(), run.result()
    if result.method == "full":
        raise PublishRefused(
            "a full training changes the base model itself, so there is no adapter to publish; "
            f"serve it alone with `loragate serve --model {run.adapter}`"
        )
    out.mkdir(parents=True)
    shutil.copyfile(run.adapter / WEIGHTS, out / WEIGHTS)
    shutil.copyfile(run.adapter / CONFIG, out / CONFIG)
    (out / "README.md").write_text(model_card(settings, result, evaluation), encoding="utf-8")
    manifest = dataclasses.replace(
        inspect(out).manifest,
        base_model_digest=result.base_model_digest,
        chat_template_hash=result.chat_template_hash,
        tokenizer_hash=result.tokenizer_hash,
        metrics=MappingProxyType(
            result.metrics | (evaluation.figures() if evaluation is not None else {})
        ),
        lineage=MappingProxyType(_lineage(run, settings, result)),
        contract=_contract(run, settings, result),
    )
    (out / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return out


def publish(
    registry: Registry, folder: Path, settings: RunFile, evaluation: Evaluation | None
) -> AdapterVersion:
    """Publish an assembled folder as the next version, and set it as champion where the run asks
    for that. Raises PublishRefused where a requirement does not hold, and what
    `registry.versions.publish` raises.
    """
    if not settings.publish.adapter:
        raise PublishRefused(
            "the run names no adapter to publish; set [publish] adapter = 'TENANT/ADAPTER'"
        )
    if evaluation is not None and not evaluation.requirements.holds:
        raise PublishRefused(evaluation.requirements.sentence)
    adapter = AdapterName.parse(settings.publish.adapter)
    version = registry.versions.publish(adapter, folder, _ACTOR)
    if settings.publish.promote:
        registry.aliases.set(adapter, CHAMPION, version.number, _ACTOR, "promoted by its run")
    return version


def _contract(run: RunFolder, settings: RunFile, result: RunResult) -> Contract:
    variables = settings.model.chat_template_kwargs
    return Contract(
        chat_template=template_of(settings, run.root),
        system_prompt=settings.data.system_prompt or None,
        sampling_defaults=MappingProxyType(msgspec.to_builtins(settings.publish.sampling)),
        max_tokens_cap=settings.publish.max_tokens_cap,
        stop=settings.publish.stop,
        stop_token_ids=result.stop_token_ids,
        # "auto" in a run that was trained before there were such variables: it had none.
        chat_template_kwargs=MappingProxyType({} if variables == "auto" else dict(variables)),
    )


def _lineage(run: RunFolder, settings: RunFile, result: RunResult) -> dict[str, Fact]:
    packages = {f"package.{name}": version for name, version in result.packages.items()}
    quantization = settings.method.quantization if result.method == "qlora" else ""
    return {
        "data_digest": result.data_digest,
        "base_model": result.base_model,
        "continued_from": result.continued_from,
        "method": result.method,
        "quantization": quantization,
        "seed": result.seed,
        "steps": result.steps,
        "training_tokens": result.training_tokens,
        "training_seconds": round(result.training_seconds, 1),
        "machine": result.machine,
        "adapter_digest": result.adapter_digest,
        "run_toml": for_others(read_run_file(run.run_file)).to_toml(),
        "resolved_toml": for_others(settings).to_toml(),
    } | packages
