"""`loragate data`: checks, cleans and splits raw rows."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.trainer.cli import annotate, preview
from loragate.trainer.cli.options import Json, examples, options_of, print_json
from loragate.trainer.data.settings import (
    BadRows,
    Cleaning,
    ConflictRule,
    FormatName,
    KeepOrDrop,
    PersonalDataRule,
    PreferenceRule,
    PreparationSettings,
    QualityLimits,
    Reading,
    Splitting,
    Track,
    read_fields,
    read_mends,
)

if TYPE_CHECKING:
    from loragate.adapters.rendering.renderer import Renderer
    from loragate.trainer.data.report import Report
    from loragate.trainer.data.splits import SplitFolder

_STYLES = {"refuse": "red", "warn": "yellow", "note": "blue", "good": "green"}

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE",
        help="Raw data: JSON lines or arrays, CSV, Parquet, also .gz; folders; hub:OWNER/NAME.",
    ),
]
Similarity = Annotated[
    float,
    typer.Option(metavar="SHARE", help="From which share of equal pieces on rows are alike."),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write the HTML report here.")
]

READING, CLEANING, SPLITTING, LIMITS = Reading(), Cleaning(), Splitting(), QualityLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationOptions:
    """How `check` and `clean` read, clean and measure raw data: an option for each field."""

    format_name: Annotated[
        FormatName,
        typer.Option("--format", help="The rows' form; auto knows each by its fields."),
    ] = READING.format
    bad_rows: Annotated[
        BadRows, typer.Option("--bad-rows", help="What a row that cannot be read does.")
    ] = READING.bad_rows
    encoding: Annotated[
        str, typer.Option(metavar="NAME", help="Of the files, such as cp1252, where not UTF-8.")
    ] = READING.encoding
    label_field: Annotated[
        str, typer.Option(metavar="NAME", help="The field with the exact answer's class.")
    ] = READING.label_field
    group_field: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The field whose equal values stay in one split, such as a customer.",
        ),
    ] = READING.group_field
    own_fields: Annotated[
        list[str],
        typer.Option(
            "--field",
            metavar="NAME=OWN",
            help="A format's field and the file's name for it, as prompt=text and "
            "completion=category.",
        ),
    ] = field(default_factory=list)
    preferences: Annotated[
        PreferenceRule,
        typer.Option(help="What rows with chosen and rejected answers do: learn the chosen ones."),
    ] = READING.preferences
    language: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Drop rows surely in another language than this, as en."),
    ] = CLEANING.language
    personal_data: Annotated[
        PersonalDataRule,
        typer.Option("--personal-data", help="What e-mail, phone, card, IBAN and id numbers do."),
    ] = CLEANING.personal_data
    phone_region: Annotated[
        list[str],
        typer.Option(metavar="CODE", help="Countries whose national phone numbers are known."),
    ] = field(default_factory=lambda: list(CLEANING.phone_regions))
    max_characters: Annotated[int, typer.Option(min=1, help="Longer rows are dropped.")] = (
        CLEANING.max_characters
    )
    near_duplicates: Annotated[
        KeepOrDrop, typer.Option(help="What rows that say nearly the same do.")
    ] = CLEANING.near_duplicates
    similarity: Similarity = CLEANING.similarity
    conflicts: Annotated[
        ConflictRule,
        typer.Option(
            help="What rows with one question and different answers do; labels drops them where "
            "rows have labels, of which one must be wrong."
        ),
    ] = CLEANING.conflicts
    allow: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="An address or number that is never masked, such as the firm's own; @firm.example "
            "for all addresses there.",
        ),
    ] = field(default_factory=list)
    mend: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What is mended in texts, with commas between: mojibake, invisible, control, "
            "unicode, spaces, width (full-width signs to ASCII); or none.",
        ),
    ] = ",".join(CLEANING.mend)
    max_tokens: Annotated[int, typer.Option(min=1, help="The limit that the run will have.")] = (
        LIMITS.max_tokens
    )
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SRC",
            help="The base model whose tokens are counted; by default the built-in one where it is "
            "prepared.",
        ),
    ] = None

    def settings(self) -> PreparationSettings:
        """Raises DataError where a value is out of range."""
        return PreparationSettings(
            Reading(
                self.format_name,
                self.bad_rows,
                self.encoding,
                self.label_field,
                self.group_field,
                read_fields(self.own_fields),
                self.preferences,
            ),
            Cleaning(
                language=self.language,
                personal_data=self.personal_data,
                phone_regions=tuple(self.phone_region),
                max_characters=self.max_characters,
                near_duplicates=self.near_duplicates,
                similarity=self.similarity,
                conflicts=self.conflicts,
                allowed=tuple(self.allow),
                mend=read_mends(self.mend),
            ),
            quality=QualityLimits(max_tokens=self.max_tokens),
        )


def add_to(app: typer.Typer) -> None:
    data = typer.Typer(
        no_args_is_help=True, help="Check, clean and split the examples that an adapter learns."
    )
    data.command(
        "check",
        epilog=examples(
            "loragate data check tickets.csv --report report.html",
            "loragate data check chats.jsonl more.csv --bad-rows drop --json",
            "loragate data check chats.jsonl --wanted questions.txt",
            "loragate data check banking.parquet --field prompt=text --field completion=category",
        ),
    )(options_of(PreparationOptions, check))
    data.command(
        "clean",
        epilog=examples(
            "loragate data clean tickets.csv --out clean.jsonl",
            "loragate data clean chats.jsonl --out clean.jsonl --language en --bad-rows drop",
            "loragate data clean qa.csv --out clean.jsonl --conflicts keep",
        ),
    )(options_of(PreparationOptions, clean))
    data.command(
        "split",
        epilog=examples(
            "loragate data split clean.jsonl --out splits",
            "loragate data split clean.jsonl --out splits --validation 0.05 --test 0.2 --seed 7",
        ),
    )(split)
    preview.add_to(data)
    annotate.add_to(data)
    app.add_typer(
        data,
        name="data",
        epilog=examples(
            "loragate data check raw.csv --report report.html",
            "loragate data clean raw.csv --out clean.jsonl",
            "loragate data split clean.jsonl --out splits",
            "loragate data preview run.toml",
            "loragate data annotate raw.csv --raters anna,ben --out sheets",
        ),
    )


def check(
    files: Files,
    options: PreparationOptions,
    report: ReportFile = None,
    wanted: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Real questions, one a line (.txt) or a row: says how many no row is near.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is in raw data and whether it is worth training on. Writes only the report.

    Shows what cleaning would normalise, mask and drop, and measures what would be left: volume,
    labels, topics, lengths, groups of people, and tokens that the run's limit would cut. Ends with
    1 where the data are refused: bad rows, or fewer than 10 good ones.

    Rows come as instruction/input/output, prompt/completion, messages, or ShareGPT's
    conversations, or a question and an answer (or a text and its class) by their usual names, in
    JSON lines or arrays, CSV or Parquet.
    """
    settings = options.settings()
    from loragate.trainer.data.preparing import examine, require_enough

    with _progress() as track:
        found = examine(files, settings, _renderer(options.model), track)
    if wanted is not None:
        from loragate.trainer.data.relevance import read_questions, relevance

        told = relevance(found.cleaned.examples, read_questions(wanted)).finding()
        quality = dataclasses.replace(found.quality, findings=(*found.quality.findings, told))
        found = dataclasses.replace(found, quality=quality)
    _show(found, report, as_json)
    require_enough(found.quality.findings)


