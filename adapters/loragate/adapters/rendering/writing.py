"""Messages to the text that a chat template makes of them.

Templates differ in what they take: some refuse a system message, some leave calls of tools out,
some want their arguments as text. What a template refuses or leaves out is put to it in other ways,
in one order for the server and the trainer, so both come to the same text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from loragate.adapters.child_process.process import ChildUnavailable
from loragate.adapters.rendering.control_tokens import Hidden
from loragate.adapters.rendering.template_time import TemplateTooSlow, template_time
from loragate.adapters.rendering.templates import RenderingError, Templates, TemplateTooCostly
from loragate.adapters.rendering.turns import (
    TemplateMessage,
    describe_tools,
    has_calls,
    names_elsewhere,
    other_ways,
    shows_calls,
    shows_last,
    shows_system,
    with_known_names,
    with_known_roles,
    with_other_names,
    written_out,
)

# A template of an adapter's own has a bound of processor time for each try, and there are dozens of
# tries where it drops what it is given: this is for all of them, by the clock.
_MOST_SECONDS = 5.0
Attempt = Callable[[Sequence[TemplateMessage]], str]


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes turns of one conversation by one template. `hidden` is what was hidden of its turns,
    tools and variables, all of which stay hidden in the text.

    `seconds` bounds a template that computes here; one that is not to be trusted is rendered by
    `templates`, to the same text.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    tools: Sequence[Mapping[str, object]] = ()
    variables: Mapping[str, object] | None = None
    hidden: Hidden | None = None
    seconds: float | None = None
    templates: Templates | None = None

    def write(
        self,
        messages: Sequence[TemplateMessage],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """Raises RenderingError where the template refuses the messages in every way."""
        turns = with_known_names(with_known_roles(messages, self.template), self.template)
        listing = self.tools
        if has_calls(turns) and "tool_calls" not in self.template:
            turns = written_out(turns)
        if listing and "tools" not in self.template:
            turns, listing = describe_tools(turns, listing), ()

        began = time.monotonic()

        def attempt(way: Sequence[TemplateMessage]) -> str:
            if self.templates is not None and time.monotonic() - began > _MOST_SECONDS:
                # Refused, and not the text so far: that would depend on what else computes.
                raise TemplateTooCostly("it takes too long, and drops or refuses what it is given")
            return self._attempt(way, listing, add_generation_prompt, continue_final_message)

        # One bound for all ways together, or a slow template would take many times as long.
        limit = nullcontext() if self.seconds is None else template_time(self.seconds)
        try:
            with limit:
                return self._first_complete(other_ways(turns), attempt)
        except (ChildUnavailable, RenderingError):
            raise
        except Exception as error:
            raise self._refused(error) from error

    def _first_complete(
        self,
        ways: Iterable[Sequence[TemplateMessage]],
        attempt: Attempt,
    ) -> str:
        """The text of the first way of which it has everything; else of the first that the template
        takes. Raises what the template raised first.
        """
        refusal: Exception | None = None
        incomplete: str | None = None
        for way in ways:
            try:
                text = attempt(way)
            except (ChildUnavailable, TemplateTooSlow):
                raise
            except TemplateTooCostly as error:
                raise self._refused(error) from error
            # Templates are programs of the model's makers: they raise what they like
            # (TemplateError, TypeError on a missing field, …), all of it the request's fault here.
            except Exception as error:  # noqa: BLE001
                refusal = refusal or error
                continue
            is_whole = shows_last(text, way) and self._shows_calls(text, way, attempt)
            if is_whole and not _ignores_system(text, way, attempt):
                return text
            incomplete = text if incomplete is None else incomplete
        if incomplete is not None:
            return incomplete  # the template has its reasons
        assert refusal is not None
        raise self._refused(refusal) from refusal

    def _shows_calls(self, text: str, way: Sequence[TemplateMessage], attempt: Attempt) -> bool:
        if not shows_calls(text, way):
            return False
        if not names_elsewhere(way, self.tools):
            return True
        renamed = with_other_names(way)
        try:
            return shows_calls(attempt(renamed), renamed)
        except (ChildUnavailable, TemplateTooSlow, TemplateTooCostly):
            raise
        except Exception:  # noqa: BLE001 - a template that looks at names shows what it knows
            return True

    def _refused(self, error: Exception) -> RenderingError:
        said = str(error) if self.hidden is None else self.hidden.show(str(error))
        return RenderingError(f"The chat template refuses these messages: {said}")

    def _attempt(
        self,
        messages: Sequence[TemplateMessage],
        tools: Sequence[Mapping[str, object]],
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        """Raises whatever the template does."""
        conversation: list[Any] = [dict(message) for message in messages]
        listing: list[Any] | None = [dict(tool) for tool in tools] or None
        variables: dict[str, Any] = dict(self.variables or {})
        if self.templates is not None:
            return self.templates.render(
                self.template,
                conversation,
                tools=listing,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables={**self.tokenizer.special_tokens_map, **variables},
            )
        text = self.tokenizer.apply_chat_template(
            conversation,
            tools=listing,
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **variables,
        )
        return str(text)


def _ignores_system(
    text: str,
    way: Sequence[TemplateMessage],
    attempt: Attempt,
) -> bool:
    """Whether a system message has no part in the text. Some templates read only a word of it,
    which is a part.
    """
    if shows_system(text, way) or len(way) < 2:
        return False
    try:
        return text == attempt(way[1:])
    except (ChildUnavailable, TemplateTooSlow, TemplateTooCostly):
        raise
    except Exception:  # noqa: BLE001 - then the template cannot do without it
        return False
