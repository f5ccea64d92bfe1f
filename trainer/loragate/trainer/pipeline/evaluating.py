"""The evaluation of a finished run: its adapter against the base and against what serves now."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.progress import Progress

from loragate.adapters.base_models.preparation import BaseModel, find
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterName
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.settings import read_settings
from loragate.adapters.store import ArtifactStore
from loragate.adapters.temporary_folders import temporary_folder
from loragate.trainer.data.example import Example
from loragate.trainer.evaluation.contenders import Contender
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.evaluator import OpenModels, Plan, evaluate
from loragate.trainer.evaluation.report import write_report
from loragate.trainer.evaluation.rows import read_test_rows
from loragate.trainer.evaluation.served import BASE, ServedModels, Serving, running, started
from loragate.trainer.publishing.publishing import assemble
from loragate.trainer.registry import open_registry
from loragate.trainer.run.file import RunFile
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.training.resolve import template_of

_ROOM: Final = 64  # tokens that a swapped name may add to a prompt
_BLOCK: Final = 128


@dataclass(frozen=True, slots=True)
class Remote:
    """A server that runs already, asked with a tenant's key. `new` and `champion` are the names of
    these models there; without `champion` there is none.
    """

    url: str
    key: str
    new: str
    champion: str = ""


async def evaluate_run(
    run: RunFolder, home: Home, progress: Progress, remote: Remote | None = None
) -> Evaluation:
    """Evaluate, and write evaluation.json and report.html into the run's folder.

    Raises EvaluationError, and what reading the run, its data and its base model raises.
    """
    settings = run.resolved()
    base = find(settings.model.base, home.models)
    rows = read_test_rows(run, settings)
    renderer = Renderer.load(base.path, template_of(settings, run.root))
    with temporary_folder("candidate") as scratch:
        contenders = _contenders(run, settings, home, base, scratch, remote)
        served_by = remote.url if remote else "a loragate server in float32"
        digest = run.result().data_digest
        plan = Plan(_title(run, settings), base, contenders, rows, renderer, digest, served_by)
        serving = _serving(settings, renderer, rows, home)
        concurrency = settings.evaluation.concurrency
        open_models = _open_models(serving, remote, concurrency)
        evaluation = await evaluate(plan, settings.evaluation, open_models, progress)
    write_evaluation(evaluation, run)
    return evaluation


def write_evaluation(evaluation: Evaluation, run: RunFolder) -> Path:
    """evaluation.json, and the report, whose path is returned."""
    evaluation.write(run.evaluation)
    return write_report(evaluation, run.evaluation)


def _contenders(
    run: RunFolder,
    settings: RunFile,
    home: Home,
    base: BaseModel,
    scratch: Path,
    remote: Remote | None,
) -> tuple[Contender, ...]:
    found = [Contender("base", base.name, base.path, None, BASE)]
    champion = _champion(settings, home, base)
    if champion is not None and (remote is None or remote.champion):
        title, folder = champion
        name = remote.champion if remote else "champion"
        found.append(Contender("champion", title, base.path, folder, name))
    if settings.method.name == "full":
        found.append(Contender("new", "this run", run.adapter, None, BASE))
    else:
        folder = assemble(run, scratch / "new")
        name = remote.new if remote else "new"
        found.append(Contender("new", "this run", base.path, folder, name))
    return tuple(found)


def _champion(settings: RunFile, home: Home, base: BaseModel) -> tuple[str, Path] | None:
    """What the adapter's name means now, unless that is for another base model."""
    if not settings.publish.adapter:
        return None
    adapter = AdapterName.parse(settings.publish.adapter)
    with open_registry(home) as registry:
        try:
            page = registry.show(adapter)
        except LookupError:  # no such tenant or adapter yet
            return None
        alias = page.aliases.get("champion")
        if alias is None:
            return None
        version = alias.serving or alias.desired
        record = next(each for each in page.versions if each.version == version)
        if record.manifest.base_model_digest not in ("", base.digest):
            return None
        return str(version), ArtifactStore(home.artifacts).path(version.digest)


def _serving(settings: RunFile, renderer: Renderer, rows: Sequence[Example], home: Home) -> Serving:
    longest = max(len(renderer.render(row.turns()[:-1])) for row in rows)
    needed = longest + settings.evaluation.max_tokens + _ROOM
    # On a CPU in float32 an answer does not depend on what else is asked at the same moment.
    dtype = "float32" if settings.training.device == "cpu" else "auto"
    return Serving(
        settings.model.base,
        home.models,
        -(-needed // _BLOCK) * _BLOCK,
        dtype,
        read_settings().chat_template,
    )


def _open_models(serving: Serving, remote: Remote | None, concurrency: int) -> OpenModels:
    def open_them(contenders: Sequence[Contender]) -> AbstractAsyncContextManager[ServedModels]:
        if remote is not None:
            return running(remote.url, remote.key, concurrency)
        adapters = {each.served_as: each.adapter for each in contenders if each.adapter}
        is_base = any(each.name == "base" for each in contenders)
        source = serving.source if is_base else str(contenders[0].model)
        return started(dataclasses.replace(serving, source=source), adapters, concurrency)

    return open_them


def _title(run: RunFolder, settings: RunFile) -> str:
    return settings.publish.adapter or run.root.name
