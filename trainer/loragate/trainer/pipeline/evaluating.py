"""Evaluates a trained run: its adapter, the base, and the champion where there is one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.names import CHAMPION, AdapterName
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.store import ArtifactStore
from loragate.adapters.temporary_folders import temporary_folder
from loragate.trainer.data.example import Example
from loragate.trainer.data.splits import SPLITS
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.evaluator import Comparison, OpenModels, System, evaluate
from loragate.trainer.evaluation.report import write_report
from loragate.trainer.evaluation.served import BASE, ServedModels, Serving, running, started
from loragate.trainer.publishing.publishing import assemble
from loragate.trainer.registry import open_registry
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import Run
from loragate.trainer.settings import resolved
from loragate.trainer.training.encoding import Encoder
from loragate.trainer.training.plan import with_answer_limit

_SWAP_TOKENS: Final = 64  # that a swapped name may add to a prompt
_BLOCK: Final = 128  # tokens; the length limit is a multiple of it


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that runs already, and a tenant's key there. `new` and `champion` are these models'
    names there; an empty `champion` leaves it out of the evaluation.
    """

    url: str
    key: str
    new: str
    champion: str = ""


async def evaluate_run(run: Run, remote: Remote | None = None) -> Evaluation:
    """Evaluate on a server of its own or on `remote`, and write evaluation.json and report.html
    into the run's folder.

    The settings of `run` are resolved. Raises EvaluationError, and what reading the run, its data
    and its base model raises.
    """
    base = run.base()
    rows = run.test_rows()
    renderer = run.renderer(base)
    run = _with_answer_limit(run, renderer)
    settings = run.settings
    with temporary_folder("candidate") as scratch:
        comparison = Comparison(
            title=settings.publish.adapter or run.folder.root.name,
            base=base,
            systems=_systems(run, base, scratch, remote),
            rows=rows,
            renderer=renderer,
            data_digest=run.folder.result().data_digest,
            served_by=remote.url if remote else "a loragate server in float32",
        )
        open_models = _open_models(
            _serving(run, renderer, rows), remote, settings.evaluation.concurrency
        )
        evaluation = await evaluate(comparison, settings.evaluation, open_models, run.progress)
    write_evaluation(evaluation, run.folder)
    return evaluation


def write_evaluation(evaluation: Evaluation, folder: RunFolder) -> Path:
    """Writes evaluation.json and the report, whose path it returns. Raises RunFolderError."""
    evaluation.write(folder.evaluation)
    return write_report(evaluation, folder.evaluation)


def _systems(run: Run, base: BaseModel, scratch: Path, remote: Remote | None) -> tuple[System, ...]:
    found = [System("base", base.name, base.path, None, BASE)]
    champion = _champion(run, base)
    if champion is not None and (remote is None or remote.champion):
        title, folder = champion
        name = remote.champion if remote else CHAMPION
        found.append(System(CHAMPION, title, base.path, folder, name))
    if run.settings.method.name == "full":
        found.append(System("new", "this run", run.folder.adapter, None, BASE))
    else:
        folder = assemble(run.folder, scratch / "new")
        name = remote.new if remote else "new"
        found.append(System("new", "this run", base.path, folder, name))
    return tuple(found)


def _champion(run: Run, base: BaseModel) -> tuple[str, Path] | None:
    """Title and folder of the adapter's champion; None where there is none for this base model."""
    if not run.settings.publish.adapter:
        return None
    adapter = AdapterName.parse(run.settings.publish.adapter)
    with open_registry(run.home) as registry:
        try:
            page = registry.versions.show(adapter)
        except LookupError:  # no such tenant or adapter yet
            return None
        alias = page.aliases.get(CHAMPION)
        if alias is None:
            return None
        version = alias.serving or alias.desired
        record = next(each for each in page.versions if each.version == version)
        if record.manifest.base_model_digest not in ("", base.digest):
            return None
        return str(version), ArtifactStore(run.home.artifacts).path(version.digest)


def _with_answer_limit(run: Run, renderer: Renderer) -> Run:
    """It is decided with the training, except where the run file was changed since."""
    if run.settings.evaluation.max_tokens != "auto":
        return run
    encoder = Encoder(renderer, sys.maxsize, "drop", run.settings.data.system_prompt)
    splits = run.splits().splits
    encoded = [encoder.encode(splits[name], name) for name in SPLITS]
    evaluation = with_answer_limit(run.settings.evaluation, encoded)
    return dataclasses.replace(
        run, settings=msgspec.structs.replace(run.settings, evaluation=evaluation)
    )


def _serving(run: Run, renderer: Renderer, rows: Sequence[Example]) -> Serving:
    longest = max(len(renderer.render(row.turns()[:-1], tools=row.tool_list())) for row in rows)
    needed = longest + resolved(run.settings.evaluation.max_tokens) + _SWAP_TOKENS
    # On a CPU in float32 an answer does not depend on what else is asked at the same moment.
    dtype = "float32" if run.settings.training.device == "cpu" else "auto"
    return Serving(
        run.settings.model.base,
        run.home.models,
        -(-needed // _BLOCK) * _BLOCK,
        dtype,
        run.shared.chat_template,
        run.shared.special_tokens_in_text,
        resolved(run.settings.model.chat_template_kwargs),
        run.shared.reasoning_parser,
        run.shared.tool_call_parser,
    )


def _open_models(serving: Serving, remote: Remote | None, concurrency: int) -> OpenModels:
    def open_them(systems: Sequence[System]) -> AbstractAsyncContextManager[ServedModels]:
        if remote is not None:
            return running(remote.url, remote.key, concurrency, serving.chat_template_kwargs)
        adapters = {each.served_as: each.adapter for each in systems if each.adapter}
        is_base = any(each.name == "base" for each in systems)
        source = serving.source if is_base else str(systems[0].model)
        return started(dataclasses.replace(serving, source=source), adapters, concurrency)

    return open_them
