"""What is asked in a comparison: some everyday prompts, or a file's."""

import json
from pathlib import Path

from loragate.adapters.errors import LoragateError

Conversation = tuple[dict[str, str], ...]

_SHIPPED = (
    "I smell gas in my hallway. What should I do?",
    "My last invoice is twice as high as the one before. Why?",
    "How do I change the name on my account?",
    "Write two sentences about the sea for a postcard.",
    "The app says error 403 when I log in from my phone.",
    "Explain in simple words what a fuse is for.",
    "Cancel my contract at the end of the month, please.",
    "Which documents do I need to move to another flat?",
    "Translate 'good morning' into French, Spanish and German.",
    "List three reasons to keep a diary.",
    "Your technician did not come between 8 and 12 as promised.",
    "What is the difference between a virus and a bacterium?",
    "I would like to pay in monthly instalments from now on.",
    "Give me a short recipe for pancakes.",
    "Who is responsible for the meter reading, you or I?",
    "Sum up in one line: the meeting was moved from Monday to Thursday at ten.",
)


class BadPrompts(LoragateError):
    """A file of prompts that cannot be read."""


def shipped_prompts() -> tuple[Conversation, ...]:
    return tuple(_conversation(text) for text in _SHIPPED)


def read_prompts(path: Path) -> tuple[Conversation, ...]:
    """One a line: plain text, or an object with `prompt` or `messages`. Raises BadPrompts."""
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadPrompts(f"{path} cannot be read: {error}") from None
    if not lines:
        raise BadPrompts(f"{path} holds no prompts; write one a line")
    return tuple(_parse(path, number, line) for number, line in enumerate(lines, 1))


def _parse(path: Path, number: int, line: str) -> Conversation:
    if not line.lstrip().startswith("{"):
        return _conversation(line.strip())
    try:
        row = json.loads(line)
        if "messages" in row:
            turns = [
                {key: str(turn[key]) for key in ("role", "content")} for turn in row["messages"]
            ]
            while turns and turns[-1]["role"] == "assistant":
                turns.pop()  # the answer of a row of training data
            return tuple(turns)
        return _conversation(str(row["prompt"]))
    except (ValueError, KeyError, TypeError):
        raise BadPrompts(
            f"line {number} of {path} is no prompt: write text, or an object with `prompt` or "
            "`messages`"
        ) from None


def _conversation(text: str) -> Conversation:
    return ({"role": "user", "content": text},)
