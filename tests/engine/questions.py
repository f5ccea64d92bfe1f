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


@dataclass(frozen=True, slots=True)
class Job:
    """One question to one model: `base` or `tenant/adapter`."""

    model: str
    question: str

    @property
    def messages(self) -> list[Any]:
        return [{"role": "user", "content": self.question}]
