"""One client over each transport, with the same face, for tests that must hold on both."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import openai
from google.protobuf import json_format

from loragate.v1 import inference_pb2 as pb
from loragate.v1 import inference_pb2_grpc
from support.clients.grpc_messages import MODES
from support.server.real_server import Served

Messages = list[Any]  # of {role, content}: each client library has a type of its own


@dataclass(slots=True)
class Answer:
    """One choice, and where it came from."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    adapter: str = ""
    digest: str = ""
    mode: str = ""
    request_id: str = ""
    logprobs: list[float] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    frames: int = 0


@dataclass(eq=False)
class Refused(Exception):
    """The transport's status and the project's error code. Not frozen: it gets a traceback."""

    status: int | grpc.StatusCode
    code: str
    message: str


class Client(Protocol):
    transport: str

    def chat(self, model: str, messages: Messages, **params: Any) -> Answer: ...
    def stream(self, model: str, messages: Messages, **params: Any) -> Answer: ...
    def complete(self, model: str, prompt: str, **params: Any) -> Answer: ...
    def models(self) -> list[str]: ...


class HttpClient:
    """OpenAI's own client."""

    transport = "http"

    def __init__(self, served: Served, key: str) -> None:
        self.openai = openai.OpenAI(
            base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=120
        )

    def chat(self, model: str, messages: Messages, **params: Any) -> Answer:
        with _openai_refusals():
            raw = self.openai.chat.completions.with_raw_response.create(
                **_http_params(model, params), messages=messages
            )
        return _from_http(raw)

    def stream(self, model: str, messages: Messages, **params: Any) -> Answer:
        answer = Answer()
        with _openai_refusals():
            raw = self.openai.chat.completions.with_raw_response.create(
                **_http_params(model, params),
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
            )
            _provenance(answer, raw.headers)
            for chunk in raw.parse():
                if chunk.usage is not None:
                    answer.prompt_tokens = chunk.usage.prompt_tokens
                    answer.completion_tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    answer.frames += 1
                    answer.text += choice.delta.content or ""
                    answer.token_ids += getattr(choice, "token_ids", None) or []
                    answer.finish_reason = choice.finish_reason or answer.finish_reason
                    for call in choice.delta.tool_calls or []:
                        piece = call.function
                        assert piece is not None
                        _add_piece(answer, call.index, piece.name, piece.arguments)
        return answer

    def complete(self, model: str, prompt: str, **params: Any) -> Answer:
        with _openai_refusals():
            raw = self.openai.completions.with_raw_response.create(
                **_http_params(model, params), prompt=prompt
            )
        return _from_http(raw)

    def models(self) -> list[str]:
        with _openai_refusals():
            return [model.id for model in self.openai.models.list()]


class GrpcClient:
    """The generated stubs, synchronous."""

    transport = "grpc"

    def __init__(self, served: Served, key: str) -> None:
        self.channel = grpc.insecure_channel(served.grpc)
        self.stub = inference_pb2_grpc.InferenceStub(self.channel)
        self.metadata = (("authorization", f"Bearer {key}"),)

    def chat(self, model: str, messages: Messages, **params: Any) -> Answer:
        with _grpc_refusals():
            response, call = self.stub.Chat.with_call(
                _grpc_chat(model, messages, params), metadata=self.metadata, timeout=120
            )
        choice = response.choices[0]
        answer = _from_grpc(response, choice, choice.message.content, call)
        answer.calls = [(c.name, c.arguments) for c in choice.message.tool_calls]
        return answer

    def stream(self, model: str, messages: Messages, **params: Any) -> Answer:
        request = _grpc_chat(model, messages, params)
        request.options.include_usage = True
        answer = Answer()
        with _grpc_refusals():
            call = self.stub.ChatStream(request, metadata=self.metadata, timeout=120)
            for chunk in call:
                if chunk.HasField("usage"):
                    answer.prompt_tokens = chunk.usage.prompt_tokens
                    answer.completion_tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    answer.frames += 1
                    answer.text += choice.delta.content
                    answer.token_ids += choice.token_ids
                    answer.finish_reason = choice.finish_reason or answer.finish_reason
                    for piece in choice.delta.tool_calls:
                        _add_piece(answer, piece.index, piece.name, piece.arguments)
            _provenance(answer, dict(call.trailing_metadata()))
        return answer

    def complete(self, model: str, prompt: str, **params: Any) -> Answer:
        request = pb.CompletionRequest(model=model, prompts=[pb.Prompt(text=prompt)])
        json_format.ParseDict(_grpc_params(params), request)
        with _grpc_refusals():
            response, call = self.stub.Complete.with_call(
                request, metadata=self.metadata, timeout=120
            )
        choice = response.choices[0]
        return _from_grpc(response, choice, choice.text, call)

    def models(self) -> list[str]:
        with _grpc_refusals():
            response = self.stub.ListModels(pb.ListModelsRequest(), metadata=self.metadata)
        return [model.id for model in response.models]


