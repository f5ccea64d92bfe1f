"""`Run`, which every step of a training run takes, and how long the steps took."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import msgspec
from rich.progress import Progress

from loragate.adapters.base_models.preparation import BaseModel, find
from loragate.adapters.home import Home
from loragate.adapters.rendering.renderer import Renderer
from loragate.adapters.settings import SharedSettings, read_settings
from loragate.trainer.data.example import Example
from loragate.trainer.data.splits import SplitFolder
from loragate.trainer.run.file import RunFile, parse_run_file, template_of
from loragate.trainer.run.folder import RunFolder


@dataclass
class Phases:
    """Wall-clock seconds of each part of a run. A part begins where the one before it ended, the
    first one when this object is made.
    """

    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _mark: float = field(default_factory=time.monotonic, init=False)

    def end(self, name: str) -> None:
        """Adds the time since the last call to the phase `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    @property
    def sentence(self) -> str:
        """`Data 6 s, training 2 min 05 s, evaluation 58 s: 3 min 09 s in all.`"""
        if not self.seconds:
            return "Nothing was left to do."
        parts = ", ".join(f"{name} {duration(each)}" for name, each in self.seconds.items())
        return f"{parts[:1].upper()}{parts[1:]}: {duration(sum(self.seconds.values()))} in all."


def _say_nothing(_sentence: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Run:
    """A run's settings, and what its steps work with.

    Paths in `settings` are relative to `root`, or absolute. All output goes into `folder`. `file`
    is the run file, if there is one, and `text` its content. `shared` has the settings of
    loragate.toml that trainer and server must agree on. `say` shows a sentence to the user. The
    caller starts and stops `progress`.
    """

    settings: RunFile
    root: Path
    folder: RunFolder
    home: Home
    progress: Progress
    say: Callable[[str], None] = _say_nothing
    file: Path = Path()
    text: str = ""
    shared: SharedSettings = field(default_factory=read_settings)
    phases: Phases = field(default_factory=Phases)

    @classmethod
    def load(
        cls, file: Path, text: str, home: Home, progress: Progress, say: Callable[[str], None]
    ) -> Self:
        """The run that `file`, which contains `text`, describes. Raises RunFileError, and
        ConfigError where loragate.toml is wrong.

        A run without a chat template of its own gets the server's: requests to the adapter will be
        rendered with it.
        """
        settings, shared = parse_run_file(text, file), read_settings()
        if shared.chat_template and not settings.model.chat_template:
            model = msgspec.structs.replace(settings.model, chat_template=shared.chat_template)
            settings = msgspec.structs.replace(settings, model=model)
        root = file.resolve().parent
        folder = RunFolder((root / settings.folder).resolve())
        return cls(settings, root, folder, home, progress, say, file, text, shared)

    @classmethod
    def finished(cls, folder: RunFolder, home: Home, progress: Progress) -> Self:
        """The run whose training made `folder`. Raises RunFileError where none did."""
        return cls(folder.resolved(), folder.root, folder, home, progress)

    def resolved(self) -> Self:
        """The run with every "auto" replaced by the value that its training began with. Raises
        RunFileError before training has begun.
        """
        return replace(self, settings=self.folder.resolved(), root=self.folder.root)

    def base(self) -> BaseModel:
        """The base model. Raises BaseModelError where it is not prepared."""
        return find(self.settings.model.base, self.home.models)

    def splits(self) -> SplitFolder:
        """The splits of a run whose settings are resolved. Raises DataError."""
        data = self.settings.data
        return SplitFolder.read(self.folder.data if data.raw else Path(data.splits))

    def test_rows(self) -> list[Example]:
        """The test split, of a run whose settings are resolved. Raises DataError.

        Each row has the run's system prompt, so that the base model is asked with it too.
        """
        prompt = self.settings.data.system_prompt
        return [row.with_system_prompt(prompt) for row in self.splits().splits["test"]]

    def renderer(self, base: BaseModel) -> Renderer:
        """Renders with the base's tokenizer, and the run's chat template and variables, if it has
        them. Raises RunFileError where the template cannot be read.
        """
        template = template_of(self.settings, self.root)
        given = self.settings.model.chat_template_kwargs
        return Renderer.load(
            base.path,
            template,
            self.shared.special_tokens_in_text,
            variables={} if given == "auto" else given,
        )


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s`, `45 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
