"""Which tokens of a conversation are learnt: the assistant's, and the one that ends each turn.

A turn is learnt behind the very ids with which the server asks for it. Some templates write a turn
otherwise once others follow it (without its reasoning, or without what ends it): then the next turn
begins a row of its own, with the earlier ones as the server will write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from loragate.adapters.rendering.control_tokens import common_start
from loragate.adapters.rendering.templates import RenderingError
from loragate.adapters.rendering.turns import TemplateMessage, is_shown
from loragate.adapters.rendering.writing import Writer

IGNORED = -100  # the label of a token that is not learnt, as PyTorch and TRL have it

# Stands for an answer, to see what a template writes before it. No text has it.
_MARK: Final = "\U000f4a3c"
# How reasoning begins and ends, where templates open it for the model.
_TAGS: Final = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
_INLINE: Final = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_ANCHORS: Final = ("", "\n", "a", ":")


@dataclass(frozen=True, slots=True)
class EndIds:
    """The tokens at which an engine ends an answer; `own` is the tokenizer's end of a text."""

    own: int | None
    ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Supervised:
    """A conversation for training: a label is the id where the loss counts, or `IGNORED`.

    `ends` are the tokens that end its learnt turns. `lost_reasoning`: a learnt turn had reasoning
    for which the template has no place.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    ends: frozenset[int] = frozenset()
    lost_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a template writes of an answer behind its prompt."""

    text: str
    shows_reasoning: bool