# What OpenAI's client knows as arguments of its own; the rest goes into `extra_body`.
_EXTRAS = {"top_k", "min_p", "repetition_penalty", "return_token_ids", "ignore_eos", "min_tokens"}


def _http_params(model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in params.items() if key not in _EXTRAS}
    if "top_logprobs" in own:
        own["logprobs"] = True
    extras = {key: value for key, value in params.items() if key in _EXTRAS}
    return {"model": model, **own, "extra_body": extras}


def _grpc_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters in proto3's JSON form: sampling and options are messages of their own."""
    sampling = {
        key: value for key, value in params.items() if key not in _TOP_LEVEL | {"return_token_ids"}
    }
    if (stop := sampling.get("stop")) is not None:
        sampling["stop"] = [stop] if isinstance(stop, str) else stop
    if "top_logprobs" in sampling:
        sampling["logprobs"] = True
    if (wanted := sampling.pop("response_format", None)) is not None:
        sampling["response_format"] = _grpc_format(wanted)
    message: dict[str, object] = {"sampling": sampling}
    if "return_token_ids" in params:
        message["options"] = {"return_token_ids": params["return_token_ids"]}
    if "echo" in params:
        message["echo"] = params["echo"]
    return message


_TOP_LEVEL = {"tools", "tool_choice", "echo"}


def _grpc_format(wanted: object) -> dict[str, object]:
    assert isinstance(wanted, dict)
    if wanted["type"] == "json_object":
        return {"json_object": {}}
    return {"json_schema": json.dumps(wanted["json_schema"]["schema"])}


def _grpc_chat(model: str, messages: Messages, params: Mapping[str, Any]) -> pb.ChatRequest:
    request = pb.ChatRequest(model=model, messages=[pb.Message(**m) for m in messages])
    json_format.ParseDict(_grpc_params(params), request)
    for tool in params.get("tools", ()):
        function = tool["function"]
        request.tools.add(
            name=function["name"],
            description=function.get("description", ""),
            parameters_json=json.dumps(function["parameters"]),
            strict=function.get("strict", False),
        )
    match params.get("tool_choice"):
        case str(mode):
            request.tool_choice.mode = MODES[mode]
        case {"function": {"name": name}}:
            request.tool_choice.function_name = name
    return request


def _from_http(raw: Any) -> Answer:
    parsed = raw.parse()
    choice = parsed.choices[0]
    message = getattr(choice, "message", None)
    answer = Answer(
        text=(message.content or "") if message else choice.text,
        token_ids=getattr(choice, "token_ids", None) or [],
        finish_reason=choice.finish_reason,
        prompt_tokens=parsed.usage.prompt_tokens,
        completion_tokens=parsed.usage.completion_tokens,
    )
    if choice.logprobs is not None:
        entries = getattr(choice.logprobs, "content", None)
        answer.logprobs = (
            [entry.logprob for entry in entries] if entries else choice.logprobs.token_logprobs
        )
    if message is not None:
        answer.calls = [(c.function.name, c.function.arguments) for c in message.tool_calls or []]
    _provenance(answer, raw.headers)
    return answer


def _from_grpc(response: Any, choice: Any, text: str, call: Any) -> Answer:
    answer = Answer(
        text=text,
        token_ids=list(choice.token_ids),
        finish_reason=choice.finish_reason,
        prompt_tokens=response.usage.prompt_tokens,
        completion_tokens=response.usage.completion_tokens,
        logprobs=[entry.logprob for entry in choice.logprobs],
    )
    _provenance(answer, dict(call.trailing_metadata()))
    return answer


def _provenance(answer: Answer, headers: Mapping[str, str]) -> None:
    answer.adapter = headers["x-loragate-adapter"]
    answer.digest = headers["x-loragate-digest"]
    answer.mode = headers.get("x-loragate-mode", "")
    answer.request_id = headers["x-request-id"]


def _add_piece(answer: Answer, index: int, name: str | None, arguments: str | None) -> None:
    if index == len(answer.calls):
        answer.calls.append(("", ""))
    known_name, known = answer.calls[index]
    answer.calls[index] = (known_name or name or "", known + (arguments or ""))


@contextmanager
def _openai_refusals() -> Iterator[None]:
    try:
        yield
    except openai.APIStatusError as error:
        assert isinstance(error.body, dict)
        raise Refused(error.status_code, error.body["code"], error.body["message"]) from error


@contextmanager
def _grpc_refusals() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as raised:
        error: Any = raised  # a call as well, which grpc's types do not say
        trailers: dict[str, str] = dict(error.trailing_metadata() or ())
        code = trailers.get("x-error-code", "")
        raise Refused(error.code(), code, error.details() or "") from error