def clean(
    files: Files,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The clean rows, as JSONL of messages.")
    ],
    options: PreparationOptions,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Turn raw data into rows worth learning, and account for every row that goes.

    Normalises mojibake, odd characters and spaces; masks personal data; drops rows that are empty,
    one-sided, too long, in another language, duplicates or near duplicates of others, or that
    contradict each other. Every dropped row is written beside OUT (.drops.jsonl) with its file,
    line, rule and a sample in which personal data are masked, and every row that was masked or
    mended in .changes.jsonl.
    """
    settings = options.settings()
    from loragate.trainer.data.preparing import examine, write_changes, write_cleaned, write_drops

    with _progress() as track:
        found = examine(files, settings, _renderer(options.model), track)
    write_cleaned(out, found)
    write_drops(out.with_suffix(".drops.jsonl"), found.cleaned)
    write_changes(out.with_suffix(".changes.jsonl"), found.cleaned)
    _show(found, report, as_json, out)


def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `loragate data clean` wrote.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder that a run reads.")],
    validation: Annotated[
        float, typer.Option(metavar="SHARE", help="To watch the training by.")
    ] = SPLITTING.validation,
    test: Annotated[
        float, typer.Option(metavar="SHARE", help="Kept unseen, to measure the result.")
    ] = SPLITTING.test,
    seed: Annotated[int, typer.Option(help="Another seed makes other splits.")] = SPLITTING.seed,
    similarity: Similarity = SPLITTING.similarity,
    as_json: Json = False,
) -> None:
    """Split clean rows into train, validation and test, with nothing leaking between them.

    Alike rows (greetings aside) and rows of one group stay together, every label reaches every
    split, and what the rows say and the seed alone decide: more rows move none of the others, but
    where they join two clusters. A second check, by other means, looks for leaks. DIR gets
    train.jsonl, validation.jsonl, test.jsonl and data.json, which records digests, counts,
    sources, settings and versions.
    """
    from loragate.trainer.data.preparing import split_file

    with _progress() as track:
        folder = split_file(file, out, Splitting(validation, test, seed, similarity), track)
    if as_json:
        print_json(dict(folder.sheet))
        return
    _say_splits(folder)


def _renderer(model: str | None) -> "Renderer | None":
    """The renderer of the base model, or None where none is named and the built-in one is not
    prepared. Raises BaseModelError where the named one is not.
    """
    from loragate.adapters.base_models.preparation import DEFAULT_MODEL, find
    from loragate.adapters.errors import BaseModelError
    from loragate.adapters.home import Home
    from loragate.adapters.settings import read_settings

    try:
        base = find(model or DEFAULT_MODEL, Home.from_environment().models)
    except BaseModelError:
        if model is not None:
            raise
        return None
    from loragate.adapters.rendering.renderer import Renderer  # which imports transformers

    shared = read_settings()
    return Renderer.load(base.path, shared.read_template(), shared.special_tokens_in_text)


@contextmanager
def _progress() -> Iterator[Track]:
    """A bar on standard error for each part of the work, removed at the end."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield progress.track


