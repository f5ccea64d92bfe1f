"""A comparison for people: a table in the terminal, and a page that holds all it shows."""

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from loragate.server.comparison.agreement import Agreement
from loragate.server.comparison.comparing import Comparison
from loragate.server.comparison.plots import (
    plot_divergence,
    plot_lengths,
    plot_memory,
    plot_speeds,
)
from loragate.server.engine.memory import gib


def to_terminal(comparison: Comparison) -> RenderableType:
    speeds = Table(
        *("", "streams", "tokens/s", "first token", "its p95", "between tokens", "memory"),
        title="Speed and memory",
    )
    for one in comparison.measured:
        for i, speed in enumerate(one.speeds):
            speeds.add_row(
                one.name if i == 0 else "",
                str(speed.streams),
                f"{speed.tokens_per_second:.1f}",
                f"{1000 * speed.ttft:.0f} ms",
                f"{1000 * speed.ttft_p95:.0f} ms",
                f"{1000 * speed.inter_token:.1f} ms",
                gib(one.memory_bytes) if i == 0 else "",
            )
    same = Table("beside the version", "merged", "base", title="Does it say the same?")
    for name, merged, base in agreement_rows(comparison):
        same.add_row(name, merged, base)
    colour = "green" if comparison.says_the_same else "red"
    return Group(same, speeds, Panel(comparison.recommendation, border_style=colour))


def agreement_rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    names = (
        "equal greedy answers",
        "first different token",
        "same likeliest token",
        "mean KL divergence, nats",
        "largest KL divergence",
        "largest log-probability difference",
    )
    columns = (_figures(comparison.merged), _figures(comparison.base))
    return list(zip(names, *columns, strict=True))


def _figures(agreement: Agreement) -> tuple[str, ...]:
    first = agreement.first_divergence
    return (
        f"{agreement.same_answers} of {len(agreement.divergences)}",
        "none" if first is None else f"number {first}",
        f"{agreement.same_top:.1%} of {agreement.positions}",
        f"{agreement.mean_kl:.2g}",
        f"{agreement.largest_kl:.2g}",
        f"{agreement.largest_difference:.2g}",
    )


def to_html(comparison: Comparison, made: str) -> str:
    """One page that needs nothing else."""
    environment = Environment(
        loader=PackageLoader("loragate.server.comparison", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        comparison=comparison,
        made=made,
        rows=agreement_rows(comparison),
        gib=gib,
        speeds_plot=plot_speeds(comparison.measured),
        memory_plot=plot_memory(comparison.measured),
        divergence_plot=plot_divergence(comparison.merged, comparison.base),
        lengths_plot=plot_lengths(comparison.merged),
    )