@dataclass(frozen=True, slots=True)
class Supervision:
    """Makes rows of turns that `writer` writes. `encode` takes a text, and of how many messages it
    is; `control` are the ids of control tokens.
    """

    writer: Writer
    encode: Callable[[str, int], tuple[int, ...]]
    decode: Callable[[Sequence[int]], str]
    ends: EndIds
    control: frozenset[int]

    def rows(
        self, messages: Sequence[TemplateMessage], unlearnt: Collection[int]
    ) -> tuple[Supervised, ...]:
        """Raises RenderingError."""
        rows: list[Supervised] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index in unlearnt:
                continue
            prompt = self.writer.write(messages[:index])
            ids = self.encode(prompt, index)
            answer = self._answer(messages, index, prompt)
            learnt = self._answer_ids(answer, prompt, ids, index)
            learnt = self._ended(learnt, ids, messages, index)
            before = rows[-1] if rows else Supervised((), ())
            if rows and ids[: len(before.input_ids)] == before.input_ids:
                rows.pop()
            else:
                before = Supervised((), ())
            ignored = [IGNORED] * (len(ids) - len(before.input_ids))
            rows.append(
                Supervised(
                    (*ids, *learnt),
                    (*before.labels, *ignored, *learnt),
                    before.ends | {learnt[-1]},
                    before.lost_reasoning or not answer.shows_reasoning,
                )
            )
        return tuple(rows)

    def _answer(self, messages: Sequence[TemplateMessage], index: int, prompt: str) -> _Answer:
        """With the turn's reasoning where the template, or the model's vocabulary, has a place for
        it; else without.
        """
        refusal: RenderingError | None = None
        first: _Answer | None = None
        ways = _with_reasoning_placed(messages[index], prompt, may_be_inline=self._knows_thoughts)
        for message, reasoning in ways:
            try:
                answer = self._written(messages[:index], message, reasoning, prompt, index)
            except RenderingError as error:
                refusal = refusal or error
                continue
            if answer.shows_reasoning:
                return answer
            first = first or answer
        if first is None:
            assert refusal is not None
            raise refusal
        return first

    @property
    def _knows_thoughts(self) -> bool:
        added = cast(Mapping[str, int], self.writer.tokenizer.added_tokens_encoder)
        return "</think>" in self.writer.template or "</think>" in added

    def _written(
        self,
        before: Sequence[TemplateMessage],
        message: TemplateMessage,
        reasoning: str,
        prompt: str,
        index: int,
    ) -> _Answer:
        whole = self.writer.write([*before, message], add_generation_prompt=False)
        if whole.startswith(prompt):
            text = whole[len(prompt) :]
        else:
            text = self._behind_opening(before, message, prompt, whole, index)
        if not message.get("tool_calls") and not is_shown(message.get("content"), text):
            raise RenderingError(
                f"the chat template does not write what turn {index + 1}, the assistant's, says; "
                "leave the turn out, or train with another [model] chat_template"
            )
        return _Answer(text, not reasoning or reasoning in text)

    def _behind_opening(
        self,
        before: Sequence[TemplateMessage],
        message: TemplateMessage,
        prompt: str,
        whole: str,
        index: int,
    ) -> str:
        """The answer behind a prompt that is no beginning of the whole: it ends with what the
        template leaves out of finished turns, such as the beginning of reasoning, or the template
        moves a part of what precedes the answer, such as the system message.
        """
        plain = {"role": "assistant", "content": _MARK}
        marked = self.writer.write([*before, plain], add_generation_prompt=False)
        asked = self.writer.write(before, add_generation_prompt=False)
        common = len(common_start(prompt, marked))
        if common >= len(common_start(prompt, asked)) and whole.startswith(prompt[:common]):
            opening, answer = prompt[common:], whole[common:]
        else:
            start = max(0, marked.find(_MARK))
            header = marked[:start]
            opening = _left_open(prompt, asked, header, str(before[-1].get("content")))
            is_same = whole[:start] == header
            request = prompt[len(asked) :] if prompt.startswith(asked) else ""
            if opening is None and request and request in header:
                # What stands between the request and the text is the model's to write.
                opening, start = "", header.rfind(request) + len(request)
            if opening is None or not is_same:
                raise RenderingError(
                    f"the chat template writes what precedes turn {index + 1}, the assistant's, "
                    "otherwise once that turn is there, so it cannot be told apart; leave the turn "
                    "out, or train with another [model] chat_template"
                )
            answer = whole[start:]
        for begin, end in _TAGS:
            if opening.rstrip().endswith(begin) and end not in answer:
                reasoning = str(message.get("reasoning_content") or "").strip("\n")
                return f"{reasoning}\n{end}\n\n{answer.lstrip()}"
        return answer

    def _answer_ids(
        self, answer: _Answer, prompt: str, ids: tuple[int, ...], index: int
    ) -> tuple[int, ...]:
        """Behind the prompt's ids, which are the engine's: no token reaches over their end."""
        whole = self.encode(prompt + answer.text, index + 1)
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        said = self.decode(whole)
        for anchor in _ANCHORS:  # some tokenizers begin a text as they begin a word
            head = self.encode(anchor, index + 1)
            both = self.encode(anchor + answer.text, index + 1)
            if both[: len(head)] == head and self.decode([*ids, *both[len(head) :]]) == said:
                return both[len(head) :]
        raise RenderingError(
            f"the beginning of turn {index + 1}, the assistant's, makes one token with what "
            "precedes it; begin the answer with a letter"
        )

    def _ended(
        self,
        learnt: tuple[int, ...],
        asked: tuple[int, ...],
        messages: Sequence[TemplateMessage],
        index: int,
    ) -> tuple[int, ...]:
        """Up to the token that ends the turn, which comes last: one at which the engine ends an
        answer; else the template's own; else the engine's, which the template leaves out. `asked`
        are the prompt's ids.
        """
        stop = next((n for n, token in enumerate(learnt) if token in self.ends.ids), len(learnt))
        own = self._first_control_of_tail(learnt[:stop])
        if stop < len(learnt) and own is None:
            return learnt[: stop + 1]
        more = self._with_next_turn(messages, index)
        if stop < len(learnt):
            # A template may end a turn and then the whole text; once others follow, the turn alone.
            history = self.encode(more, index + 2)[len(asked) :] if more else learnt
            is_last_alone = history[: stop + 1] != learnt[: stop + 1]
            is_own = own is not None and history[: own + 1] == learnt[: own + 1]
            return (
                learnt[: own + 1]
                if own is not None and is_last_alone and is_own
                else learnt[: stop + 1]
            )
        if own is not None and self._ends_plain_answers(learnt[own], messages[:index]):
            return learnt[: own + 1]
        following = self._following(messages, index)
        if following in self.ends.ids:
            return (*learnt, cast(int, following))
        if self.ends.own is None:
            raise RenderingError(
                "nothing ends an answer: neither the chat template nor the tokenizer has a token "
                "for it, so the adapter would never learn to stop; set the tokenizer's eos_token, "
                "or a [model] chat_template that ends turns"
            )
        return (*learnt, self.ends.own)

    def _first_control_of_tail(self, ids: tuple[int, ...]) -> int | None:
        """Where the control tokens begin with which the ids end, spaces between them aside."""
        first = None
        for place in reversed(range(len(ids))):
            if ids[place] in self.control:
                first = place
            elif self.decode(ids[place : place + 1]).strip():
                break
        return first

    def _ends_plain_answers(self, token: int, before: Sequence[TemplateMessage]) -> bool:
        """Whether the template ends an answer of mere text with the token; it may be a call's end
        alone, which is no end of a turn.
        """
        plain = {"role": "assistant", "content": _MARK}
        written = self.writer.write([*before, plain], add_generation_prompt=False)
        return token in self.encode(written[written.rfind(_MARK) + 1 :], len(before) + 1)

    def _following(self, messages: Sequence[TemplateMessage], index: int) -> int | None:
        """The token with which the template begins the turn behind this one, if it is told."""
        # Without reasoning, which a template may leave out once the next turn is there.
        turns = [*messages[:index], _without_reasoning(messages[index]), *messages[index + 1 :]]
        alone = self.writer.write(turns[: index + 1], add_generation_prompt=False)
        more = self._with_next_turn(turns, index)
        if not more.startswith(alone):
            return None
        return next(iter(self.encode(more[len(alone) :].lstrip(), index + 2)), None)

    def _with_next_turn(self, messages: Sequence[TemplateMessage], index: int) -> str:
        """The conversation up to the turn behind this one; empty where the template refuses it."""
        calls = bool(messages[index].get("tool_calls"))
        next_one: TemplateMessage = {"role": "tool" if calls else "user", "content": _MARK}
        if index + 1 < len(messages):
            next_one = messages[index + 1]
        try:
            return self.writer.write(
                [*messages[: index + 1], next_one], add_generation_prompt=False
            )
        except RenderingError:
            return ""


