"""Tool calls: what a chat request's tools ask of sampling, and telling calls from text.

What the model has to write is vLLM's work, by a parser for each family of models. Of what it then
writes, see `call_formats`.
"""

import json
import re
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
    SamplingParams,
    StructuredOutput,
    ToolChoice,
)
from loragate.server.engine.vllm.call_formats import (
    BareJson,
    Call,
    CallFormat,
    GlmXml,
    ListedJson,
    MistralCalls,
    NamedArguments,
    OtherCalls,
    PythonCalls,
    QwenXml,
    RequiredCalls,
    TaggedJson,
)
from loragate.server.engine.vllm.call_reader import CallReader, CallRules
from loragate.server.engine.vllm.translation import REFUSALS
from loragate.server.errors import InvalidRequest

_TAGGED_JSON = ("hermes", "qwen3_json")
_BARE_JSON = ("llama3_json", "llama4_json")
_QWEN_XML = ("qwen3_coder", "qwen3_xml")
_GLM_XML = ("glm45", "glm47")
_PYTHON = ("pythonic", "llama4_pythonic")
# Where a parser keeps how its calls begin.
_BEGIN = re.compile(r"bot_token|(tool_?calls?_|.*_)?(start|begin)_token", re.IGNORECASE)


class VllmTools:
    """One request's tools in vLLM's terms: its parsers read and change a vLLM chat request."""

    def __init__(
        self,
        parser_class: type[Parser],
        parser_name: str,
        tokenizer: TokenizerLike,
        model_config: ModelConfig | None,
        request: ChatRequest,
    ) -> None:
        self._parser_class = parser_class
        self._parser_name = parser_name
        self._tokenizer = tokenizer
        self._model_config = model_config
        choice = request.tool_choice
        self._forced = choice if choice and choice.kind in ("required", "named") else None
        names = [tool.name for tool in request.tools]
        if self._forced and self._forced.kind == "named":
            names = [self._forced.name]
        self._rules = CallRules(
            names,
            is_forced=self._forced is not None,
            several=request.parallel_tool_calls,
            has_short_ids=parser_name == "mistral",
        )
        asked = _chat_request(request, is_forced=self._forced is not None)
        try:
            adjusted = self._new_parser(asked).adjust_request(asked)
        except REFUSALS as error:
            raise InvalidRequest(f"The tools cannot be used: {error}", param="tools") from error
        assert isinstance(adjusted, VllmChatRequest)  # of the kind that was given
        self._request = adjusted

    def bind(self, sampling: SamplingParams) -> SamplingParams:
        """A forced call goes before whatever else the text is to look like, which goes before what
        holds the calls that the model may make to their schemas.
        """
        outputs = self._request.structured_outputs
        is_free = sampling.structured is None or self._forced is not None
        return replace(
            sampling,
            structured=_constraint(outputs) if outputs and is_free else sampling.structured,
            skip_special_tokens=sampling.skip_special_tokens and self._request.skip_special_tokens,
        )

    def parser(self) -> CallReader:
        return CallReader(self._format(), self._rules)

    def _format(self) -> CallFormat:
        names, name = self._rules.names, self._parser_name
        parser = self._new_parser(self._request).tool_parser
        writes_json = parser is not None and parser.supports_required_and_named
        if self._forced is not None and writes_json:
            named = self._forced.kind == "named"
            return NamedArguments(self._forced.name) if named else RequiredCalls(names)
        if name in _TAGGED_JSON:
            return TaggedJson(names)
        if name in _BARE_JSON:
            return BareJson(names)
        if name == "phi4_mini_json":
            return ListedJson(names)
        if name == "mistral":
            return MistralCalls(names)
        if name in _QWEN_XML:
            return QwenXml(names, self._read_whole)
        if name in _GLM_XML:
            return GlmXml(names, self._read_whole)
        if name in _PYTHON:
            return PythonCalls(names, self._read_whole)
        begins = [
            value
            for key, value in vars(parser).items()
            if isinstance(value, str) and value and _BEGIN.fullmatch(key)
        ]
        return OtherCalls(names, self._read_whole, begins)

    def _read_whole(self, text: str) -> tuple[str, Sequence[Call]]:
        parser = self._new_parser(self._request)
        try:
            _, content, calls = parser.parse(text, self._request, enable_auto_tools=True)
        except Exception:  # noqa: BLE001 - of texts that it was not made for it raises anything
            return text, ()
        return content or "", [Call(call.name, call.arguments, call.id) for call in calls or ()]

    def _new_parser(self, request: VllmChatRequest) -> Parser:
        tools: list[Tool] = list(request.tools or ())
        return self._parser_class(self._tokenizer, tools, model_config=self._model_config)


def _constraint(outputs: StructuredOutputsParams) -> StructuredOutput:
    if outputs.structural_tag is not None:
        return StructuredOutput("structural_tag", outputs.structural_tag, param="tools")
    schema = outputs.json if isinstance(outputs.json, str) else json.dumps(outputs.json)
    return StructuredOutput("json_schema", schema, param="tools")


def _chat_request(request: ChatRequest, *, is_forced: bool) -> VllmChatRequest:
    """Carries over what vLLM's parsers look at. Forced calls are all held to their schemas: a small
    model that has to call writes anything otherwise.
    """
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
                        "strict": tool.strict or is_forced,
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
