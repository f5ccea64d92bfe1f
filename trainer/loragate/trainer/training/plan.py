"""Plans a training from a run file and splits: all that it needs but the model's weights.

Every "auto" gets its value here, in two passes: how often to validate depends on the number of
rows, and that depends on the longest row that is allowed.
"""

import hashlib
import itertools
import json
import math
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import msgspec
from transformers import AutoConfig, PretrainedConfig

from loragate.adapters.base_models.preparation import BaseModel
from loragate.adapters.format.base_profile import BaseProfile
from loragate.adapters.format.files import inspect
from loragate.adapters.format.lora_tensors import lora_pairs
from loragate.adapters.home import Home
from loragate.adapters.names import AdapterVersion
from loragate.adapters.rendering.renderer import IGNORED, Renderer
from loragate.adapters.settings import SharedSettings
from loragate.adapters.store import ArtifactStore
from loragate.trainer.data.example import Example
from loragate.trainer.data.settings import QualityLimits
from loragate.trainer.data.splits import SplitFolder, without_alike
from loragate.trainer.errors import RunFileError, TrainingError
from loragate.trainer.registry import find_version, open_registry
from loragate.trainer.run.file import DataSettings, RunFile, with_absolute_paths
from loragate.trainer.run.run import Run
from loragate.trainer.settings import (
    PROJECTIONS,
    EvaluationSettings,
    MethodSettings,
    TrainingSettings,
    resolved,
)
from loragate.trainer.training import machine
from loragate.trainer.training.encoding import EncodedRows, Encoder
from loragate.trainer.training.memory import Memory, estimate_memory, mlp_width
from loragate.trainer.training.schedule import Schedule, make_schedule, steps_of

_VALIDATIONS = 10
_TYPICAL_ROW = 96  # tokens; for the measurement of precisions only
_ROWS = 8  # at once, unless the run says otherwise or memory is short
_MEMORY_SHARE = 0.9  # of what is free, for an estimate that is rough
_LEAST_ANSWER, _ANSWER_STEP = 32, 16  # tokens
# Layers that some models have in place of several of the usual ones.
_FUSED = ("qkv_proj", "gate_up_proj")


