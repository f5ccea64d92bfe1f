"""Evaluates a trained run: its adapter, the base, and the champion where there is one."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec
from transformers import AutoConfig

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.errors import StoreError
from loragate.adapters.names import CHAMPION, AdapterName, AdapterVersion
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.settings import engine_settings
from loragate.adapters.store import ArtifactStore
from loragate.adapters.temporary_folders import temporary_folder
from loragate.trainer.data.example import Example
from loragate.trainer.data.seen import SeenRows
from loragate.trainer.data.splits import SPLITS, SplitFolder
from loragate.trainer.errors import EvaluationError
from loragate.trainer.evaluation.comparison import Comparison, OpenModels, System
from loragate.trainer.evaluation.contenders import TITLES
from loragate.trainer.evaluation.evaluation import Evaluation
from loragate.trainer.evaluation.evaluator import evaluate
from loragate.trainer.evaluation.judge_client import VerdictFile
from loragate.trainer.evaluation.judges import key_of
from loragate.trainer.evaluation.judging import with_judgements
from loragate.trainer.evaluation.measures import Measures
from loragate.trainer.evaluation.report import write_report
from loragate.trainer.evaluation.requirements import FIRST
from loragate.trainer.evaluation.served import BASE, ServedModels, Serving, running, started
from loragate.trainer.pipeline.decision import trainings
from loragate.trainer.pipeline.test_sets import more_tests, seen_by_any, sources_of
from loragate.trainer.publishing.publishing import assemble, published_as
from loragate.trainer.registry import open_registry
from loragate.trainer.run.folder import RunFolder
from loragate.trainer.run.run import Run
from loragate.trainer.settings import EvaluationSettings, resolved
from loragate.trainer.training.encoding import Encoder
from loragate.trainer.training.plan import with_answer_limit

VERDICTS: Final = "verdicts.jsonl"  # what judges said, by question
_SWAP_TOKENS: Final = 64  # that a swapped name may add to a prompt
_LONGEST_PROMPT: Final = 4096  # tokens, of a prompt with examples
_CACHE_BYTES: Final = 1 << 30  # what `served` gives the server for keys and values
_FLOAT_BYTES: Final = 4
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
    splits = run.splits()
    renderer = run.renderer(base)
    run = _with_answer_limit(run, renderer)
    settings = run.settings
    with temporary_folder("candidate") as scratch:
        systems = _systems(run, base, scratch, remote)
        known = _seen_by(run, systems, splits)
        unseen = [n for n, row in enumerate(splits.splits["test"]) if not _names(row, known)]
        rows = [run.test_rows()[n] for n in unseen]
        far = splits.far_from_train()
        sources = sources_of(run)
        comparison = Comparison(
            title=settings.publish.adapter or run.folder.root.name,
            base=base,
            systems=systems,
            rows=rows,
            renderer=renderer,
            data_digest=run.folder.result().data_digest,
            device=resolved(settings.training.device),
            served_by=remote.url if remote else "a loragate server in float32",
            train=splits.splits["train"],
            longest_prompt=_longest_prompt(base) - resolved(settings.evaluation.max_tokens),
            prices=settings.cost,
            far=[far[n] for n in unseen],
            sets=more_tests(run, sources, seen_by_any(known)),
            titles={each.name: each.title for each in sources},
            root=run.folder.root.parent,
            left_out=_left_out(splits.splits["test"], known),
        )
        open_models = _open_models(
            _serving(run, comparison), remote, settings.evaluation.concurrency
        )
        evaluation = await evaluate(comparison, settings.evaluation, open_models, run.progress)
    write_evaluation(evaluation, run.folder)  # before judges are asked, which may take long
    return await judge_run(run, evaluation)


async def judge_run(run: Run, evaluation: Evaluation) -> Evaluation:
    """Have the run's judges look at the answers that were given, hold all requirements against what
    is known then, and write it. What a judge was asked before is not asked again.

    The settings of `run` are resolved. Raises EvaluationError, and InvalidRequirement.
    """
    folder = run.folder
    measures = Measures.of(run.settings.evaluation, folder.root.parent, evaluation.more)
    if not measures.judges and not evaluation.judges:
        return evaluation
    verdicts = VerdictFile(folder.evaluation / VERDICTS)
    judged = await with_judgements(evaluation, measures.judges, os.environ, verdicts, run.progress)
    for problem in (each.problem for each in judged.judges if each.problem):
        run.say(problem)
    judged = judged.held_against(measures.requirements)
    write_evaluation(judged, folder)
    return judged


def require_judges(run: Run) -> None:
    """Raises EvaluationError where the run names no judge, or the key of one is not there."""
    measures = Measures.of(run.settings.evaluation, run.folder.root.parent)
    if not measures.judges:
        raise EvaluationError(
            "the run names no judge; describe one in [evaluation.judges.NAME] with url and model, "
            "and give the run file"
        )
    for judge in measures.judges:
        key_of(judge, os.environ)


def _seen_by(run: Run, systems: Sequence[System], splits: SplitFolder) -> dict[str, SeenRows]:
    """What each system was trained on, by its title, where that is known."""
    own = SeenRows.of(splits.splits["train"])
    if run.settings.data.replay:
        own |= SeenRows.of(SplitFolder.read(Path(run.settings.data.replay)).splits["train"])
    found = {"this run": own}
    for system in systems:
        seen = SeenRows.read(system.adapter) if system.adapter and system.name != "new" else None
        if seen is not None:
            found[system.title] = seen
    return found


def _names(row: Example, known: Mapping[str, SeenRows]) -> list[str]:
    """Who was trained on the row."""
    return [name for name, seen in known.items() if seen.has(row)]


def _left_out(rows: Sequence[Example], known: Mapping[str, SeenRows]) -> str:
    """A sentence on the rows that are not asked; empty where there are none. Raises EvaluationError
    where none is left.
    """
    by_name = Counter(name for row in rows for name in _names(row, known))
    count = sum(bool(_names(row, known)) for row in rows)
    if not count:
        return ""
    named = ", ".join(f"{name} on {number}" for name, number in by_name.items())
    if count == len(rows):
        raise EvaluationError(
            f"every one of the {count} test rows was trained on ({named}), so nothing can be "
            "measured; keep the test split of earlier versions, or add rows"
        )
    them = "row was" if count == 1 else "rows were"
    return f"{count} test {them} left out, since something was trained on that: {named}."


def write_evaluation(evaluation: Evaluation, folder: RunFolder) -> Path:
    """Writes evaluation.json and the report, whose path it returns. Raises RunFolderError."""
    evaluation.write(folder.evaluation)
    return write_report(evaluation, folder.evaluation, tuple(trainings(folder)))


def _systems(run: Run, base: BaseModel, scratch: Path, remote: Remote | None) -> tuple[System, ...]:
    found = [System("base", base.name, base.path, None, BASE)]
    if remote is None:  # whose longest prompt is not known
        found += _prompted(run.settings.evaluation, base)
    first, champion = _published(run, base)
    if first is not None and first != champion and remote is None:
        found.append(System(FIRST, str(first.version), base.path, first.folder, FIRST))
    if champion is not None and (remote is None or remote.champion):
        title, folder = str(champion.version), champion.folder
        name = remote.champion if remote else CHAMPION
        digest = champion.version.digest if remote else ""
        found.append(System(CHAMPION, title, base.path, folder, name, digest=digest))
    if run.settings.method.name == "full":
        found.append(System("new", "this run", run.folder.adapter, None, BASE))
    else:
        folder = assemble(run.folder, scratch / "new")
        name = remote.new if remote else "new"
        digest = _published_digest(run) if remote else ""
        found.append(System("new", "this run", base.path, folder, name, digest=digest))
    return tuple(found)


def _published_digest(run: Run) -> str:
    """Of the version that the run became; empty where it was not published from here."""
    with open_registry(run.home) as registry:
        version = published_as(registry, run)
    return version.digest if version is not None else ""


def _prompted(settings: EvaluationSettings, base: BaseModel) -> list[System]:
    """The base with training rows in its prompt, as settings name them."""
    wanted: tuple[Literal["examples", "retrieval"], ...] = ("examples", "retrieval")
    return [
        System(kind, TITLES[kind].format(settings.examples), base.path, None, BASE, kind)
        for kind in wanted
        if kind in settings.contenders
    ]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A version and the folder of its files."""

    version: AdapterVersion
    folder: Path

    @classmethod
    def of(cls, artifacts: ArtifactStore, version: AdapterVersion) -> _Stored:
        """Raises StoreError where the store does not have it."""
        return cls(version, artifacts.path(version.digest))


