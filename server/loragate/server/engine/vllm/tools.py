"""Tool calls: what a chat request's tools ask of sampling, and telling calls from text.

Both are vLLM's parsers' work, one for each family of models.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import msgspec
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest as VllmChatRequest,
)
from vllm.parser.abstract_parser import Parser
from vllm.sampling_params import StructuredOutputsParams
from vllm.tokenizers import TokenizerLike
from vllm.tool_parsers.abstract_tool_parser import Tool

from loragate.server.core import (
    ChatRequest,
    Delta,
    SamplingParams,
    StructuredOutput,
    ToolCallDelta,
    ToolChoice,
)
from loragate.server.engine.vllm.translation import REFUSALS
from loragate.server.errors import InvalidRequest


class VllmTools:
    """One request's tools in vLLM's terms: its parsers read and change a vLLM chat request."""

    def __init__(
        self,
        parser_class: type[Parser],
        tokenizer: TokenizerLike,
        model_config: ModelConfig,
        request: ChatRequest,
        prompt_ids: Sequence[int],
    ) -> None:
        self._parser_class = parser_class
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._prompt_ids = list(prompt_ids)
        asked = _chat_request(request)
        try:
            adjusted = self._new_parser(asked).adjust_request(asked)
        except REFUSALS as error:
            raise InvalidRequest(f"The tools cannot be used: {error}", param="tools") from error
        assert isinstance(adjusted, VllmChatRequest)  # of the kind that was given
        self._request = adjusted

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        outputs = self._request.structured_outputs
        return replace(
            sampling,
            structured=sampling.structured if outputs is None else _constraint(outputs),
            skip_special_tokens=sampling.skip_special_tokens and self._request.skip_special_tokens,
        )

    def parser(self) -> "VllmToolCallParser":
        return VllmToolCallParser(self._new_parser(self._request), self._request, self._prompt_ids)

    def _new_parser(self, request: VllmChatRequest) -> Parser:
        tools: list[Tool] = list(request.tools or ())
        return self._parser_class(self._tokenizer, tools, model_config=self._model_config)


class VllmToolCallParser:
    """A `ToolCallParser` over vLLM's streaming parser of one model family."""

    def __init__(self, parser: Parser, request: VllmChatRequest, prompt_ids: list[int]) -> None:
        self._parser = parser
        self._request = request
        self._prompt_ids = prompt_ids

    def push(self, delta: Delta) -> tuple[str, tuple[ToolCallDelta, ...]]:
        message = self._parser.parse_delta(
            delta.text,
            list(delta.token_ids),
            self._request,
            prompt_token_ids=self._prompt_ids,
            finished=delta.finish_reason is not None,
        )
        if message is None:
            return "", ()
        calls = tuple(
            ToolCallDelta(
                index=call.index,
                id=call.id,
                name=call.function.name if call.function else None,
                arguments=(call.function.arguments or "") if call.function else "",
            )
            for call in message.tool_calls
        )
        return message.content or "", calls


def _constraint(outputs: StructuredOutputsParams) -> StructuredOutput:
    if outputs.structural_tag is not None:
        return StructuredOutput("structural_tag", outputs.structural_tag, param="tools")
    schema = outputs.json if isinstance(outputs.json, str) else json.dumps(outputs.json)
    return StructuredOutput("json_schema", schema, param="tools")


def _chat_request(request: ChatRequest) -> VllmChatRequest:
    """Carries over what vLLM's parsers look at: tools, choice, and whether text is constrained."""
    return VllmChatRequest.model_validate(
        {
            "messages": [{"role": "user", "content": ""}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": msgspec.json.decode(tool.parameters),
                        "strict": tool.strict,
                    },
                }
                for tool in request.tools
            ],
            "tool_choice": _tool_choice(request.tool_choice),
            "parallel_tool_calls": request.parallel_tool_calls,
        }
    )


def _tool_choice(choice: ToolChoice | None) -> object:
    match choice:
        case None:
            return "auto"
        case ToolChoice(kind="named", name=name):
            return {"type": "function", "function": {"name": name}}
        case ToolChoice(kind=kind):
            return kind
