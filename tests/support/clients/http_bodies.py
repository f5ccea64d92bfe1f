"""What an OpenAI client sends: the server's own nouns as JSON bodies, every field of them.

The inverse of `http.requests`, written apart from it, so that a round trip proves both.
"""

import json

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

Body = dict[str, object]


def chat_body(request: ChatRequest) -> Body:
    return {
        "model": request.model,
        "messages": [message(each) for each in request.messages],
        "tools": [tool(each) for each in request.tools],
        "tool_choice": tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "add_generation_prompt": request.add_generation_prompt,
        "continue_final_message": request.continue_final_message,
        "add_special_tokens": request.add_special_tokens,
        "chat_template_kwargs": dict(request.template_kwargs),
        "include_reasoning": request.include_reasoning,
        "echo": request.echo,
        "logprobs": request.sampling.logprobs is not None,
        "top_logprobs": request.sampling.logprobs,
        **sampling(request.sampling),
        **options(request.options),
    }


def completion_body(request: CompletionRequest) -> Body:
    return {
        "model": request.model,
        "prompt": [each if isinstance(each, str) else list(each) for each in request.prompts],
        "echo": request.echo,
        "add_special_tokens": request.add_special_tokens,
        "logprobs": request.sampling.logprobs,
        **sampling(request.sampling),
        **options(request.options),
    }


def message(turn: Message) -> Body:
    return {
        "role": turn.role,
        "content": turn.content,
        "name": turn.name,
        "tool_call_id": turn.tool_call_id,
        "reasoning_content": turn.reasoning,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.tool_calls
        ],
    }


def tool(function: Tool) -> Body:
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description,
            "parameters": json.loads(function.parameters),
            "strict": function.strict,
        },
    }


def tool_choice(choice: ToolChoice | None) -> object:
    if choice is None or choice.kind != "named":
        return None if choice is None else choice.kind
    return {"type": "function", "function": {"name": choice.name}}


def sampling(params: SamplingParams) -> Body:
    """All but `logprobs`, which a chat says in two fields."""
    return {
        "n": params.n,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "seed": params.seed,
        "stop": list(params.stop),
        "stop_token_ids": list(params.stop_token_ids),
        "include_stop_str_in_output": params.include_stop_str_in_output,
        "ignore_eos": params.ignore_eos,
        "skip_special_tokens": params.skip_special_tokens,
        "spaces_between_special_tokens": params.spaces_between_special_tokens,
        "logit_bias": {str(token): value for token, value in params.logit_bias.items()},
        "allowed_token_ids": list(params.allowed_token_ids),
        "bad_words": list(params.bad_words),
        "logprob_token_ids": list(params.logprob_token_ids),
        "prompt_logprobs": params.prompt_logprobs,
        "structured_outputs": structured_outputs(params.structured),
    }


def structured_outputs(structured: StructuredOutput | None) -> Body | None:
    if structured is None:
        return None
    match structured.kind:
        case "json_object":
            return {"json_object": True}
        case "choice":
            return {"choice": list(structured.choices)}
        case "json_schema":
            return {"json": structured.value}
        case kind:
            return {kind: structured.value}


def options(asked: Options) -> Body:
    return {
        "stream": asked.stream or None,  # false would contradict the options of a stream
        "stream_options": {
            "include_usage": asked.include_usage,
            "continuous_usage_stats": asked.continuous_usage,
        },
        "user": asked.user,
        "cache_salt": asked.cache_salt,
        "truncate_prompt_tokens": asked.truncate_prompt_tokens,
        "truncation_side": asked.truncation_side,
        "return_token_ids": asked.return_token_ids,
        "return_tokens_as_token_ids": asked.return_tokens_as_token_ids,
    }
