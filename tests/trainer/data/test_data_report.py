"""The page: whole in itself, true to the figures, and safe to open."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loragate.trainer.data.example import DataError, Example
from loragate.trainer.data.preparing import examine, prepare
from loragate.trainer.data.settings import PreparationSettings, Reading, Splitting
from support.training.examples import distinct, example, write_jsonl
from support.training.planted_tickets import Tickets


class _Page(HTMLParser):
    """The text of a page, and every address that it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page(tickets: Tickets) -> _Page:
    return _Page((tickets.prepared.folder.path / "report.html").read_text("utf-8"))


def _write(folder: Path, examples: list[Example]) -> Path:
    return write_jsonl(folder / "raw.jsonl", [row.to_json() for row in examples])


def test_the_page_fetches_nothing_and_runs_nothing(page: _Page):
    # Inside a drawing, #names point to its own parts; the only addresses are of namespaces.
    assert [address for address in page.fetched if not address.startswith("#")] == []
    assert "script" not in page.tags


def test_the_page_has_the_summary_the_digest_and_the_counts(page: _Page, tickets: Tickets):
    text = " ".join(" ".join(page.text).split())
    report = tickets.prepared.report
    assert tickets.prepared.folder.digest in text
    assert report.quality.summary in text
    read, kept = report.cleaned.rows_read, len(report.cleaned.rows)
    assert f"Of {read:,} rows read, {kept:,} are kept" in text
    for name, rows in tickets.prepared.folder.splits.items():
        assert f"{name} {len(rows)}" in text
    for finding in report.quality.findings:
        assert finding.sentence in text


def test_the_page_shows_plots_and_samples_of_each_rule(page: _Page, tickets: Tickets):
    assert page.tags.count("svg") == 6
    text = " ".join(page.text)
    for rule, drops in tickets.prepared.report.cleaned.drops_by_rule().items():
        assert rule.replace("_", " ").capitalize() in text
        assert f"tickets.csv:{drops[0].place.line}" in text


def test_what_rows_say_cannot_become_markup(tmp_path: Path):
    attack = "<script>alert(1)</script> $x_1$ & more"
    rows = [*distinct(30), example(attack, "", label=attack), example(f"{attack} b", label=attack)]
    html = examine([_write(tmp_path, rows)], PreparationSettings()).to_html()
    page = _Page(html)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in html


def test_the_sheet_says_where_the_data_come_from(tickets: Tickets):
    sheet = json.loads((tickets.prepared.folder.path / "data.json").read_text("utf-8"))
    (source,) = sheet["sources"]
    assert (source["rows"], len(source["sha256"])) == (
        tickets.prepared.report.cleaned.rows_read,
        64,
    )
    assert sheet["seed"] == 0
    assert sheet["settings"]["cleaning"]["language"] == "en"
    assert sheet["cleaning"]["drops"]["near_duplicate"]["count"] == 16
    assert set(sheet["packages"]) >= {"loragate", "datasketch", "ftfy"}
    assert {name: split["rows"] for name, split in sheet["splits"].items()} == {
        name: len(rows) for name, rows in tickets.prepared.folder.splits.items()
    }


def test_every_drop_is_written_with_its_place(tickets: Tickets):
    lines = (tickets.prepared.folder.path / "drops.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(tickets.prepared.report.cleaned.drops)
    assert {"rule", "file", "line", "reason", "sample"} <= set(json.loads(lines[0]))


def test_the_same_data_make_the_same_splits_digest_and_page(tmp_path: Path):
    raw = _write(tmp_path, distinct(40))
    first, second = (prepare([raw], tmp_path / name) for name in ("a", "b"))
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "data.json", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    _write(tmp_path, distinct(40)[::-1])
    assert prepare([raw], tmp_path / "c").folder.digest == first.folder.digest
    other = prepare([raw], tmp_path / "d", PreparationSettings(splitting=Splitting(seed=1)))
    assert other.folder.digest != second.folder.digest


def test_too_few_rows_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(DataError, match="9 rows are too few"):
        prepare([_write(tmp_path, distinct(9))], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_of_which_nothing_is_left_are_refused_with_the_rules(tmp_path: Path):
    raw = _write(tmp_path, [example("", "a"), example("b?", "")])
    with pytest.raises(DataError, match=r"every one of the 2 rows was dropped \(empty 2\)"):
        examine([raw], PreparationSettings(Reading()))


def test_a_report_has_drawings_with_readable_text(tickets: Tickets):
    html = tickets.prepared.report.to_html()
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert all("<text" in drawing for drawing in drawings)
    assert "<dc:date>" not in html
