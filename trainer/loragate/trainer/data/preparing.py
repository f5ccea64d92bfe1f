"""Prepares raw files to a folder of splits, and does those steps that are commands alone."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loragate.trainer.data.cleaning import Cleaned, clean
from loragate.trainer.data.example import (
    DataError,
    Example,
    digest_of,
    read_examples,
    write_examples,
)
from loragate.trainer.data.quality import Finding, Quality, assess_quality, findings_on_volume
from loragate.trainer.data.reading import file_digest, read_rows
from loragate.trainer.data.report import Report, account_of, package_versions
from loragate.trainer.data.settings import (
    Cleaning,
    PreparationSettings,
    QualityLimits,
    Splitting,
    Track,
    untracked,
)
from loragate.trainer.data.splits import (
    SplitFolder,
    SplitName,
    split,
    split_around,
    write_split_folder,
)

if TYPE_CHECKING:
    from loragate.adapters.rendering.renderer import Renderer

REPORT = "report.html"
DROPS = "drops.jsonl"
CHANGES = "changes.jsonl"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Splits on disk, and the report that was written beside them."""

    folder: SplitFolder
    quality: Quality
    report: Report


@dataclass(frozen=True, slots=True)
class GivenSplits:
    """Files whose rows are validated or tested, whatever else there is. `test_set` is a file of
    rows that are tested again and again: written with the first test split, and read from then on.
    """

    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    test_set: Path | None = None

    def read(self, settings: PreparationSettings) -> dict[SplitName, list[Example]]:
        """The rows, cleaned as others are, but that none goes since another is like it. Raises
        DataError.
        """
        cleaning = replace(settings.cleaning, near_duplicates="keep", conflicts="keep")
        files: tuple[tuple[SplitName, tuple[Path, ...]], ...] = (
            ("validation", self.validation), ("test", self.test),
        )  # fmt: skip
        given: dict[SplitName, list[Example]] = {
            name: clean(read_rows(paths, settings.reading), cleaning).examples
            for name, paths in files
            if paths
        }
        if self.test_set is not None and self.test_set.is_file():
            given["test"] = read_examples(self.test_set)
        if empty := [name for name, rows in given.items() if not rows]:
            raise DataError(f"the files of [data] {empty[0]} have no row to use")
        return given

    def keep(self, folder: SplitFolder) -> None:
        """Writes the test set, where it is not there yet. Raises DataError."""
        if self.test_set is not None and not self.test_set.exists():
            try:
                self.test_set.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"{self.test_set} cannot be written: {error.strerror or error}"
                ) from error
            write_examples(self.test_set, folder.splits["test"])


def prepare(
    paths: Sequence[Path],
    out: Path,
    settings: PreparationSettings | None = None,
    renderer: "Renderer | None" = None,
    track: Track = untracked,
    given: GivenSplits | None = None,
) -> PreparedData:
    """Reads, cleans, measures, splits and checks; writes the splits, `data.json`, `report.html` and
    every dropped row (`drops.jsonl`) into `out`.

    `renderer` counts tokens; without one none are counted. Raises DataError where rows are bad and
    to be refused, where data are too few, and where splits leak.
    """
    settings = settings or PreparationSettings()
    report = examine(paths, settings, renderer, track)
    require_enough(report.quality.findings)
    own = given.read(settings) if given is not None else {}
    examples = report.cleaned.examples
    if own:
        splits = split_around(examples, own, settings.splitting, track)
    else:
        splits = split(examples, settings.splitting, track)
    placed = sum(len(rows) for name, rows in splits.items() if name not in own)
    left_out = len(examples) - placed
    folder = write_split_folder(out, splits, {**_about(report), "left_out": left_out})
    if given is not None:
        given.keep(folder)
    report = Report(
        "Training data", folder.digest, report.read, report.cleaned, report.quality, settings,
        folder,
    )  # fmt: skip
    report.write(out / REPORT)
    write_drops(out / DROPS, report.cleaned)
    write_changes(out / CHANGES, report.cleaned)
    return PreparedData(folder, report.quality, report)