def _stored(artifacts: ArtifactStore, version: AdapterVersion) -> _Stored | None:
    try:
        return _Stored.of(artifacts, version)
    except StoreError:
        return None


def _published(run: Run, base: BaseModel) -> tuple[_Stored | None, _Stored | None]:
    """The adapter's first version that there still is, and its champion; None where there is none
    for this base model. Raises StoreError where the champion's files are missing.
    """
    if not run.settings.publish.adapter:
        return None, None
    adapter = AdapterName.parse(run.settings.publish.adapter)
    artifacts = ArtifactStore(run.home.artifacts)
    with open_registry(run.home) as registry:
        try:
            page = registry.versions.show(adapter)
        except LookupError:  # no such tenant or adapter yet
            return None, None
        versions = [
            each.version
            for each in sorted(page.versions, key=lambda each: each.version.number)
            if each.manifest.base_model_digest in ("", base.digest)
        ]
        first = next((found for each in versions if (found := _stored(artifacts, each))), None)
        alias = page.aliases.get(CHAMPION)
        if alias is None:
            return first, None
        version = alias.serving or alias.desired
        return first, _Stored.of(artifacts, version) if version in versions else None


def _longest_prompt(base: BaseModel) -> int:
    """How many tokens a prompt with examples may have, its answer included: what the model reads,
    and what fits into the memory that the server keeps for keys and values.
    """
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True).get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads)
    fitting = _CACHE_BYTES // (kept * width * _FLOAT_BYTES)
    read = getattr(config, "max_position_embeddings", None) or _LONGEST_PROMPT
    return min(read, fitting, _LONGEST_PROMPT) - _SWAP_TOKENS - _BLOCK


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


