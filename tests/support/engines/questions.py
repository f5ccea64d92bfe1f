"""What the engine tests ask."""

from dataclasses import dataclass
from typing import Any

ANSWER_TOKENS = 16

QUESTIONS = (
    "I smell gas in the kitchen. What should I do?",
    "My invoice is twice as high as last month.",
    "What is the capital of France?",
    "Please cancel my contract by the end of the year.",
    "Write one sentence about the sea.",
    "The app shows error 42 when I log in.",
    "How much is 12 plus 30?",
    "When will the technician come to read the meter?",
)

# What versions come and go with: weights without a version of their own, and less to ask them.
CHURN_WEIGHTS = tuple(f"churn-weights-{number}" for number in range(8))
CHURN_QUESTIONS = QUESTIONS[:3]


@dataclass(frozen=True, slots=True)
class Job:
    """One question to one model: `base`, `tenant/adapter`, or weights by their name."""

    model: str
    question: str

    @property
    def messages(self) -> list[Any]:
        return [{"role": "user", "content": self.question}]
