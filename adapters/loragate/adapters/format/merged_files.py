"""The files of a merged model to store: a whole model, which transformers and vLLM load alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loragate.adapters.base_models.files import DIGESTED_FILES, require_model
from loragate.adapters.errors import InvalidAdapter
from loragate.adapters.format.files import SourceFile

REPORT: Final = "merge.json"  # how it was merged, and what proves it
_TAKEN: Final = (*DIGESTED_FILES, "generation_config.json", "README.md", REPORT)


@dataclass(frozen=True, slots=True)
class MergedFiles:
    """A folder that holds a whole model, and the files of it to take; all else stays behind."""

    folder: Path
    files: tuple[SourceFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def inspect_merged(folder: Path) -> MergedFiles:
    """Raises BaseModelError where a part of the model is missing, and InvalidAdapter for links."""
    require_model(folder)
    found = sorted({path for pattern in _TAKEN for path in folder.glob(pattern)})
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise InvalidAdapter(
                "symlink", f"{path.name} is not a plain file; put the file itself into {folder}"
            )
    return MergedFiles(
        folder, tuple(SourceFile(path.name, path, path.stat().st_size) for path in found)
    )
