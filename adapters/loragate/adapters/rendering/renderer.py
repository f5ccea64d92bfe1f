"""Messages to token ids, by a chat template: the one place where a prompt is made.

The server and the trainer both call it, so what was trained is what is served: the same template,
no second beginning-of-sequence token, and an end-of-turn that the loss saw. It knows nothing of
requests or models beyond the tokenizer it is given.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loragate.adapters.child_process.process import ChildUnavailable
from loragate.adapters.errors import LoragateError
from loragate.adapters.rendering.template_time import template_time
from loragate.adapters.rendering.templates import RenderingError, Templates
from loragate.adapters.rendering.token_bound import TokenBound, Truncation

IGNORED = -100  # the label of a token that is not learnt, as PyTorch and TRL have it

TemplateMessage = Mapping[str, object]  # role, content, tool_calls, …: what chat templates read

# Arguments of the rendering itself, which a template's variables must not shadow.
_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {
    "documents"
}

_TOOL_PREAMBLE = """\
You may call one or more functions to help with the user's request.
The functions, as JSON, are inside <tools></tools>:
<tools>
{tools}
</tools>
To call a function, answer with its name and arguments as JSON inside <tool_call></tool_call>:
<tool_call>
{{"name": "<function name>", "arguments": {{<arguments>}}}}
</tool_call>"""


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
    """Renders with one tokenizer, by its own template unless a call brings another."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._template = chat_template or _own_template(tokenizer)

    @cached_property
    def _bound(self) -> TokenBound:
        return TokenBound.of(self.tokenizer)

    @classmethod
    def load(cls, model_path: Path, chat_template: str | None = None) -> "Renderer":
        """Loads the tokenizer of a model directory. No network is used."""
        tokenizer = AutoTokenizer.from_pretrained(str(model_path), local_files_only=True)
        return cls(tokenizer, chat_template)

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
        if tools and "tools" not in template:
            messages, tools = _describe_tools(messages, tools), ()
        variables: dict[str, Any] = dict(template_kwargs or {})
        if taken := sorted(_RESERVED & variables.keys()):
            raise RenderingError(f"A chat template's variable cannot be named '{taken[0]}'.")
        conversation: list[Any] = [dict(message) for message in messages]
        listing: list[Any] | None = [dict(tool) for tool in tools] or None
        try:
            if templates is None:
                limit = (
                    nullcontext() if template_seconds is None else template_time(template_seconds)
                )
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
            else:
                text = templates.render(
                    template,
                    conversation,
                    tools=listing,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    variables={**self.tokenizer.special_tokens_map, **variables},
                )
        except ChildUnavailable:
            raise
        # Templates are programs of the model's makers: they raise what they like (TemplateError,
        # TypeError on a missing field, …), and every such case is the request's fault here.
        except Exception as error:
            raise RenderingError(f"The chat template refuses these messages: {error}") from error
        if not _is_unicode(str(text)):
            raise RenderingError(
                "The messages hold half of a surrogate pair (such as \\ud800 alone), which is no "
                "character; leave it out."
            )
        return self.encode(
            str(text),
            add_special_tokens=add_special_tokens,
            most_tokens=most_tokens,
            truncation=truncation,
        )

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
        if truncation is not None:
            text = self._bound.part(text, truncation)
        if most_tokens is not None and len(text) > most_tokens:
            fewest = self._bound.fewest_tokens(text)
            if fewest > most_tokens:
                raise TooManyTokens(fewest, most_tokens)
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

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


def _describe_tools(
    messages: Sequence[TemplateMessage], tools: Sequence[Mapping[str, object]]
) -> Sequence[TemplateMessage]:
    """Puts the tools into the system message, for templates that have no place for them."""
    listing = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    preamble = _TOOL_PREAMBLE.format(tools=listing)
    turns = [_without_tool_fields(message) for message in messages]
    if turns and turns[0]["role"] == "system":
        first = {**turns[0], "content": f"{turns[0].get('content') or ''}\n\n{preamble}"}
        return [first, *turns[1:]]
    return [{"role": "system", "content": preamble}, *turns]


def _without_tool_fields(message: TemplateMessage) -> TemplateMessage:
    """Writes earlier tool calls and results as text, since the template would drop them."""
    if calls := message.get("tool_calls"):
        assert isinstance(calls, Sequence)
        written = "\n".join(
            f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
            for call in calls
        )
        text = f"{message.get('content') or ''}\n{written}".strip()
        return {"role": message["role"], "content": text}
    if message["role"] == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>",
        }
    return message
