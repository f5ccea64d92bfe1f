"""The table of fields as the documentation shows it; `python -m support.clients.field_table`, in
`tests/`, writes it there.
"""

from pathlib import Path

from loragate.server.gateway import fields

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
BEGIN, END = "<!-- fields: generated -->\n", "<!-- /fields -->\n"
_CALLS = {("chat", "completion"): "both", ("chat",): "chat", ("completion",): "completions"}


def table() -> str:
    lines = [
        "| field | of | over gRPC | bounds | |",
        "|---|---|---|---|---|",
        *map(_served, fields.SERVED),
        "",
        "Taken and ignored, whatever they say:",
        "",
        "| field | of | |",
        "|---|---|---|",
        *(f"| `{row.name}` | {_CALLS[row.calls]} | {row.says} |" for row in fields.IGNORED),
        "",
        "Refused, but for values that ask for nothing (null, and those in brackets):",
        "",
        "| field | of | instead |",
        "|---|---|---|",
        *map(_refused, fields.REFUSED),
    ]
    return "\n".join(lines) + "\n"


def _served(row: fields.Served) -> str:
    places = ", ".join(f"`{place}`" for place in row.place.split(", ") if place)
    return f"| `{row.name}` | {_CALLS[row.calls]} | {places} | {_bounds(row)} | {row.says} |"


def _bounds(row: fields.Served) -> str:
    if row.most is not None:
        return f"{row.most:,} {'characters' if row.kind == 'string' else 'entries'}"
    if row.range is None:
        return ""
    least, most = row.range.least, row.range.most
    low = f"above {least}" if row.range.is_above else "" if least == -fields.INT64 else str(least)
    if isinstance(most, str):
        section = "limits" if most == "max_choices" else "engine"
        return f"{low} to `{section}.{most}`"
    if most >= fields.INT64 - 1:
        return f"{low} or more" if low else "64 bits"
    return f"{low} to {most}"


def _refused(row: fields.Refused) -> str:
    harmless = [f"`{value!r}`".lower().replace("'", '"') for value in row.harmless]
    if row.same_as is not None:
        harmless.append(f"the same as `{row.same_as}`")
    brackets = f" ({', '.join(harmless)})" if harmless else ""
    return f"| `{row.name}`{brackets} | {_CALLS[row.calls]} | {row.says} |"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