def _serving(run: Run, comparison: Comparison) -> Serving:
    renderer, settings = comparison.renderer, run.settings.evaluation
    rows = [*comparison.rows, *(row for more in comparison.sets.values() for row in more)]
    lengths = [
        len(renderer.render(Example(prompt).turns(), tools=row.tool_list()))
        for system in comparison.systems
        if system.prompting or system.name == "base"
        for row, prompt in zip(
            rows, comparison.prompts_of(system, rows, settings.examples), strict=True
        )
    ]
    longest = max(lengths)
    needed = longest + resolved(run.settings.evaluation.max_tokens) + _SWAP_TOKENS
    # On a CPU in float32 an answer does not depend on what else is asked at the same moment.
    dtype = "float32" if run.settings.training.device == "cpu" else "auto"
    return Serving(
        run.settings.model.base,
        run.home.models,
        min(-(-needed // _BLOCK) * _BLOCK, _most_positions(comparison.base)),
        dtype,
        run.shared.chat_template,
        run.shared.special_tokens_in_text,
        resolved(run.settings.model.chat_template_kwargs),
        run.shared.reasoning_parser,
        run.shared.tool_call_parser,
        engine_settings(),
    )


def _most_positions(base: BaseModel) -> int:
    """A server does not start with more than the model was made for."""
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True)
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def _open_models(serving: Serving, remote: Remote | None, concurrency: int) -> OpenModels:
    def open_them(systems: Sequence[System]) -> AbstractAsyncContextManager[ServedModels]:
        if remote is not None:
            return running(remote.url, remote.key, concurrency, serving.chat_template_kwargs)
        adapters = {each.served_as: each.adapter for each in systems if each.adapter}
        is_base = any(each.name == "base" for each in systems)
        source = serving.source if is_base else str(systems[0].model)
        return started(dataclasses.replace(serving, source=source), adapters, concurrency)

    return open_them
