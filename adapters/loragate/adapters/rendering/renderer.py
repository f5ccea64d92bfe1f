"""Messages to token ids, by a chat template: the one place where a prompt is made.

The server and the trainer both call it, so what was trained is what is served: the same template,
no second beginning-of-sequence token, and an end-of-turn that the loss saw. It knows nothing of
requests or models beyond the tokenizer it is given.
"""

import hashlib
import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loragate.adapters.errors import LoragateError
from loragate.adapters.rendering.control_tokens import ControlTokens, Hidden
from loragate.adapters.rendering.supervision import (
    IGNORED,
    EndIds,
    Supervised,
    Supervision,
    read_end_ids,
)
from loragate.adapters.rendering.templates import RenderingError, Templates
from loragate.adapters.rendering.token_bound import TokenBound, Truncation
from loragate.adapters.rendering.turns import RESERVED_VARIABLES, TemplateMessage
from loragate.adapters.rendering.writing import Writer

__all__ = ["IGNORED", "Renderer", "RenderingError", "Supervised", "TooManyTokens"]

# Arguments of the rendering itself, which a template's variables must not shadow.
_RESERVED = (
    RESERVED_VARIABLES
    | frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
) - {"documents", "kwargs"}


class TooManyTokens(LoragateError):
    """The text has more tokens than it may have; that much shows without tokenizing it."""

    def __init__(self, fewest: int, most: int) -> None:
        super().__init__(fewest, most)
        self.fewest = fewest
        self.most = most

    def __str__(self) -> str:
        return f"the text has {self.fewest} tokens or more, and may have {self.most}"