@dataclass(frozen=True, slots=True)
class Parent:
    """The published version that training goes on from, and the folder of its files."""

    version: AdapterVersion
    folder: Path

    def peft_config(self) -> dict[str, object]:
        return cast(
            dict[str, object], json.loads((self.folder / "adapter_config.json").read_bytes())
        )

    def target_modules(self, modules: Collection[str]) -> tuple[str, ...]:
        """Sorted. PEFT may have written them as one regular expression: these are the kinds of
        layers that the adapter has matrices for. Raises InvalidAdapter.
        """
        written = self.peft_config()["target_modules"]
        if not isinstance(written, str):
            return tuple(sorted(cast(list[str], written)))
        files = inspect(self.folder)
        adapted = {pair.module for pair in lora_pairs(files.tensors, files.config)}
        kinds = {module.rpartition(".")[2] for module in adapted}
        is_whole = all(
            module in adapted for module in modules if module.rpartition(".")[2] in kinds
        )
        # Only where every layer of a kind is adapted does its kind's name say the same.
        return tuple(sorted(kinds if is_whole else adapted))


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A run in which no setting is "auto" any more. `replayed` of the rows in `training` are old
    ones. `processes` train it together.
    """

    settings: RunFile
    config: PretrainedConfig
    base: BaseModel
    renderer: Renderer
    training: EncodedRows
    validation: EncodedRows
    replayed: int
    data_digest: str
    parent: Parent | None
    schedule: Schedule
    processes: int


def make_plan(run: Run, splits: SplitFolder) -> TrainingPlan:
    """Finds model and parent, encodes the rows, and gives every "auto" its value. Loads no weights.

    Raises LoragateError where the model is not prepared, the parent does not exist, or rows cannot
    be trained on.
    """
    given = run.settings
    base = run.base()
    parent = find_parent(given.model.continue_from, run.home) if given.model.continue_from else None
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True)
    settings = resolve_model(given, run.root, config, parent, linear_modules(base))
    data = settings.data
    train = part_of(splits.splits["train"], settings.training.rows_share)
    kwargs = template_variables(settings, run.renderer(base), train, parent)
    model = msgspec.structs.replace(settings.model, chat_template_kwargs=kwargs)
    settings = msgspec.structs.replace(settings, model=model)
    renderer = replace(run, settings=settings).renderer(base)
    longest = resolved(data.max_tokens)
    encoder = Encoder(renderer, longest, data.too_long, data.system_prompt)
    replayed = _replayed(run, data, splits, len(train), settings.seed)
    training = encoder.encode((*train, *replayed), "train")
    validation = encoder.encode(splits.splits["validation"], "validation")
    for rows, name in ((training, "train"), (validation, "validation")):
        if not rows.rows:
            raise TrainingError(f"no row of {name} is left to train with; raise [data] max_tokens")
    # The evaluation renders these, so what cannot be rendered is to be found before the training.
    test = Encoder(renderer, longest, "drop", data.system_prompt).encode(
        splits.splits["test"], "test"
    )
    settings = msgspec.structs.replace(
        settings, evaluation=with_answer_limit(settings.evaluation, (training, validation, test))
    )
    settings = fit_batch(settings, config, training)
    processes = machine.process_count()
    settings = resolve_schedule(settings, len(training.rows), processes)
    return TrainingPlan(
        settings=settings,
        config=config,
        base=base,
        renderer=renderer,
        training=training,
        validation=validation,
        replayed=len(replayed),
        data_digest=splits.digest,
        parent=parent,
        schedule=make_schedule(
            training.rows, settings.training, seed=settings.seed, processes=processes
        ),
        processes=processes,
    )


def part_of(rows: Sequence[Example], share: float) -> Sequence[Example]:
    """That share of the rows, at least one, in their order. Which they are is fixed by their text,
    so a larger share has all rows of a smaller one in it, and rows that are added move none.
    """
    if share == 1:
        return rows
    digests = {index: _digest(row) for index, row in enumerate(rows)}
    count = max(1, round(share * len(rows)))
    chosen = set(sorted(digests, key=lambda index: digests[index])[:count])
    return [row for index, row in enumerate(rows) if index in chosen]


def _digest(row: Example) -> bytes:
    return hashlib.sha256(msgspec.json.encode(row)).digest()


def notes_of(plan: TrainingPlan, shared: SharedSettings) -> list[str]:
    """Sentences on what the rows have and the adapter will not learn, or not serve."""
    notes: list[str] = []
    if lost := plan.training.lost_reasoning:
        notes.append(
            f"note: the reasoning of {lost} rows is not learnt, since the chat template has no "
            "place for it; see `loragate data preview`"
        )
    learnt = [label for label in plan.training.rows[0].labels if label != IGNORED]
    if "</think>" in plan.renderer.decode(learnt) and not shared.reasoning_parser:
        notes.append(
            "note: answers begin with reasoning, which a server gives apart from the answer only "
            "with an engine.reasoning_parser, such as 'qwen3' or 'deepseek_r1' (loragate.toml)"
        )
    return notes


def template_variables(
    settings: RunFile, renderer: Renderer, examples: Sequence[Example], parent: Parent | None
) -> dict[str, object]:
    """The variables of the chat template. Where no row has reasoning and the template can be told
    so, the prompt says it: the answer then begins with its text.
    """
    given = settings.model.chat_template_kwargs
    if given != "auto":
        return given
    if parent:
        return dict(inspect(parent.folder).manifest.contract.chat_template_kwargs)
    thinks = any(message.thinks for example in examples for message in example.messages)
    if not thinks and renderer.changes_with("enable_thinking", False):
        return {"enable_thinking": False}
    return {}


def _replayed(
    run: Run, data: DataSettings, splits: SplitFolder, new: int, seed: int
) -> list[Example]:
    """Old rows, drawn with the seed, so that they are `replay_share` of all training rows, or as
    many as there are. None of them is like a row that is validated or tested.
    """
    if not data.replay:
        return []
    every = SplitFolder.read(Path(data.replay)).splits["train"]
    unseen = (*splits.splits["validation"], *splits.splits["test"])
    old = without_alike(every, unseen, data.similarity)
    if len(old) < len(every):
        run.say(
            f"{len(every) - len(old):,} of {len(every):,} rows to replay are like rows of "
            "validation or test, and are left out."
        )
    wanted = round(new * data.replay_share / (1 - data.replay_share))
    return random.Random(seed).sample(old, min(wanted, len(old)))


def resolve_model(
    settings: RunFile,
    root: Path,
    config: PretrainedConfig,
    parent: Parent | None,
    modules: Collection[str],
) -> RunFile:
    """Replaces every "auto" that does not depend on the rows, and makes paths absolute, which were
    relative to `root`. `modules` are the base model's linear layers. An alias to go on from becomes
    the version that it stands for now.
    """
    method = _method(
        method_of(parent, settings.method, modules) if parent else settings.method, modules
    )
    settings = with_absolute_paths(settings, root)
    model = settings.model
    if parent:
        model = msgspec.structs.replace(model, continue_from=str(parent.version))
    return msgspec.structs.replace(
        settings,
        model=model,
        data=msgspec.structs.replace(settings.data, max_tokens=longest_row(settings.data, config)),
        method=method,
        training=_training(settings.training, method, config),
    )


def resolve_schedule(settings: RunFile, rows: int, processes: int) -> RunFile:
    """Replaces the remaining "auto"s, which depend on the number of training rows."""
    training = settings.training
    steps = steps_of(training, rows, processes)
    per_epoch = math.ceil(steps / max(1.0, training.epochs)) if not training.max_steps else steps
    evaluate_every = training.evaluate_every
    if evaluate_every == "auto":
        evaluate_every = max(1, min(math.ceil(steps / _VALIDATIONS), per_epoch))
    save_every = evaluate_every if training.save_every == "auto" else training.save_every
    log_every = max(1, min(10, steps // 20)) if training.log_every == "auto" else training.log_every
    # Whatever comes less often than the run has steps comes once, at its end.
    evaluate_every, save_every, log_every = (
        min(each, steps) for each in (evaluate_every, save_every, log_every)
    )
    return msgspec.structs.replace(
        settings,
        training=msgspec.structs.replace(
            training, evaluate_every=evaluate_every, save_every=save_every, log_every=log_every
        ),
    )


def fit_batch(settings: RunFile, config: PretrainedConfig, training: EncodedRows) -> RunFile:
    """Replaces a batch size of "auto" by what memory holds of `_ROWS` rows, with as many batches a
    step as it takes for the same rows: so the result does not depend on it. Where not even one row
    fits it is 1, and the check of memory says what is missing.
    """
    given = settings.training
    if given.batch_size != "auto":
        return settings
    free = machine.free_memory_bytes(given.device)

    def of(size: int) -> TrainingSettings:
        return msgspec.structs.replace(
            given,
            batch_size=size,
            gradient_accumulation=given.gradient_accumulation * (_ROWS // size),
        )

    def fits(size: int) -> bool:
        memory = memory_for(config, settings.method, of(size), training)
        return memory.total <= _MEMORY_SHARE * free

    size = next((each for each in (_ROWS, _ROWS // 2, _ROWS // 4) if fits(each)), 1)
    return msgspec.structs.replace(settings, training=of(size))


def memory_for(
    config: PretrainedConfig, method: MethodSettings, training: TrainingSettings, rows: EncodedRows
) -> Memory:
    """The estimated memory of the largest batch of `rows`."""
    return estimate_memory(
        config,
        method,
        training,
        longest_row=max(len(row.ids) for row in rows.rows),
        supervised_share=rows.supervised / rows.tokens,
    )


def answer_limit(encoded: Iterable[EncodedRows]) -> int:
    """How many tokens an answer of the evaluation may have: room for the longest of these rows, and
    a quarter more.
    """
    longest = max((_longest_answer(row.labels) for rows in encoded for row in rows.rows), default=0)
    return max(_LEAST_ANSWER, math.ceil(longest * 1.25 / _ANSWER_STEP) * _ANSWER_STEP)


def _longest_answer(labels: Sequence[int]) -> int:
    """The longest unbroken part of a row that is learnt."""
    return max(
        (len(list(part)) for learnt, part in itertools.groupby(labels, IGNORED.__ne__) if learnt),
        default=0,
    )


def with_answer_limit(
    settings: EvaluationSettings, encoded: Iterable[EncodedRows]
) -> EvaluationSettings:
    """With a limit of answers that fits these rows, where the run file leaves it to them."""
    if settings.max_tokens != "auto":
        return settings
    return msgspec.structs.replace(settings, max_tokens=answer_limit(encoded))


def linear_modules(base: BaseModel) -> Collection[str]:
    """The names of the base model's linear layers; empty where its files do not tell. Raises
    BaseModelError.
    """
    return BaseProfile.read(base).modules.keys()


def require_targets(method: MethodSettings, modules: Collection[str]) -> None:
    """Raises RunFileError where a target module is no layer of the model, whose linear layers
    `modules` are.
    """
    if method.name == "full" or method.target_modules == "auto" or not modules:
        return
    kinds = sorted({module.rpartition(".")[2] for module in modules})
    for name in method.target_modules:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            raise RunFileError(
                f"[method] target_modules names {name!r}, which the base model does not have; its "
                f"linear layers are {', '.join(kinds)}"
            )


def _targets(modules: Collection[str]) -> tuple[str, ...]:
    """The linear layers of attention and MLP, by the names that this model gives them."""
    kinds = {module.rpartition(".")[2] for module in modules}
    found = tuple(name for name in (*PROJECTIONS, *_FUSED) if name in kinds)
    return found or PROJECTIONS


def _method(method: MethodSettings, modules: Collection[str]) -> MethodSettings:
    require_targets(method, modules)
    rank = 16 if method.rank == "auto" else method.rank
    alpha = float(rank if method.name == "rslora" else 2 * rank)
    return msgspec.structs.replace(
        method,
        rank=rank,
        alpha=alpha if method.alpha == "auto" else method.alpha,
        target_modules=(
            _targets(modules) if method.target_modules == "auto" else method.target_modules
        ),
    )


def _training(
    training: TrainingSettings, method: MethodSettings, config: PretrainedConfig
) -> TrainingSettings:
    device = machine.device(training)
    learning_rate = training.learning_rate
    if learning_rate == "auto":
        learning_rate = 2e-5 if method.name == "full" else 2e-4
    precision = training.precision
    if precision == "auto":
        text = config.get_text_config()
        precision = machine.faster_precision(
            device,
            (_ROWS if training.batch_size == "auto" else training.batch_size) * _TYPICAL_ROW,
            text.hidden_size,
            mlp_width(text),
        )
    return msgspec.structs.replace(
        training,
        device=device,
        threads=machine.threads() if training.threads == "auto" else training.threads,
        learning_rate=learning_rate,
        precision=precision,
    )


def longest_row(data: DataSettings, config: PretrainedConfig) -> int:
    """The longest row that is allowed, in tokens; for "auto" what the model was made for, at most
    the limit that data are checked against by default.
    """
    if data.max_tokens != "auto":
        return data.max_tokens
    most = QualityLimits().max_tokens
    return min(int(getattr(config.get_text_config(), "max_position_embeddings", most)), most)


def find_parent(text: str, home: Home) -> Parent:
    """The version that [model] continue_from names; see `find_version`.

    Raises what `find_version` raises, and StoreError.
    """
    with open_registry(home) as registry:
        version = find_version(registry, text)
    return Parent(version, ArtifactStore(home.artifacts).path(version.digest))


def method_of(parent: Parent, method: MethodSettings, modules: Collection[str]) -> MethodSettings:
    """The method with the rank, alpha and target modules of the adapter that goes on. `modules` are
    the base model's linear layers. Raises RunFileError where the run file says something else.
    """
    config = parent.peft_config()
    own: dict[str, object] = {
        "rank": config["r"],
        "alpha": float(cast(float, config["lora_alpha"])),
        "target_modules": parent.target_modules(modules),
    }
    for key, value in own.items():
        given = getattr(method, key)
        given = tuple(sorted(given)) if isinstance(given, tuple) else given
        if given not in ("auto", value):
            raise RunFileError(
                f"[method] {key} is {given}, but {parent.version}, from which training goes on, "
                f"has {value}; leave it out"
            )
    is_rslora = bool(config.get("use_rslora"))
    if is_rslora != (method.name == "rslora"):
        raise RunFileError(
            f"[method] name is '{method.name}', but {parent.version} is "
            f"{'an rslora' if is_rslora else 'no rslora'} adapter"
        )
    return msgspec.structs.replace(method, **own)
