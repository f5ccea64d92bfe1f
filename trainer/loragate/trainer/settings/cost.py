"""`[cost]`: prices, which only the user knows, and what else could do the adapter's work."""

from typing import Annotated

from msgspec import Meta

from loragate.trainer.settings.section import Section

Price = Annotated[float, Meta(ge=0)]


class CostSettings(Section, frozen=True):
    """Prices are in `currency`; a price of 0 leaves the money out of the table."""

    currency: str = "USD"
    machine_per_hour: Price = 0.0  # of what trains
    million_prompt_tokens: Price = 0.0  # of what serves
    million_answer_tokens: Price = 0.0
    requests_per_month: Annotated[int, Meta(ge=0)] = 10_000
    few_shot_examples: Annotated[int, Meta(ge=0)] = 8  # that a prompt would need instead
    retrieval_tokens: Annotated[int, Meta(ge=0)] = 1500  # of passages that a prompt would carry
    probe_steps: Annotated[int, Meta(ge=1)] = 3  # measured, after one to warm up
