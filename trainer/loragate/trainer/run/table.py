"""The table of a sweep, sweep.json: a row for each of its runs, the best first."""

from collections.abc import Mapping, Sequence

import msgspec

from loragate.trainer.errors import RunFolderError
from loragate.trainer.run.folder import RunFolder, write_whole

TABLE = "sweep.json"


def write_table(folder: RunFolder, rows: Sequence[Mapping[str, object]]) -> None:
    """Each row has the run's `folder`, a path relative to the sweep's. Raises RunFolderError."""
    text = msgspec.json.format(msgspec.json.encode(rows), indent=2)
    write_whole(folder.root / TABLE, text + b"\n")


def best_folder(folder: RunFolder) -> RunFolder:
    """The best run's folder of a sweep; of any other folder itself. Raises RunFolderError."""
    path = folder.root / TABLE
    if not path.is_file():
        return folder
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[dict[str, object]])
        return RunFolder((folder.root / str(rows[0]["folder"])).resolve())
    except (OSError, msgspec.MsgspecError, LookupError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); run the sweep again") from None
