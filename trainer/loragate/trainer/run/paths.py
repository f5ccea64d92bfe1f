"""The paths in a run file: relative in files that are kept and published, absolute while it runs.

A run's folder can so be moved or handed on with what it names beside it, and what is published says
nothing about the machine that it was made on.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from loragate.trainer.run.file import RunFile


def with_absolute_paths(run: RunFile, root: Path) -> RunFile:
    """`root` is what the paths are relative to; those that are absolute already stay."""
    return _changed(run, lambda path: str((root / path).resolve()))


def with_relative_paths(run: RunFile, root: Path) -> RunFile:
    """The reverse, for a file that lies in `root`; paths have to be absolute."""
    return _changed(run, lambda path: os.path.relpath(path, root.resolve()))


def _changed(run: RunFile, change: Callable[[str], str]) -> RunFile:
    """Every path but that of the base model, which is mostly a name. Empty ones stay empty."""

    def if_given(path: str) -> str:
        return change(path) if path else ""

    data, model = run.data, run.model
    return msgspec.structs.replace(
        run,
        folder=change(run.folder),
        data=msgspec.structs.replace(
            data,
            raw=tuple(if_given(path) for path in data.raw),
            splits=if_given(data.splits),
            replay=if_given(data.replay),
        ),
        model=msgspec.structs.replace(model, chat_template=if_given(model.chat_template)),
    )
