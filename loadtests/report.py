"""A run as a report: Markdown with pictures beside it, and the same as one HTML file."""

import base64
import re
from collections import Counter
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from loadtests import charts
from loadtests.calibration import PACE_SECONDS, TTFT_SECONDS, Calibration
from loadtests.judging import Verdict, knee_goodput, lag_limit, lag_p99
from loadtests.measures import (
    Percentiles,
    by_adapter,
    gaps,
    goodput,
    knee,
    percentiles,
    steps,
    swap_stall,
    tokens_per_second,
    whole,
)
from loadtests.records import Run, Sample
from loadtests.scenarios import SCENARIOS

HERE = Path(__file__).parent
Row = dict[str, str]


def write_report(folder: Path, run: Run, verdict: Verdict, calibration: Calibration) -> Path:
    """Writes `report.md`, its pictures and `report.html`; returns the last."""
    pictures = _draw(folder, run)
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # it is Markdown; names in it have passed the server's grammar
    )
    text = templates.get_template("report.md.jinja").render(
        run=run,
        header=run.header,
        about=SCENARIOS[run.header.scenario].about,
        verdict=verdict,
        quantities=_quantities(run),
        outcomes=_outcomes(run),
        phases=_phases(run),
        bend=knee(steps(run), knee_goodput(run.header.objectives))
        if run.header.scenario == "sweep"
        else None,
        adapters=_adapters(run),
        labels=_labels(run),
        stall=swap_stall(run),
        calibration=calibration,
        true_pace=PACE_SECONDS,
        true_ttft=TTFT_SECONDS,
        client=_client(run),
        pictures=pictures,
        ms=_ms,
    )
    (folder / "report.md").write_text(text, encoding="utf-8")
    page = folder / "report.html"
    title = f"Load test: {run.header.scenario}"
    body = _with_pictures(MarkdownIt("commonmark").enable("table").render(text), folder)
    shell = templates.get_template("report.html.jinja")
    page.write_text(shell.render(title=title, body=body), encoding="utf-8")
    return page


def _draw(folder: Path, run: Run) -> list[tuple[str, str]]:
    """The pictures' names and captions."""
    charts.draw_latency(run, folder / "latency.png")
    charts.draw_throughput_over_time(run, folder / "throughput.png")
    charts.draw_adapters(run, folder / "adapters.png")
    drawn = [
        ("latency.png", "Latency over time"),
        ("throughput.png", "Throughput over time"),
        ("adapters.png", "Time to first token by adapter"),
    ]
    if len(run.phases) > 1:
        charts.draw_rates(run, folder / "rates.png", knee_goodput(run.header.objectives))
        drawn.append(("rates.png", "Throughput against rate"))
    return drawn


def _quantities(run: Run) -> list[Row]:
    """Each quantity over each protocol."""
    rows: list[Row] = []
    for protocol in run.header.protocols:
        samples = whole(sample for sample in run.samples if sample.protocol == protocol)
        measured = {
            "time to first token": percentiles(sample.ttft_seconds for sample in samples),
            "inter-token time": percentiles(gaps(samples)),
            "time per output token": percentiles(sample.tpot_seconds for sample in samples),
            "end to end": percentiles(sample.e2e_seconds for sample in samples),
        }
        for quantity, found in measured.items():
            if found is not None:
                rows.append({"protocol": protocol, "quantity": quantity, **_columns(found)})
    return rows


def _columns(found: Percentiles) -> Row:
    return {
        "count": str(found.count),
        "p50": f"{_ms(found.p50)} {_interval(found.p50_interval)}",
        "p95": f"{_ms(found.p95)} {_interval(found.p95_interval)}",
        "p99": _ms(found.p99),
        "largest": _ms(found.largest),
    }


def _outcomes(run: Run) -> list[Row]:
    counted = Counter(
        (sample.outcome, sample.status if sample.outcome != "ok" else "", sample.code)
        for sample in run.samples
    )
    return [
        {"outcome": outcome, "status": status, "code": code, "count": str(count)}
        for (outcome, status, code), count in counted.most_common()
    ]


def _phases(run: Run) -> list[Row]:
    return [
        {
            "phase": step.phase.name,
            "offered": f"{step.offered_per_second:.2f}"
            + (f" ({step.phase.streams} streams)" if step.phase.streams else ""),
            "answered": f"{step.answered_per_second:.2f}",
            "tokens": f"{step.tokens_per_second:.1f}",
            "goodput": f"{step.goodput:.1%}",
            "ttft": _pair(step.ttft),
            "itl": _pair(step.itl),
        }
        for step in steps(run)
    ]


def _adapters(run: Run) -> list[Row]:
    seconds = sum(phase.seconds for phase in run.phases)
    rows: list[Row] = []
    for (tenant, adapter), samples in by_adapter(run.samples).items():
        answered = whole(samples)
        rows.append(
            {
                "tenant": tenant,
                "adapter": adapter.rpartition("/")[2],
                "requests": str(len(samples)),
                "goodput": f"{goodput(samples, run.header.objectives):.1%}",
                "tokens": f"{tokens_per_second(samples, 0.0, seconds):.1f}",
                "ttft": _pair(percentiles(sample.ttft_seconds for sample in answered)),
                "itl": _pair(percentiles(gaps(answered))),
                "tpot": _pair(percentiles(sample.tpot_seconds for sample in answered)),
            }
        )
    return rows


def _labels(run: Run) -> list[Row]:
    """What a scenario sets against each other: cold and warm, merged and unmerged."""
    labels = sorted({sample.label for sample in run.samples if sample.label})
    return [_label(label, [s for s in run.samples if s.label == label]) for label in labels]


def _label(label: str, samples: list[Sample]) -> Row:
    answered = whole(samples)
    return {
        "label": label,
        "requests": str(len(samples)),
        "answered": str(len(answered)),
        "ttft": _pair(percentiles(sample.ttft_seconds for sample in answered)),
        "itl": _pair(percentiles(gaps(answered))),
        "tpot": _pair(percentiles(sample.tpot_seconds for sample in answered)),
        "e2e": _pair(percentiles(sample.e2e_seconds for sample in answered)),
    }


def _client(run: Run) -> Row:
    lags = [lag for tick in run.client for lag in tick.lags_seconds]
    shares = [tick.cpu_share for tick in run.client]
    frames = sum(len(sample.frames) for sample in run.samples)
    tokens = sum(sample.output_tokens for sample in run.samples)
    late = percentiles(sample.sent - sample.intended for sample in run.samples)
    return {
        "share of a core, mean": f"{np.mean(shares):.0%}",
        "share of a core, largest second": f"{max(shares):.0%}",
        "wake-ups late by, p50": f"{_ms(float(np.median(lags)))} ms",
        "wake-ups late by, p99": f"{_ms(lag_p99(run))} ms (refused above {_ms(lag_limit(run))} ms)",
        "wake-ups late by, largest": f"{_ms(max(lags))} ms",
        "requests sent late by, p99": f"{_ms(late.p99 if late else 0.0)} ms",
        "tokens a frame": f"{tokens / frames:.3f}" if frames else "none came",
    }


def _pair(found: Percentiles | None) -> str:
    return "" if found is None else f"{_ms(found.p50)} / {_ms(found.p95)}"


def _interval(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return f"({_ms(low)} to {_ms(high)})"


def _ms(seconds: float) -> str:
    """Milliseconds with three digits that mean something."""
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _with_pictures(html: str, folder: Path) -> str:
    """Puts pictures into the page, so that it can be sent as it is."""

    def embedded(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    return re.sub(r'src="([\w.-]+\.png)"', embedded, html)
