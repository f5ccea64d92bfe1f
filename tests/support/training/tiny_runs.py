"""A home with a tiny prepared base model, and a task that it learns in seconds.

The model has two layers and its tokens are bytes, so a step takes milliseconds and no model has to
be fetched.
"""

import random
from pathlib import Path

from rich.progress import Progress

from loragate.adapters.base_models.preparation import prepare
from loragate.adapters.home import Home
from loragate.trainer.data.example import Example, Message
from loragate.trainer.data.splits import SplitFolder, SplitName, write_split_folder
from loragate.trainer.run.file import RunFile, convert_run_file
from loragate.trainer.run.folder import RunFolder, RunResult
from loragate.trainer.run.run import Run
from loragate.trainer.training.plan import TrainingPlan, make_plan
from loragate.trainer.training.train import train
from support.models.tiny_llama import tiny_llama
from support.models.tokenizers import TURNS, byte_tokenizer

TEMPLATE = TURNS.replace("<|end|>", "<|end|>\n")
_ANSWERS = {"apple": "fruit", "carrot": "root", "oak": "tree", "rose": "flower", "rye": "grain"}
_QUESTIONS = ("What is {}?", "Tell me what {} is.", "{}: which kind?", "Please sort {} for me.")


def write_model(folder: Path, width: int = 64) -> Path:
    model = tiny_llama(
        hidden_size=width,
        intermediate_size=2 * width,
        vocab_size=320,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.02,
        eos_token_id=256,
        pad_token_id=256,
    )
    model.save_pretrained(folder)
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


def make_home(root: Path) -> tuple[Home, Path]:
    """A home and the folder of the model that is prepared in it."""
    home = Home(root / "home").ensure()
    model = write_model(root / "tiny")
    with Progress(disable=True) as progress:
        prepare(str(model), home.models, progress)
    return home, model


def examples(count: int, seed: int = 0) -> tuple[Example, ...]:
    chance = random.Random(seed)
    return tuple(
        Example(
            (
                Message(
                    "user", chance.choice(_QUESTIONS).format(plant) + "!" * chance.randrange(9)
                ),
                Message("assistant", _ANSWERS[plant]),
            ),
            label=_ANSWERS[plant],
        )
        for plant in chance.choices(list(_ANSWERS), k=count)
    )


def write_splits(folder: Path, train_rows: int = 48, seed: int = 0) -> SplitFolder:
    rows = examples(train_rows + 16, seed)
    return write_split_folder(
        folder,
        {"train": rows[:train_rows], "validation": rows[train_rows:-8], "test": rows[-8:]},
        {},
    )


class TinyRuns:
    """Makes runs of the tiny model, each in a folder of its own."""

    def __init__(self, root: Path, home: Home, model: Path) -> None:
        self.root = root
        self.home = home
        self.model = model
        self.splits = write_splits(root / "splits")
        self.said: list[str] = []

    def run_file(self, **tables: dict[str, object]) -> RunFile:
        """Of the tiny model and its task, with these settings in place of the usual ones."""
        usual: dict[str, dict[str, object]] = {
            "data": {"splits": str(self.splits.path)},
            "model": {"base": str(self.model)},
            "method": {"rank": 8},
            "training": {"max_steps": 6, "threads": 1, "precision": "fp32", "trackers": []},
        }
        names = {**usual, **tables}
        return convert_run_file(
            {name: {**usual.get(name, {}), **tables.get(name, {})} for name in names}
        )

    def random_splits(self) -> SplitFolder:
        """Questions with answers that nothing foretells."""
        chance = random.Random(1)
        rows = tuple(
            Example(
                (
                    Message("user", f"What is {chance.randrange(10**6)}?"),
                    Message("assistant", "".join(chance.choices("abcdefgh", k=8))),
                )
            )
            for _ in range(40)
        )
        parts: dict[SplitName, tuple[Example, ...]] = {
            "train": rows[:24],
            "validation": rows[24:32],
            "test": rows[32:],
        }
        return write_split_folder(self.root / "random", parts, {})

    def plan(self, run: RunFile, splits: SplitFolder | None = None) -> TrainingPlan:
        planned = Run(run, self.root, RunFolder(self.root / "run"), self.home, Progress())
        return make_plan(planned, splits or self.splits)

    def run(self, settings: RunFile, name: str = "run", progress: Progress | None = None) -> Run:
        """In the folder of that name; nothing is checked before, and nothing shown."""
        folder = RunFolder(self.root / name)
        folder.root.mkdir(exist_ok=True)
        return Run(settings, self.root, folder, self.home, progress or Progress(disable=True))

    def train(self, run: RunFile, name: str = "run") -> tuple[RunFolder, RunResult]:
        begun = self.run(run, name)
        return begun.folder, train(begun, self.plan(run))


def loaded(runs: TinyRuns, run: RunFile) -> Run:
    """The run as its file says it, beside the runs' folders."""
    path = runs.root / "run.toml"
    path.write_text(run.to_toml())
    return Run.load(path, path.read_text(), runs.home, Progress(disable=True), runs.said.append)
