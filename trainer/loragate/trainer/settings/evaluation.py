"""`[evaluation]`: what is measured on the unseen rows, and what must hold to publish."""

from typing import Annotated

from msgspec import Meta

from loragate.trainer.settings.section import Count, Section, Whole


class EvaluationSettings(Section, frozen=True):
    """`require` are sentences such as ``accuracy - base >= 0.30``; see `evaluation.requirements`.

    An empty `labels` means: those that the rows bring.
    """

    max_rows: Whole = 200  # of the test split that are asked; 0: all
    max_tokens: Count = 128  # of an answer
    labels: tuple[str, ...] = ()
    confidence: Annotated[float, Meta(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Meta(ge=100)] = 2000
    seed: Whole = 0
    counterfactual_rows: Whole = 20  # rows that are asked again with a name or group swapped
    samples: Whole = 12  # answers side by side in the report
    concurrency: Count = 8  # requests at once
    general_text: str = ""  # a text file for forgetting, paragraphs apart; "": the shipped one
    require: tuple[str, ...] = (
        "loss - base <= 0",
        "loss - champion <= 0.05",
        "forgetting <= 0.3",
        "stop_rate >= 0.9",
    )
