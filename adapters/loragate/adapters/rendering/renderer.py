"""Messages to token ids, by a chat template: the one place where a prompt is made.

The server and the trainer both call it, so what was trained is what is served: the same template,
no second beginning-of-sequence token, and an end-of-turn that the loss saw. It knows nothing of
requests or models beyond the tokenizer it is given.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loragate.adapters.child_process.process import ChildUnavailable
from loragate.adapters.errors import LoragateError
from loragate.adapters.rendering.control_tokens import ControlTokens, Hidden
from loragate.adapters.rendering.template_time import template_time
from loragate.adapters.rendering.templates import RenderingError, Templates
from loragate.adapters.rendering.token_bound import TokenBound, Truncation
from loragate.adapters.rendering.turns import (
    RESERVED_VARIABLES,
    TemplateMessage,
    describe_tools,
    has_calls,
    shows_calls,
    with_known_roles,
    written_out,
)

IGNORED = -100  # the label of a token that is not learnt, as PyTorch and TRL have it

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


@dataclass(frozen=True, slots=True)
class Supervised:
    """A conversation for training: a label is the id where the loss counts, or `IGNORED`."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


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
    ) -> None:
        self.tokenizer = tokenizer
        self._template = chat_template or _own_template(tokenizer)
        self._special_tokens_in_text = special_tokens_in_text

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
    ) -> "Renderer":
        """Loads the tokenizer of a model directory. No network is used."""
        tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
        return cls(tokenizer, chat_template, special_tokens_in_text)

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
        template = chat_template or self._template
        if not template:
            raise RenderingError(
                "This model has no chat template, so messages cannot be rendered; "
                "use /v1/completions, or set engine.chat_template."
            )
        variables: dict[str, Any] = dict(template_kwargs or {})
        if taken := sorted(_RESERVED & variables.keys()):
            raise RenderingError(f"A chat template's variable cannot be named '{taken[0]}'.")
        hidden = self._hidden(messages, tools, variables)
        if hidden is not None:
            messages, tools, variables = hidden.hide([list(messages), list(tools), variables])

        def write(turns: Sequence[TemplateMessage]) -> str:
            listing = tools
            if tools and "tools" not in template:
                turns, listing = describe_tools(turns, tools), ()
            try:
                return self._write(
                    template,
                    turns,
                    listing,
                    variables,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    template_seconds=template_seconds,
                    templates=templates,
                )
            except ChildUnavailable:
                raise
            # Templates are programs of the model's makers: they raise what they like
            # (TemplateError, TypeError on a missing field, …), all of it the request's fault here.
            except Exception as error:
                said = str(error) if hidden is None else hidden.show(str(error))
                raise RenderingError(f"The chat template refuses these messages: {said}") from error

        turns = with_known_roles(messages, template)
        if has_calls(turns) and "tool_calls" not in template:
            turns = written_out(turns)
        text = write(turns)
        if not shows_calls(text, turns):
            with suppress(RenderingError):  # then the template has its reasons
                text = write(written_out(turns))
        if not _is_unicode(text):
            raise RenderingError(
                "The messages hold half of a surrogate pair (such as \\ud800 alone), which is no "
                "character; leave it out."
            )
        return self._encode(text, hidden, add_special_tokens, most_tokens, truncation)

    def _write(
        self,
        template: str,
        messages: Sequence[TemplateMessage],
        tools: Sequence[Mapping[str, object]],
        variables: dict[str, Any],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_seconds: float | None,
        templates: Templates | None,
    ) -> str:
        """Raises whatever the template does."""
        conversation: list[Any] = [dict(message) for message in messages]
        listing: list[Any] | None = [dict(tool) for tool in tools] or None
        if templates is not None:
            return templates.render(
                template,
                conversation,
                tools=listing,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables={**self.tokenizer.special_tokens_map, **variables},
            )
        limit = nullcontext() if template_seconds is None else template_time(template_seconds)
        with limit:
            text = self.tokenizer.apply_chat_template(
                conversation,
                tools=listing,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **variables,
            )
        return str(text)

    def _hidden(self, *values: object) -> Hidden | None:
        """None where the values can be rendered as they are."""
        if self._special_tokens_in_text == "control":
            return None
        return self._control_tokens.find(*values)

    def supervise(
        self, messages: Sequence[TemplateMessage], *, chat_template: str | None = None
    ) -> Supervised:
        """Returns a conversation's ids with a loss on the assistant's turns and their end-of-turn.

        Each assistant turn is found as the difference between two renderings of the same prefix,
        so no template needs generation markers. Raises RenderingError where a template is not
        prefix-stable, that is, where it rewrites earlier turns.
        """
        ids: tuple[int, ...] = ()
        labels: list[int] = []
        for end, message in enumerate(messages, start=1):
            if message["role"] != "assistant":
                continue
            prompt = self.render(messages[: end - 1], chat_template=chat_template)
            full = self.render(
                messages[:end], chat_template=chat_template, add_generation_prompt=False
            )
            if full[: len(prompt)] != prompt or prompt[: len(ids)] != ids:
                raise RenderingError(
                    "The chat template changes earlier turns when later ones follow, so the "
                    f"assistant's turn {end} cannot be told apart for training."
                )
            labels += [IGNORED] * (len(prompt) - len(ids))
            labels += self._until_end_of_turn(full[len(prompt) :])
            ids = full
        return Supervised(ids, tuple(labels))

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

    def _until_end_of_turn(self, answer: tuple[int, ...]) -> list[int]:
        """Labels up to the end-of-turn token; what the template adds behind it is not learnt."""
        end = self.tokenizer.eos_token_id
        stop = answer.index(end) + 1 if end in answer else len(answer)
        return [*answer[:stop], *([IGNORED] * (len(answer) - stop))]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return template or ""
