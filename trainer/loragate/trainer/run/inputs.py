"""What a run was begun with besides its settings: the content of every file, model and template."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Self

import msgspec

from loragate.adapters.base_models.preparation import BaseModel
from loragate.trainer.data.files import hub_name
from loragate.trainer.data.reading import file_digest
from loragate.trainer.data.splits import SHEET
from loragate.trainer.errors import RunFolderError
from loragate.trainer.run.file import RunFile, input_paths
from loragate.trainer.run.folder import RunFolder, write_whole

# Names of what is compared by content, and settings that count for rows that are prepared already.
_NOT_OF_PREPARATION: Final = frozenset(
    {"raw", "validation", "test", "splits", "replay", "replay_share", "system_prompt", "too_long"}
)
_RAW: Final = "[data] raw"
_SOURCES: Final = frozenset({_RAW, "[data] validation", "[data] test"})
_PARENT: Final = "[model] continue_from"


class InputFile(msgspec.Struct, frozen=True):
    """A file, folder or model: the setting that names it, its name there, and a digest of its
    content, which is empty where there was nothing.
    """

    setting: str
    name: str
    digest: str


class Inputs(msgspec.Struct, frozen=True):
    """`preparation` are the settings by which raw files became splits."""

    files: tuple[InputFile, ...]
    preparation: dict[str, object]

    @classmethod
    def of(cls, settings: RunFile, root: Path, base: BaseModel, parent: str) -> Self:
        """Of a run whose paths are relative to `root`. `parent` is the digest of the version that
        it goes on from, or empty.
        """
        model = settings.model
        given = [
            InputFile(setting, name, hub_name(Path(name)) or _digest(root / name))
            for setting, name in input_paths(settings)
        ]
        given.append(InputFile("[model] base", model.base, base.digest))
        if parent:
            given.append(InputFile(_PARENT, model.continue_from, parent))
        # As JSON has them, so that what is read back is equal.
        data = msgspec.json.decode(msgspec.json.encode(settings.data), type=dict[str, object])
        kept = {key: value for key, value in data.items() if key not in _NOT_OF_PREPARATION}
        return cls(tuple(given), {**kept, "seed": settings.seed})

    @classmethod
    def read(cls, folder: RunFolder) -> Self | None:
        """Those of the run in the folder; None where there is none, or one from before they were
        kept. Raises RunFolderError.
        """
        try:
            return msgspec.json.decode(folder.inputs_file.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise RunFolderError(
                f"{folder.inputs_file} cannot be read ({error}); begin anew with --overwrite"
            ) from None

    def write(self, folder: RunFolder) -> None:
        """Raises RunFolderError."""
        write_whole(folder.inputs_file, msgspec.json.encode(self) + b"\n")

    def makes_same_splits(self, other: "Inputs") -> bool:
        """Whether the raw files of both, and how they are prepared, are the same."""
        return (self._raw(), self._models(), self.preparation) == (
            other._raw(),
            other._models(),
            other.preparation,
        )

    def changes_since(self, begun: "Inputs") -> list[str]:
        """What differs from `begun`, a clause each. Raw files that are gone do not: what was made
        of them is in the run's folder.
        """
        found: list[str] = []
        then, now = _by_setting(begun.files), _by_setting(self.files)
        for setting in sorted(then.keys() | now.keys()):
            before, after = then.get(setting, []), now.get(setting, [])
            if len(before) != len(after):
                found.append(f"{setting} names {_several(after)}, and named {_several(before)}")
                continue
            found += [
                f"{other.name} ({setting}) has changed"
                for one, other in zip(before, after, strict=True)
                if one.digest != other.digest and not _is_settled(one, other)
            ]
        return found

    def _raw(self) -> list[str]:
        return [each.digest for each in self.files if each.setting in _SOURCES]

    def _models(self) -> list[str]:
        """What tokens are counted with."""
        names = ("[model] base", "[model] chat_template")
        return [each.digest for each in self.files if each.setting in names]


def _by_setting(files: Iterable[InputFile]) -> Mapping[str, list[InputFile]]:
    found: dict[str, list[InputFile]] = {}
    for each in files:
        found.setdefault(each.setting, []).append(each)
    return found


def _is_settled(begun: InputFile, now: InputFile) -> bool:
    """Whether the run keeps what it began with: the rows of raw files that are gone, or the version
    that an alias stood for.
    """
    if now.setting == _RAW:
        return not now.digest
    return now.setting == _PARENT and now.name == begun.name


def _several(files: list[InputFile]) -> str:
    return ", ".join(each.name for each in files) if files else "nothing"


def _digest(path: Path) -> str:
    """Of a file's bytes; of a folder of splits its sheet's, which has the digests of the splits; of
    any other folder those of all files in it. Empty where there is nothing to read.
    """
    try:
        if not path.is_dir():
            return file_digest(path)
        if (path / SHEET).is_file():
            return file_digest(path / SHEET)
        total = hashlib.sha256()
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            total.update(f"{file.relative_to(path)}\0{file_digest(file)}\n".encode())
        return total.hexdigest()
    except OSError:  # who reads it says what is wrong with it
        return ""
