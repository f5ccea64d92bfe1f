"""The nouns that every part of the server shares. Transport-neutral: no HTTP, no gRPC, no vLLM.

A transport turns its wire message into a `ChatRequest` or a `CompletionRequest`; the engine answers
with `Delta`s; the gateway says by which `Route` and with what `Usage`. Field names and meanings are
those of OpenAI's API, with vLLM's additions (https://platform.openai.com/docs/api-reference).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import msgspec

from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.merged_states import Mode

ACTOR: Final = "server"  # who the audit log says did what a server does by itself
FinishReason = Literal["stop", "length", "tool_calls", "abort"]
MERGED = "+merged"  # asks for a version's merged model: support@v3+merged
BASE = "base"  # the name under which every tenant can reach the base model


@dataclass(frozen=True, slots=True)
class Caller:
    """What a transport knows of whoever calls. `tenant` is a per-tenant endpoint's, if any;
    `conversation` the client's own name for requests that belong together.
    """

    api_key: str | None
    request_id: str
    transport: str
    tenant: str | None = None
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A constraint on the text: exactly one kind, checked by the engine's grammar backend.

    `value` is a JSON schema (as JSON text) for `json_schema`, a pattern for `regex`, an EBNF for
    `grammar`, and "" for `json_object` and for `choice`, whose alternatives are in `choices`.
    `param` is the field of the request that says it, for whoever refuses it.
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar", "choice", "structural_tag"]
    value: str = ""
    choices: tuple[str, ...] = ()
    param: str = field(default="response_format", compare=False)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `None` means "not said": the adapter's contract decides, or the model.

    `logprobs` is how many alternatives to report besides the chosen token; `None` reports nothing.
    With `logprob_token_ids`, it is these that are reported besides, whatever `logprobs` says.
    `max_tokens` of `None` means: as many as the context still holds.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    structured: StructuredOutput | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made: `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `content` is text only: no served model takes images or audio."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is its JSON schema as JSON text."""

    name: str
    description: str = ""
    parameters: str = "{}"
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`auto`, `none`, `required`, or `named` with the function's name."""

    kind: Literal["auto", "none", "required", "named"]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for besides prompt and sampling, equal for chat and completions.

    `ends_with_whole`: a stream, too, says the whole answer at its end, for which it is kept.
    """

    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    user: str | None = None
    cache_salt: str = ""
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] = "left"
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    ends_with_whole: bool = False

    @property
    def has_usage_in_chunks(self) -> bool:
        return self.include_usage and self.continuous_usage


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Messages in, one assistant message (or `n` of them) out."""

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams = SamplingParams()
    options: Options = Options()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    include_reasoning: bool = True
    echo: bool = False


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts in (text or token ids), continuations out: choice `i * n + k` is of prompt `i`."""

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    sampling: SamplingParams = SamplingParams(max_tokens=16)
    options: Options = Options()
    echo: bool = False
    add_special_tokens: bool = True


Request = ChatRequest | CompletionRequest


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """Natural-log probability of one token, and of the likeliest ones (`top`, best first).

    `rank` is its place among the whole vocabulary, from 1; None where that was not computed.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    rank: int | None = None


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of a tool call: `id` and `name` come once, with the first piece of call `index`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine step added to choice `index`. A msgspec struct, since one is made per step.

    `prompt_logprobs` holds one entry per prompt token (the first is None: nothing comes before it)
    and comes at most once per choice, with its first delta, when the request asked for it.
    """

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning: str = ""
    reasoning_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. `cached_tokens` of the prompt came from the prefix cache, and
    `reasoning_tokens` of the completion were thought aloud before the answer.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def less(self, completion_tokens: int) -> "Usage":
        """As it was before the last `completion_tokens`."""
        return replace(self, completion_tokens=self.completion_tokens - completion_tokens)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: a tenant's adapter version, or the base model (`version` is None).

    `mode` says whether the version's merged model answers. `experiment` (`rollout 3`) and `arm` say
    on whose behalf, and `unit` by what the arm was chosen. `fallback` is who answers instead of who
    was to: an arm, or the version `unmerged`. Empty for all other requests.
    """

    tenant: str
    version: AdapterVersion | None = None
    mode: Mode = "unmerged"
    experiment: str = ""
    arm: str = ""
    unit: str = ""
    fallback: str = ""

    @property
    def adapter(self) -> str:
        """`acme/support@v3` or `base`: what headers, metrics and usage records show."""
        return BASE if self.version is None else str(self.version)

    @property
    def digest(self) -> str:
        return "" if self.version is None else self.version.digest

    @property
    def answers(self) -> str:
        """What computes the answer, as a client would ask for it: `acme/support@v3+merged`."""
        return f"{self.adapter}{MERGED}" if self.mode == "merged" else self.adapter

    @property
    def needs_slot(self) -> bool:
        """Whether it takes one of the base engine's LoRA slots."""
        return self.version is not None and self.mode == "unmerged"

    def unmerged(self) -> "Route":
        """The same version beside the base model, where its merged model cannot answer."""
        return replace(self, mode="unmerged", fallback=self.fallback or "unmerged")
