"""A folder of splits: `train.jsonl`, `validation.jsonl`, `test.jsonl`, and their `data.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from loragate.trainer.data.example import (
    DataError,
    Example,
    digest_of,
    digest_of_texts,
    read_examples,
    write_examples,
)

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
SHEET = "data.json"


@dataclass(frozen=True, slots=True)
class SplitFolder:
    """What training and evaluation read. `sheet` is data.json: `digest` stands for the three
    splits, `splits` has the rows and digest of each, and further fields say where they come from.
    """

    path: Path
    splits: Mapping[SplitName, tuple[Example, ...]]
    sheet: Mapping[str, object]

    @property
    def digest(self) -> str:
        return str(self.sheet["digest"])

    @classmethod
    def read(cls, path: Path) -> "SplitFolder":
        """Raises DataError where a file is missing or was changed since it was written."""
        try:
            sheet = cast(dict[str, object], json.loads((path / SHEET).read_text("utf-8")))
        except OSError as error:
            raise DataError(
                f"{path} is no folder of splits ({SHEET}: {error.strerror}); "
                "make one with `loragate data split`"
            ) from error
        except ValueError as error:
            raise DataError(f"{path / SHEET} is no JSON: {error}; split the data again") from error
        splits: dict[SplitName, tuple[Example, ...]] = {
            name: tuple(read_examples(path / f"{name}.jsonl")) for name in SPLITS
        }
        if sheet.get("digest") != folder_digest(splits):
            raise DataError(
                f"the files in {path} are not those that {SHEET} describes; split the data again"
            )
        return cls(path, splits, sheet)


def write_split_folder(
    path: Path,
    splits: Mapping[SplitName, tuple[Example, ...]],
    about: Mapping[str, object],
) -> SplitFolder:
    """Writes the splits, then the sheet, which makes the folder whole. `about` is added to it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / SHEET).unlink(missing_ok=True)
    for name in SPLITS:
        write_examples(path / f"{name}.jsonl", splits[name])
    sheet: dict[str, object] = {
        "format": 1,
        "digest": folder_digest(splits),
        "splits": {
            name: {"rows": len(rows), "digest": digest_of(rows)} for name, rows in splits.items()
        },
        **about,
    }
    (path / SHEET).write_text(json.dumps(sheet, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return SplitFolder(path, splits, sheet)


def folder_digest(splits: Mapping[SplitName, tuple[Example, ...]]) -> str:
    """The digest of what each split says, in whatever order its rows are."""
    return digest_of_texts(digest_of(splits[name]) for name in SPLITS)
