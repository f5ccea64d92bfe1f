"""What a model thinks aloud before it answers, told from the answer by vLLM's parsers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest as VllmChatRequest,
)
from vllm.parser.abstract_parser import Parser
from vllm.tokenizers import TokenizerLike

from loragate.server.core import Delta, SamplingParams
from loragate.server.engine.protocol import Thought


class VllmReasoning:
    """A `ReasoningSession`: one request's, by a parser that knows of no tools."""

    def __init__(
        self,
        parser_class: type[Parser],
        tokenizer: TokenizerLike,
        model_config: ModelConfig | None,
        template_kwargs: Mapping[str, object],
        prompt_ids: Sequence[int],
    ) -> None:
        self._parser_class = parser_class
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._template_kwargs = dict(template_kwargs)
        parser = self._new_parser()
        adjusted = parser.adjust_request(_no_tools())
        assert isinstance(adjusted, VllmChatRequest)  # of the kind that was given
        self._request = adjusted
        tags = parser.reasoning_parser
        self._begin = tags.reasoning_start_str if tags else None
        self._end = tags.reasoning_end_str if tags else None
        self._special = set(getattr(self._tokenizer, "all_special_ids", ()))
        vocabulary = self._tokenizer.get_vocab()
        self._tags = {
            vocabulary[tag]: tag for tag in (self._begin, self._end) if tag and tag in vocabulary
        }
        self._turn_ids = self._last_turn(prompt_ids)
        self._late: dict[int, str] = {}

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        skips = sampling.skip_special_tokens and self._request.skip_special_tokens
        # The engine holds back text that may become a stop text, and so a tag later than its id.
        if sampling.stop:
            hidden = self._special if skips else set[int]()
            self._late = {i: tag for i, tag in self._tags.items() if i not in hidden}
        return replace(sampling, skip_special_tokens=skips)

    def parser(self) -> "VllmReasoningParser":
        return VllmReasoningParser(
            self._new_parser(), self._request, self._turn_ids, self._begin or "", self._late
        )

    def _new_parser(self) -> Parser:
        return self._parser_class(
            self._tokenizer,
            [],
            model_config=self._model_config,
            chat_template_kwargs=self._template_kwargs,
        )

    def _last_turn(self, prompt_ids: Sequence[int]) -> list[int]:
        """What the template has written of the answer: tags that earlier turns or a user wrote say
        nothing of whether this one thinks.
        """
        special = self._special - self._tags.keys()
        start = len(prompt_ids)
        while start and prompt_ids[start - 1] not in special:
            start -= 1
        return list(prompt_ids[start:])


class VllmReasoningParser:
    """A `ReasoningParser` for one choice."""

    def __init__(
        self,
        parser: Parser,
        request: VllmChatRequest,
        turn_ids: list[int],
        begin: str,
        late: Mapping[int, str],
    ) -> None:
        """`late` are tags whose text may come behind their ids."""
        self._parser = parser
        self._request = request
        self._turn_ids = turn_ids
        self._begin = begin
        self._late = late
        self._text = ""
        self._ids: list[int] = []
        self._has_thought = False
        self._uncounted = 0  # tokens of no text yet, such as the first tag

    def push(self, delta: Delta) -> Thought:
        self._text += delta.text
        self._ids += delta.token_ids
        is_last = delta.finish_reason is not None
        awaited = (self._late[each] for each in self._ids if each in self._late)
        if not is_last and any(tag not in self._text for tag in awaited):
            return Thought("", "", 0)
        text, ids = self._text, self._ids
        self._text, self._ids = "", []
        said = self._parser.parse_delta(
            text, ids, self._request, prompt_token_ids=self._turn_ids, finished=is_last
        )
        reasoning = (said.reasoning or "") if said else ""
        content = (said.content or "") if said else ""
        if reasoning and not self._has_thought:
            self._has_thought = True
            reasoning = reasoning.removeprefix(self._begin)  # as some parsers leave it there
        return Thought(reasoning, content, self._count(len(ids), reasoning, content))

    def _count(self, tokens: int, reasoning: str, content: str) -> int:
        if reasoning and content:  # by their shares of the text
            tokens = round(tokens * len(reasoning) / len(reasoning + content))
        self._uncounted += tokens
        if not reasoning and not content:
            return 0
        counted = self._uncounted if reasoning else 0
        self._uncounted = 0
        return counted


def _no_tools() -> VllmChatRequest:
    return VllmChatRequest.model_validate({"messages": [{"role": "user", "content": ""}]})
