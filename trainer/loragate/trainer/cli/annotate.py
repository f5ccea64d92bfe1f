"""`loragate data annotate`: sheets on which people label rows, and reading them back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loragate.trainer.cli.options import Json, examples, print_json
from loragate.trainer.data.settings import Reading, read_fields

if TYPE_CHECKING:
    from loragate.trainer.evaluation.annotation import Labels

_READING = Reading()


def add_to(data: typer.Typer) -> None:
    data.command(
        "annotate",
        epilog=examples(
            "loragate data annotate chats.jsonl --out sheets --labels a,b,c --raters anna,ben",
            "loragate data annotate questions.txt --out sheets --rows 50",
            "loragate data annotate --read --out sheets --rows-to labelled.jsonl",
        ),
    )(annotate)


def annotate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE",
            help="Rows with answers and labels or without, or questions, one a line of a .txt.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder of the sheets.")
    ] = Path("sheets"),
    labels: Annotated[
        str,
        typer.Option(
            metavar="A,B,C", help="What people choose from. By default the labels that rows have."
        ),
    ] = "",
    raters: Annotated[
        str, typer.Option(metavar="NAMES", help="Who gets a sheet, with commas between.")
    ] = "rater",
    rows: Annotated[int, typer.Option(min=1, help="How many rows, at most.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed draws other rows.")] = 0,
    label_field: Annotated[
        str, typer.Option(metavar="NAME", help="The rows' field with their label.")
    ] = _READING.label_field,
    own_fields: Annotated[
        list[str] | None,
        typer.Option(
            "--field", metavar="NAME=OWN", help="A format's field and the file's name for it."
        ),
    ] = None,
    read: Annotated[
        bool, typer.Option("--read", help="Read back what people filled in, from DIR.")
    ] = False,
    rows_to: Annotated[
        Path | None,
        typer.Option("--rows-to", metavar="FILE", help="With --read: the agreed rows, as JSONL."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Have people label rows, and learn how far they agree.

    Writes DIR/NAME.csv for each person: rows without a label first, then others, whose label is
    not shown, to be checked. Where neither --labels nor the rows have labels, people write answers,
    each to rows of their own.

    --read takes every CSV of DIR for one person's. It says how far they agree (Krippendorff's
    alpha) and where they say another label than the rows had, writes the rows on which all agree,
    and puts the others into DIR/disagreements.csv: decide these in its last column, read again.
    """
    if read:
        _read(out, rows_to, as_json)
        return
    if not files:
        raise typer.BadParameter("give the FILE whose rows people are to label, or --read")
    from loragate.trainer.evaluation.annotation import labels_for, write_sheets
    from loragate.trainer.evaluation.annotation_rows import read_items

    reading = Reading(label_field=label_field, fields=read_fields(own_fields or ()))
    items = read_items(files, reading)
    given = [each.strip() for each in labels.split(",")] if labels else []
    names = [name for each in raters.split(",") if (name := each.strip())]
    if not names:
        raise typer.BadParameter("--raters: name somebody")
    written = write_sheets(items, out, labels_for(items, given), names, rows, seed)
    sheets = [str(out / f"{name}.csv") for name in written.raters]
    if as_json:
        print_json({"rows": len(written.items), "labels": written.labels, "sheets": sheets})
        return
    choices = f"the labels {', '.join(written.labels)}" if written.labels else "answers"
    typer.echo(f"{len(written.items)} of {len(items)} rows, for {choices}.")
    typer.echo(f"Wrote {', '.join(sheets)}")
    typer.echo(f"Put the filled copies there, then: loragate data annotate --read --out {out}")


def _read(folder: Path, rows_to: Path | None, as_json: bool) -> None:
    from loragate.trainer.evaluation.annotation import (
        DISAGREEMENTS,
        read_labels,
        write_disagreements,
        write_rows,
    )

    found = read_labels(folder)
    if found.disputed or (folder / DISAGREEMENTS).is_file():
        write_disagreements(found, folder)
    count = write_rows(found, rows_to) if rows_to is not None else 0
    if as_json:
        print_json(_figures(found))
        return
    for sentence in found.sentences():
        typer.echo(sentence)
    for each in found.changed[:10]:
        typer.echo(
            f"  {each.item.place}: {each.item.label!r} in the file, {each.label!r} by people"
        )
    if rows_to is not None:
        typer.echo(f"Wrote {count} rows to {rows_to}")
    elif found.agreed:
        typer.echo(f"{len(found.agreed)} rows are agreed; write them with --rows-to FILE.")


def _figures(found: "Labels") -> dict[str, object]:
    said = found.agreement
    return {
        "rows": len(found.annotation.items),
        "labelled": dict(found.counts),
        "agreed": len(found.agreed),
        "disputed": len(found.disputed),
        "open": found.open,
        "changed": [
            {"place": each.item.place, "had": each.item.label, "label": each.label}
            for each in found.changed
        ],
        "alpha": said.alpha if said else None,
        "alpha_interval": [said.low, said.high] if said and said.low is not None else None,
    }