class Renderer:
    """Renders with one tokenizer, by its own template unless a call brings another.

    A control token's text in a message is text, or with `special_tokens_in_text` of "control" the
    token itself, by which whoever wrote the message can end its turn and begin another's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        special_tokens_in_text: Literal["text", "control"] = "text",
        *,
        variables: Mapping[str, object] | None = None,
        end_ids: Iterable[int] = (),
    ) -> None:
        """`variables` are the template's where a call does not say otherwise. `end_ids` end an
        answer, as the tokenizer's own end of a text does.
        """
        self.tokenizer = tokenizer
        self._template = chat_template or _own_template(tokenizer)
        self._special_tokens_in_text = special_tokens_in_text
        self._variables = dict(variables or {})
        own = cast(int | None, tokenizer.eos_token_id)
        self.ends = EndIds(own, frozenset(end_ids) | ({own} if own is not None else set()))

    @cached_property
    def special_token_ids(self) -> Mapping[str, int]:
        """By text: the tokens that decoding leaves out."""
        added = self.tokenizer.added_tokens_decoder
        return {token.content: token_id for token_id, token in added.items() if token.special}

    @cached_property
    def _bound(self) -> TokenBound:
        return TokenBound.of(self.tokenizer)

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    @cached_property
    def _bound_of_names(self) -> TokenBound:
        """Of texts in which control tokens go by names that are longer than they are."""
        longest = max(
            (len(name.encode()) for name in self._control_tokens.names.values()), default=0
        )
        bound = self._bound
        own = bound.bytes_of_longest
        return replace(bound, bytes_of_longest=max(own, longest)) if own else bound

    @classmethod
    def load(
        cls,
        model_path: Path,
        chat_template: str | None = None,
        special_tokens_in_text: Literal["text", "control"] = "text",
        *,
        variables: Mapping[str, object] | None = None,
    ) -> "Renderer":
        """Loads the tokenizer of a model directory, and which tokens end the model's answers. No
        network is used.
        """
        tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
        return cls(
            tokenizer,
            chat_template,
            special_tokens_in_text,
            variables=variables,
            end_ids=read_end_ids(model_path),
        )

    def render(
        self,
        messages: Sequence[TemplateMessage],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: Mapping[str, object] | None = None,
        template_seconds: float | None = None,
        most_tokens: int | None = None,
        truncation: Truncation | None = None,
        templates: Templates | None = None,
    ) -> tuple[int, ...]:
        """Returns the prompt's token ids. Raises RenderingError where the template refuses, and
        TooManyTokens as `encode` does.

        Special tokens come from the template alone; `add_special_tokens` is for templates that
        leave the first one out. A template that computes for longer than `template_seconds` is
        stopped, and taken to refuse. One that is not to be trusted is rendered by `templates`, to
        the same text: apart, and within their bounds.
        """
        template = self._template_or(chat_template)
        variables = {**self._variables, **(template_kwargs or {})}
        if taken := sorted(_RESERVED & variables.keys()):
            raise RenderingError(f"A chat template's variable cannot be named '{taken[0]}'.")
        hidden = self._hidden(messages, tools, variables)
        if hidden is not None:
            messages, tools, variables = hidden.hide([list(messages), list(tools), variables])

        writer = Writer(
            self.tokenizer, template, tools, variables, hidden, template_seconds, templates
        )
        text = writer.write(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        _require_unicode(text)
        return self._encode(text, hidden, add_special_tokens, most_tokens, truncation)

    def _hidden(self, *values: object) -> Hidden | None:
        """None where the values can be rendered as they are."""
        if self._special_tokens_in_text == "control":
            return None
        return self._control_tokens.find(*values)

    def supervise(
        self,
        messages: Sequence[TemplateMessage],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        unlearnt: Collection[int] = (),
    ) -> tuple[Supervised, ...]:
        """Returns rows that teach each turn of the assistant but those at the indices `unlearnt`.

        What precedes a turn in a row are the ids that `render` gives for the messages before it.
        Turns share a row where that is so for all of them. Raises RenderingError where a turn
        cannot be told from what precedes it.
        """
        template = self._template_or(None)
        hidden = self._hidden(messages, tools, self._variables)
        turns, listing, variables = list(messages), list(tools), dict(self._variables)
        if hidden is not None:
            turns, listing, variables = hidden.hide([turns, listing, variables])
        writer = Writer(self.tokenizer, template, listing, variables, hidden)

        def encode(text: str, before: int) -> tuple[int, ...]:
            _require_unicode(text)
            # As `render` does for the messages up to there, which may have nothing that hides.
            own = (
                None if hidden is None else self._hidden(messages[:before], tools, self._variables)
            )
            return self._encode(text, hidden if own is not None else None, False, None, None)

        return Supervision(writer, encode, self.decode, self.ends, self._control_tokens.ids).rows(
            turns, unlearnt
        )

    def changes_with(self, variable: str, value: object) -> bool:
        """Whether a variable of the chat template changes how it asks for an answer."""
        question = [{"role": "user", "content": "Hello"}]
        if variable not in self._template:
            return False
        changed = self.render(question, template_kwargs={variable: value})
        return changed != self.render(question)

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        most_tokens: int | None = None,
        truncation: Truncation | None = None,
    ) -> tuple[int, ...]:
        """Raises TooManyTokens, before it takes any time, where the text's length alone says that
        there will be more than `most_tokens`. There may still be more where it does not.

        With a `truncation`, which is the caller's to make, tokens are left out that it will drop.
        """
        return self._encode(text, None, add_special_tokens, most_tokens, truncation)

    def _encode(
        self,
        text: str,
        hidden: Hidden | None,
        add_special_tokens: bool,
        most_tokens: int | None,
        truncation: Truncation | None,
    ) -> tuple[int, ...]:
        bound = self._bound
        if hidden is not None:
            text, bound = hidden.written(text), self._bound_of_names
        if truncation is not None:
            text = bound.part(text, truncation)
        if most_tokens is not None and len(text) > most_tokens:
            fewest = bound.fewest_tokens(text)
            if fewest > most_tokens:
                raise TooManyTokens(fewest, most_tokens)
        tokens = self.tokenizer if hidden is None else self._control_tokens
        return tuple(tokens.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def template_hash(self) -> str:
        return hashlib.sha256(self._template.encode()).hexdigest()

    def _template_or(self, chat_template: str | None) -> str:
        template = chat_template or self._template
        if not template:
            raise RenderingError(
                "This model has no chat template, so messages cannot be rendered; "
                "use /v1/completions, or set engine.chat_template."
            )
        return template


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RenderingError(
            "The messages hold half of a surrogate pair (such as \\ud800 alone), which is no "
            "character; leave it out."
        ) from None


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return template or ""
