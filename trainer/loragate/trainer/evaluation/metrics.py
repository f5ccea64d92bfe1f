"""The metrics by name: how each is called, shown, and read."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from loragate.trainer.evaluation.criteria import Criterion

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """`digits` after the point; shares are shown in per cent."""

    title: str
    better: Better
    explained: str
    is_share: bool = False
    digits: int = 2

    def show(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.is_share else f"{value:.{self.digits}f}"

    def show_difference(self, value: float) -> str:
        if self.is_share:
            return f"{100 * value:+.1f} points"
        return f"{value:+.{self.digits}f}"


METRICS: Final[Mapping[str, Metric]] = {
    "loss": Metric(
        "Loss", "lower", "nats a token of the wanted answers, which the model reads", digits=3
    ),
    "perplexity": Metric("Perplexity", "lower", "e to the power of the loss"),
    "accuracy": Metric(
        "Accuracy", "higher", "answers that are the wanted label, and nothing else", is_share=True
    ),
    "f1": Metric("Macro F1", "higher", "the mean over labels of their F1", digits=3),
    "exact_match": Metric(
        "Exact match",
        "higher",
        "answers that are the wanted text, apart from case, space and marks around it",
        is_share=True,
    ),
    "bleu": Metric("BLEU", "higher", "0 to 100, over all rows together (sacrebleu)", digits=1),
    "rouge_1": Metric("ROUGE-1", "higher", "shared words, F, 0 to 100 (rouge-score)", digits=1),
    "rouge_2": Metric("ROUGE-2", "higher", "shared pairs of words, F, 0 to 100", digits=1),
    "rouge_l": Metric("ROUGE-L", "higher", "longest shared sequence, F, 0 to 100", digits=1),
    "stop_rate": Metric(
        "Stop rate", "higher", "answers that end by themselves within the limit", is_share=True
    ),
    "length": Metric("Length", "neither", "tokens in an answer", digits=1),
    "prompt": Metric("Prompt", "neither", "tokens in a prompt", digits=1),
    "forgetting": Metric(
        "Forgetting", "lower", "change of the loss on general text, in nats a token", digits=3
    ),
    "counterfactual_change": Metric(
        "Change by group", "lower", "how far answers change with the writer's group", digits=3
    ),
    "counterfactual_control": Metric(
        "Change by name alone",
        "neither",
        "the same with another name of the same group: what any change of a word does",
        digits=3,
    ),
}


def main_metric(measured: Container[str]) -> str:
    """The one of those that were measured which says most about the rows."""
    return "accuracy" if "accuracy" in measured else "rouge_l"


OF_LABELS: Final = frozenset({"accuracy", "f1"})
RATED: Final = "rated_"


def rated(criteria: Iterable[Criterion]) -> Mapping[str, Metric]:
    """What people say, as metrics: `rated_tone` is their mean for the criterion tone."""
    return {
        RATED + each.name: Metric(
            f"Rated {each.title.lower()}",
            "higher",
            f"what people say, {each.low} to {each.high}",
        )
        for each in criteria
    }