def _show(found: "Report", page: Path | None, as_json: bool, out: Path | None = None) -> None:
    if page is not None:
        found.write(page)
    if as_json:
        print_json(found.to_json())
        return
    _say_account(found)
    if out is not None:
        typer.echo(f"Wrote {out} and {out.with_suffix('.drops.jsonl')}")
    if page is not None:
        typer.echo(f"Wrote {page}")


def _say_account(found: "Report") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    cleaned, quality = found.cleaned, found.quality
    table = Table("Rule", "Rows", "First", box=None, pad_edge=False)
    for rule, drops in cleaned.drops_by_rule().items():
        first = f"{drops[0].place}: {drops[0].reason}"
        table.add_row(rule.replace("_", " "), f"{len(drops):,}", Text(first))
    kept = len(cleaned.rows)
    console.print(
        f"{cleaned.rows_read:,} rows read, [bold]{kept:,} kept[/], {len(cleaned.drops):,} "
        f"dropped, {cleaned.normalised_rows:,} normalised, {cleaned.masked_rows:,} masked"
    )
    if table.row_count:
        console.print(table)
    for finding in quality.findings:
        console.print(
            Text.assemble(
                (f"{finding.level:6} ", _STYLES[finding.level]),
                (f"{finding.subject}: ", "bold"),
                finding.sentence,
            )
        )
    console.print(Text(quality.summary, style=f"bold {_STYLES[quality.level]}"))


def _say_splits(folder: "SplitFolder") -> None:
    for name, rows in folder.splits.items():
        typer.echo(f"{name:11}{len(rows):7,} rows")
    if left_out := folder.sheet.get("left_out"):
        typer.echo(f"{'left out':11}{left_out:7,} rows, whose group is tested or validated")
    typer.echo("No row has its like, or its group, in another split.")
    far = folder.far_from_train()
    typer.echo(f"{sum(far):,} of {len(far):,} test rows are far from every train row.")
    typer.echo(f"Wrote {folder.path} (digest {folder.digest[:12]})")
