"""From a run file to all that training needs in memory, the model aside."""

import random
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from loragate.adapters.base_models.preparation import BaseModel, find
from loragate.adapters.home import Home
from loragate.adapters.rendering.renderer import Renderer
from loragate.trainer.data.example import Example
from loragate.trainer.data.split_folder import SplitFolder
from loragate.trainer.errors import TrainingError
from loragate.trainer.run.file import RunFile
from loragate.trainer.settings.data import DataSettings
from loragate.trainer.settings.section import settled
from loragate.trainer.training import processes
from loragate.trainer.training.origin import Origin, find_origin
from loragate.trainer.training.plan import Plan, make_plan
from loragate.trainer.training.resolve import resolve_model, resolve_schedule, template_of
from loragate.trainer.training.rows import Encoder, Rows


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run in which nothing is left to be decided. `processes` train it together."""

    run: RunFile
    config: PretrainedConfig
    base: BaseModel
    renderer: Renderer
    training: Rows
    validation: Rows
    replayed: int  # how many of the training rows are old ones
    data_digest: str
    origin: Origin | None
    plan: Plan
    processes: int


def prepare(run: RunFile, root: Path, splits: SplitFolder, home: Home) -> Prepared:
    """`root` is the folder of the run file. Raises LoragateError: a model that is not prepared, an
    adapter that is not there, rows that cannot be trained.
    """
    base = find(run.model.base, home.models)
    origin = find_origin(run.model.continue_from, home) if run.model.continue_from else None
    config = AutoConfig.from_pretrained(str(base.path), local_files_only=True)
    run = resolve_model(run, root, config, origin)
    renderer = Renderer.load(base.path, template_of(run, root))
    encoder = Encoder(
        renderer, settled(run.data.max_tokens), run.data.too_long, run.data.system_prompt
    )
    replayed = _replayed(run.data, len(splits.splits["train"]), run.seed)
    training = encoder.encode((*splits.splits["train"], *replayed), "train")
    validation = encoder.encode(splits.splits["validation"], "validation")
    for rows, name in ((training, "train"), (validation, "validation")):
        if not rows.rows:
            raise TrainingError(f"no row of {name} is left to train with; raise [data] max_tokens")
    run = resolve_schedule(run, len(training.rows), processes.count())
    plan = make_plan(training.rows, run.training, seed=run.seed, processes=processes.count())
    return Prepared(
        run=run,
        config=config,
        base=base,
        renderer=renderer,
        training=training,
        validation=validation,
        replayed=len(replayed),
        data_digest=splits.digest,
        origin=origin,
        plan=plan,
        processes=processes.count(),
    )


def _replayed(data: DataSettings, new: int, seed: int) -> list[Example]:
    """So many old rows, drawn by the seed, that they are the wished share; or all there are."""
    if not data.replay:
        return []
    old = SplitFolder.read(Path(data.replay)).splits["train"]
    wanted = round(new * data.replay_share / (1 - data.replay_share))
    return random.Random(seed).sample(old, min(wanted, len(old)))
