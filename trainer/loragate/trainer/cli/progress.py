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
    """What a task says of itself beside its count, such as its loss."""

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


def hush_libraries() -> None:
    """Keeps the bars of libraries, which would tear ours, and a note that concerns nobody."""
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