def _left_open(prompt: str, asked: str, header: str, question: str) -> str | None:
    """What a prompt has behind the header with which the template begins a finished answer; None
    where the two do not end alike.
    """
    if not prompt.startswith(asked):
        return None
    request = prompt[len(asked) :]
    if not request:
        alike = common_start(prompt[::-1], header[::-1])[::-1]
        return "" if question.strip() and question.strip() in alike else None
    for end in range(len(request), 0, -1):
        if header.endswith(request[:end]):
            return request[end:]
    return None


def _with_reasoning_placed(
    message: TemplateMessage, prompt: str, *, may_be_inline: bool
) -> list[tuple[TemplateMessage, str]]:
    """A turn as it is, and in other ways in which a template may show its reasoning, each with the
    reasoning to look for; the last is without it.
    """
    reasoning = str(message.get("reasoning_content") or "").strip()
    content = str(message.get("content") or "")
    bare = _without_reasoning(message)
    if reasoning:
        ways: list[tuple[TemplateMessage, str]] = [(message, reasoning)]
        # A prompt that ends a thought says that there is none.
        if may_be_inline and not prompt.rstrip().endswith("</think>"):
            inline = f"<think>\n{reasoning}\n</think>\n\n{content}"
            ways.append(({**bare, "content": inline}, reasoning))
        return [*ways, (bare, reasoning)]
    if (found := _INLINE.match(content)) and found[1].strip():
        split = {"content": found[2].lstrip(), "reasoning_content": found[1].strip()}
        return [
            (message, found[1].strip()),
            ({**bare, **split, "reasoning": split["reasoning_content"]}, found[1].strip()),
            (bare, found[1].strip()),
        ]
    return [(message, "")]


def _without_reasoning(message: TemplateMessage) -> TemplateMessage:
    names = ("reasoning_content", "reasoning", "thinking")
    bare = {name: value for name, value in message.items() if name not in names}
    found = _INLINE.match(str(message.get("content") or ""))
    return bare if found is None else {**bare, "content": found[2].lstrip()}


def read_end_ids(model_path: Path) -> frozenset[int]:
    """The tokens that end a model's answers by its own settings, as vLLM reads them."""
    for name in ("generation_config.json", "config.json"):
        try:
            settings = json.loads((model_path / name).read_bytes())
        except (OSError, ValueError):
            continue
        found = cast(Mapping[str, object], settings).get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        return frozenset(each for each in cast(list[object], ids) if isinstance(each, int))
    return frozenset()
