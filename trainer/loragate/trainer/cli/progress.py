"""The progress bar of long commands."""

import logging

import datasets
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from transformers.utils import logging as transformers_logging


class Figures(ProgressColumn):
    """The fields of a task, such as its loss, beside its count."""

    def render(self, task: Task) -> Text:
        return Text("  ".join(str(value) for value in task.fields.values() if value))


def progress_bar(console: Console, *, is_hidden: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        Figures(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=is_hidden,
    )


def silence_libraries() -> None:
    """Turns off the progress bars of transformers and datasets, which would break up ours, and a
    warning of bitsandbytes where there is no GPU.
    """
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
