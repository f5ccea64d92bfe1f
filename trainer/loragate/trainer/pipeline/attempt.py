"""Begins a run in its folder, or goes on with one, by what its files say now."""

from pathlib import Path

from loragate.trainer.data.files import hub_name
from loragate.trainer.data.splits import SHEET
from loragate.trainer.errors import RunFolderError
from loragate.trainer.registry import find_version, open_registry
from loragate.trainer.run.changes import changes, with_free_settings
from loragate.trainer.run.file import (
    RunFile,
    input_paths,
    read_run_file,
    with_absolute_paths,
)
from loragate.trainer.run.folder import RunFolder, write_whole
from loragate.trainer.run.inputs import Inputs
from loragate.trainer.run.run import Run


def begin(run: Run, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready for the run as its files are now: empty of an earlier attempt, but for
    splits that would come out the same; or, with `resume`, as it was left.

    Raises RunFolderError where the folder holds anything that no run made, or a run that has
    learnt something already: with `resume` only where that one was begun otherwise.
    """
    folder, inputs = run.folder, inputs_of(run)
    _require_apart(run)
    if resume:
        if not folder.run_file.is_file():
            raise RunFolderError(
                f"{folder.root} holds no run to go on with; start it without --resume"
            )
        if folder.is_complete or folder.is_stopped:
            _go_on(run, inputs)
            return
        # Nothing was learnt yet, so there is nothing that could not be begun anew.
    elif overwrite:
        folder.clear()
    elif folder.is_complete or folder.is_stopped:
        raise RunFolderError(_taken(run, inputs))
    folder.claim()
    _forget_attempt(run, inputs)
    inputs.write(folder)
    write_whole(folder.run_file, run.text.encode())


def begin_estimate(run: Run) -> None:
    """As `begin`, for an estimate: a run that has learnt something stays as it is.

    Raises RunFolderError where that one was begun otherwise.
    """
    folder, inputs = run.folder, inputs_of(run)
    if not (folder.is_complete or folder.is_stopped):
        begin(run, resume=False, overwrite=False)
    elif found := _differences(run, inputs):
        raise RunFolderError(
            f"{folder.root} holds a run that was begun otherwise ({'; '.join(found)}); give the "
            "estimate another folder ('folder' in the run file)"
        )


def inputs_of(run: Run) -> Inputs:
    """What the run reads, as it is now. Raises what finding its base model and parent raises."""
    settings, parent = run.settings, ""
    if settings.model.continue_from:
        with open_registry(run.home) as registry:
            parent = find_version(registry, settings.model.continue_from).digest
    return Inputs.of(settings, run.root, run.base(), parent)


def update_free_settings(folder: RunFolder, settings: RunFile, text: str) -> None:
    """Gives a run that was begun those settings of `settings`, whose paths are absolute, which do
    not reach the weights. `text` is the file that has them. Raises RunFolderError.
    """
    folder.write_resolved(with_free_settings(folder.resolved(), settings))
    write_whole(folder.run_file, text.encode())


def require_same(run: Run, inputs: Inputs | None = None) -> None:
    """Raises RunFolderError, naming each difference, where the folder's run was begun with other
    settings or files than `run` has.
    """
    if found := _differences(run, inputs):
        raise RunFolderError(
            f"{run.folder.root} was begun otherwise: {'; '.join(found)}. Bring that back to go on, "
            "or begin anew with --overwrite"
        )


def _go_on(run: Run, inputs: Inputs) -> None:
    require_same(run, inputs)
    if run.file.resolve() != run.folder.resolved_file:  # which has them already
        settings = with_absolute_paths(run.settings, run.root)
        update_free_settings(run.folder, settings, run.text)


def _differences(run: Run, inputs: Inputs | None) -> list[str]:
    folder = run.folder
    begun, decided = read_run_file(folder.run_file), folder.resolved()
    found = [str(change) for change in changes(begun, run.settings, decided)]
    earlier = Inputs.read(folder)
    if inputs is not None and earlier is not None:
        found += inputs.changes_since(earlier)
    return found


def _forget_attempt(run: Run, inputs: Inputs) -> None:
    folder = run.folder
    try:
        earlier = Inputs.read(folder)
    except RunFolderError:  # damaged, so nothing in the folder can be relied on
        earlier = None
    folder.forget_attempt()
    is_whole = (folder.data / SHEET).is_file()  # it is written last
    if earlier is None or not is_whole or not inputs.makes_same_splits(earlier):
        folder.forget_data()
    begun = folder.run_file.read_bytes() if folder.run_file.is_file() else b""
    if earlier != inputs or begun != run.text.encode():
        folder.forget_estimate()


def _taken(run: Run, inputs: Inputs) -> str:
    folder = run.folder
    state = "is complete" if folder.is_complete else "was stopped"
    if found := _differences(run, inputs):
        return (
            f"{folder.root} holds a run that {state} and was begun otherwise: {'; '.join(found)}. "
            "Give this one another folder ('folder' in the run file), or begin anew with "
            "--overwrite"
        )
    more = "publish it with `loragate publish`" if folder.is_complete else "go on with --resume"
    return f"{folder.root} holds a run that {state}; {more}, or begin anew with --overwrite"


def _require_apart(run: Run) -> None:
    """Raises RunFolderError where the run's own input lies in its folder, which is for output."""
    folder = run.folder
    names = [name for _, name in input_paths(run.settings) if not hub_name(Path(name))]
    inputs = [(run.root / name).resolve() for name in names]
    for path in (run.file.resolve(), *inputs):
        is_its_copy = path in (folder.run_file, folder.resolved_file)  # which can be trained again
        if path.is_relative_to(folder.root) and not is_its_copy:
            raise RunFolderError(
                f"{path} lies in {folder.root}, the folder of the run that reads it; give the run "
                "a folder of its own ('folder' in the run file)"
            )