def examine(
    paths: Sequence[Path],
    settings: PreparationSettings,
    renderer: "Renderer | None" = None,
    track: Track = untracked,
) -> Report:
    """Reads, cleans and measures, and writes nothing. Raises DataError where no row stays."""
    read = read_rows(paths, settings.reading, track)
    cleaned = clean(read, settings.cleaning, track)
    if not cleaned.rows:
        raise DataError(
            f"every one of the {cleaned.rows_read} rows was dropped "
            f"({_counts(cleaned)}); `loragate data check --report report.html` says why"
        )
    quality = assess_quality(cleaned.examples, settings.quality, renderer, track)
    quality = replace(
        quality, findings=(*quality.findings, *findings_on_cleaning(cleaned, settings.cleaning))
    )
    digest = digest_of(cleaned.examples)
    return Report("Training data", digest, read, cleaned, quality, settings)


def split_file(
    path: Path, out: Path, splitting: Splitting, track: Track = untracked
) -> SplitFolder:
    """Splits what `write_cleaned` wrote. Raises DataError as `prepare` does."""
    examples = read_examples(path)
    require_enough(findings_on_volume(len(examples), QualityLimits()))
    splits = split(examples, splitting, track)
    source = {"path": str(path), "sha256": file_digest(path), "rows": len(examples)}
    about = {
        "seed": splitting.seed,
        "sources": [source],
        "settings": {"splitting": asdict(splitting)},
        "packages": package_versions(),
        "left_out": len(examples) - sum(map(len, splits.values())),
    }
    return write_split_folder(out, splits, about)


def findings_on_cleaning(cleaned: Cleaned, cleaning: Cleaning) -> list[Finding]:
    """What cleaning did to the answers that are to be learnt."""
    found: list[Finding] = []
    if cleaned.masked_answers:
        found.append(
            Finding(
                "warn",
                "Personal data",
                f"{_answers(cleaned.masked_answers)} a mask such as [PHONE] where what was asked "
                "with comes again, and the adapter will learn to say it. Is it meant? What is no "
                "secret can be allowed; changes.jsonl has the rows.",
            )
        )
    if cleaned.kept_in_answers and cleaning.personal_data != "keep":
        found.append(
            Finding(
                "note",
                "Personal data",
                f"{cleaned.kept_in_answers:,} addresses or numbers stand in answers alone and "
                "stay, as a hotline's must. See that they are not a person's.",
            )
        )
    if cleaned.conflicts_kept:
        found.append(
            Finding(
                "note",
                "Answers",
                f"{cleaned.conflicts_kept:,} rows ask what another row asks and are answered "
                "differently; they stay, as free text has many right answers.",
            )
        )
    return found


def _answers(count: int) -> str:
    return "One answer has" if count == 1 else f"{count:,} answers have"


def require_enough(findings: Iterable[Finding]) -> None:
    """Raises DataError where a finding refuses the data."""
    for finding in findings:
        if finding.level == "refuse":
            raise DataError(f"the data are refused: {finding.sentence}")


def write_cleaned(path: Path, report: Report) -> None:
    """Writes the rows that stayed, in the format of `example`. Raises DataError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_examples(path, report.cleaned.examples)


def write_drops(path: Path, cleaned: Cleaned) -> None:
    """Writes a JSON object a line: each dropped row's place, rule, reason and masked sample. Raises
    DataError.
    """
    _write_lines(path, (drop.to_json() for drop in cleaned.drops))


def write_changes(path: Path, cleaned: Cleaned) -> None:
    """Writes a JSON object a line: each row that was changed, and how. Raises DataError."""
    _write_lines(path, (change.to_json() for change in cleaned.changes))


def _write_lines(path: Path, lines: Iterable[dict[str, object]]) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def _about(report: Report) -> dict[str, object]:
    return {
        "seed": report.settings.splitting.seed,
        "sources": [
            {"path": source.path, "sha256": source.sha256, "rows": source.rows}
            for source in report.read.sources
        ],
        "rows_read": report.cleaned.rows_read,
        "cleaning": account_of(report.cleaned),
        "settings": report.settings.to_json(),
        "quality": report.quality.to_json(),
        "packages": package_versions(),
    }


def _counts(cleaned: Cleaned) -> str:
    return ", ".join(
        f"{rule.replace('_', ' ')} {len(drops)}" for rule, drops in cleaned.drops_by_rule().items()
    )
