"""What a gRPC client does: the server's own nouns as messages, every field of them, and calls.

The conversions are the inverse of `rpc.decode`, written apart from it, so that a round trip
proves both.
"""

from collections.abc import AsyncIterable, Awaitable

import grpc
import pytest
from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import MethodDescriptor

from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Message,
    Options,
    SamplingParams,
    StructuredOutput,
    Tool,
    ToolChoice,
)
from loragate.v1 import inference_pb2 as pb

MODES = {
    "auto": pb.ToolChoice.MODE_AUTO,
    "none": pb.ToolChoice.MODE_NONE,
    "required": pb.ToolChoice.MODE_REQUIRED,
}
SIDES = {
    "left": pb.Options.TRUNCATION_SIDE_LEFT,
    "right": pb.Options.TRUNCATION_SIDE_RIGHT,
}


def chat(request: ChatRequest) -> pb.ChatRequest:
    return pb.ChatRequest(
        model=request.model,
        messages=map(message, request.messages),
        sampling=sampling(request.sampling),
        options=options(request.options),
        tools=map(tool, request.tools),
        tool_choice=tool_choice(request.tool_choice) if request.tool_choice else None,
        parallel_tool_calls=request.parallel_tool_calls,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        add_special_tokens=request.add_special_tokens,
        template_kwargs=json_format.ParseDict(dict(request.template_kwargs), struct_pb2.Struct()),
        include_reasoning=request.include_reasoning,
        echo=request.echo,
    )


def completion(request: CompletionRequest) -> pb.CompletionRequest:
    return pb.CompletionRequest(
        model=request.model,
        prompts=[
            pb.Prompt(text=prompt)
            if isinstance(prompt, str)
            else pb.Prompt(token_ids=pb.TokenIds(ids=prompt))
            for prompt in request.prompts
        ],
        sampling=sampling(request.sampling),
        options=options(request.options),
        echo=request.echo,
        add_special_tokens=request.add_special_tokens,
    )


def message(turn: Message) -> pb.Message:
    return pb.Message(
        role=turn.role,
        content=turn.content,
        name=turn.name,
        tool_calls=[
            pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
            for call in turn.tool_calls
        ],
        tool_call_id=turn.tool_call_id,
        reasoning=turn.reasoning,
    )


def tool(function: Tool) -> pb.Tool:
    return pb.Tool(
        name=function.name,
        description=function.description,
        parameters_json=function.parameters,
        strict=function.strict,
    )


def tool_choice(choice: ToolChoice) -> pb.ToolChoice:
    if choice.kind == "named":
        return pb.ToolChoice(function_name=choice.name)
    return pb.ToolChoice(mode=MODES[choice.kind])


def sampling(params: SamplingParams) -> pb.SamplingParams:
    return pb.SamplingParams(
        n=params.n,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        seed=params.seed,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        include_stop_str_in_output=params.include_stop_str_in_output,
        ignore_eos=params.ignore_eos,
        skip_special_tokens=params.skip_special_tokens,
        spaces_between_special_tokens=params.spaces_between_special_tokens,
        logit_bias=params.logit_bias,
        allowed_token_ids=params.allowed_token_ids,
        bad_words=params.bad_words,
        logprobs=params.logprobs is not None,
        top_logprobs=params.logprobs,
        logprob_token_ids=params.logprob_token_ids,
        prompt_logprobs=params.prompt_logprobs,
        response_format=response_format(params.structured) if params.structured else None,
    )


def response_format(structured: StructuredOutput) -> pb.ResponseFormat:
    match structured.kind:
        case "json_object":
            return pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())
        case "choice":
            return pb.ResponseFormat(choice=pb.ResponseFormat.Choices(texts=structured.choices))
        case "json_schema":
            return pb.ResponseFormat(json_schema=structured.value)
        case "regex":
            return pb.ResponseFormat(regex=structured.value)
        case "grammar":
            return pb.ResponseFormat(grammar=structured.value)
        case "structural_tag":
            return pb.ResponseFormat(structural_tag=structured.value)


def options(asked: Options) -> pb.Options:
    """`stream` has no field: the method says it."""
    return pb.Options(
        include_usage=asked.include_usage,
        continuous_usage=asked.continuous_usage,
        user=asked.user,
        cache_salt=asked.cache_salt,
        truncate_prompt_tokens=asked.truncate_prompt_tokens,
        truncation_side=SIDES[asked.truncation_side],
        return_token_ids=asked.return_token_ids,
        return_tokens_as_token_ids=asked.return_tokens_as_token_ids,
    )


Call = (
    grpc.aio.UnaryUnaryCall[bytes, bytes]
    | grpc.aio.UnaryStreamCall[bytes, bytes]
    | grpc.aio.StreamUnaryCall[bytes, bytes]
)


def call(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    request: bytes = b"",
    metadata: tuple[tuple[str, str], ...] = (),
) -> Call:
    """Calls any method with the bytes of its request; none are an empty message."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        return channel.stream_unary(path)(iter([request]), metadata=metadata)
    if method.server_streaming:
        return channel.unary_stream(path)(request, metadata=metadata)
    return channel.unary_unary(path)(request, metadata=metadata)


async def refusal(call: Awaitable[object] | AsyncIterable[object]) -> grpc.aio.AioRpcError:
    """Reads an answer to its end, which has to be an error."""

    async def read() -> None:
        if isinstance(call, AsyncIterable):
            async for _ in call:
                pass
        else:
            await call

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await read()
    return failure.value
