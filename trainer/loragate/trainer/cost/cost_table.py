"""An estimate as tables for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from loragate.trainer.cost.costs import Estimate, MethodEstimate
from loragate.trainer.run.durations import duration


def cost_tables(estimate: Estimate) -> Group:
    """Training by method, then a request by way, then when training pays off."""
    return Group(_training(estimate), _requests(estimate), Text(_in_words(estimate)))


def _training(estimate: Estimate) -> Table:
    table = Table(
        *("Method", "Steps", "Tokens", "Tokens/s", "Time", "Memory", estimate.currency),
        title="Training, from steps measured here",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for each in estimate.methods:
        mark = " ←" if each.method == estimate.chosen else ""
        if each.problem:
            table.add_row(f"{each.method}{mark}", Text(f"cannot be tried: {each.problem}"))
        else:
            table.add_row(f"{each.method}{mark}", *_figures(each))
    return table


def _figures(each: MethodEstimate) -> tuple[str, ...]:
    return (
        f"{each.steps:,}",
        f"{each.tokens:,}",
        f"{each.tokens_per_second:,.0f}",
        duration(each.seconds),
        f"{each.memory_bytes / 2**30:.1f} GiB",
        _money(each.money),
    )


def _requests(estimate: Estimate) -> Table:
    table = Table(
        *("A request with", "Prompt tokens", "Answer tokens", estimate.currency, "a month"),
        title="Serving",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for each in estimate.requests:
        table.add_row(
            each.way,
            f"{each.prompt_tokens:,.0f}",
            f"{each.answer_tokens:,.0f}",
            _money(each.money, 6),
            _money(each.per_month),
        )
    return table


def _in_words(estimate: Estimate) -> str:
    adapter, few_shot, _ = estimate.requests
    times = few_shot.prompt_tokens / adapter.prompt_tokens
    sentence = f"Examples in the prompt make it {times:.1f} times as long, with every request."
    if estimate.pays_off_after:
        sentence += (
            f" The training costs as much as they do after {estimate.pays_off_after:,} requests."
        )
    return sentence


def _money(amount: float, digits: int = 2) -> str:
    return f"{amount:,.{digits}f}" if amount else "not priced"
