"""Every field of a chat or completion request: what comes of it, over either transport.

This is the one list. HTTP makes its bodies of it, and says by it what it refuses; gRPC reads its
messages by it; `validation` checks its ranges, and the documentation shows it. A field that is
null, or not set, was not said. What no row names is refused over HTTP, with the name that was
perhaps meant.

It knows the fields' names, kinds and bounds, not how a transport writes what is no plain value.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from loragate.server.gateway import bounds

Call = Literal["chat", "completion"]
Kind = Literal["number", "integer", "boolean", "string", "strings", "integers", "other"]
INT64: Final = 2**63
_BOTH: Final = ("chat", "completion")
_LONGEST_NAME: Final = 64  # of a field that anything is to be likened to


@dataclass(frozen=True, slots=True)
class Range:
    """Both ends included, unless the low one is to be exceeded. `most` may be a limit of the model
    or of the configuration, by its name in `RequestLimits`.
    """

    least: float
    most: float | Literal["max_choices", "max_logprobs"]
    is_above: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """A field that has an effect.

    `into` is the attribute that it becomes, in a `ChatRequest` or a `CompletionRequest`, and the
    field of a gRPC message of the same structure, unless `message` has another ("": it has none).
    Of several rows for one attribute, the last that is said holds. `most` bounds its entries.
    """

    name: str
    kind: Kind
    into: str
    says: str
    calls: tuple[Call, ...] = _BOTH
    range: Range | None = None
    most: int | None = None
    message: str | None = None
    is_required: bool = False

    @property
    def place(self) -> str:
        """Its path in a gRPC message."""
        return self.into if self.message is None else self.message


@dataclass(frozen=True, slots=True)
class Ignored:
    """A hint: whatever it says, the answer is right without it."""

    name: str
    says: str
    calls: tuple[Call, ...] = _BOTH


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that would change the answer, and is not served. Its `harmless` values ask for
    nothing, and pass, as does the value of the field `same_as`. `says` is the rest of a sentence
    that begins with "NAME is not served".
    """

    name: str
    says: str
    calls: tuple[Call, ...] = _BOTH
    harmless: tuple[object, ...] = ()
    same_as: str | None = None

    def passes(self, value: object, body: Mapping[str, object]) -> bool:
        is_said_already = self.same_as is not None and value == body.get(self.same_as)
        return value is None or value in self.harmless or is_said_already


_CHAT: tuple[Call, ...] = ("chat",)
_COMPLETION: tuple[Call, ...] = ("completion",)
_USE_STRUCTURED: Final = "use structured_outputs, or response_format"
_USE_TOOLS: Final = "use tools and tool_choice"
_NO_TRANSFER: Final = "caches are not moved between servers; leave it out"

SERVED: Final = (
    Served(
        "model",
        "string",
        "model",
        "NAME, NAME@alias, NAME@v3, or base.",
        most=bounds.MOST_NAME_CHARACTERS,
        is_required=True,
    ),
    Served(
        "messages",
        "other",
        "messages",
        "The conversation: text, in one piece or in parts.",
        _CHAT,
        most=bounds.MOST_MESSAGES,
        is_required=True,
    ),
    Served(
        "prompt",
        "other",
        "prompts",
        "A text or token ids, one or several.",
        _COMPLETION,
        most=bounds.MOST_PROMPTS,
        is_required=True,
    ),
    # How tokens are chosen.
    Served(
        "n",
        "integer",
        "sampling.n",
        "Answers to each prompt.",
        range=Range(1, "max_choices"),
    ),
    Served(
        "max_tokens",
        "integer",
        "sampling.max_tokens",
        "Tokens of an answer at most. By default as many as the context holds; 16 of a completion.",
        range=Range(0, INT64),
    ),
    Served(
        "max_completion_tokens",
        "integer",
        "sampling.max_tokens",
        "OpenAI's newer name of max_tokens; it goes first.",
        _CHAT,
        message="",
    ),
    Served(
        "min_tokens",
        "integer",
        "sampling.min_tokens",
        "Tokens before an answer may end.",
        range=Range(0, INT64),
    ),
    Served(
        "temperature", "number", "sampling.temperature", "0: the likeliest.", range=Range(0, 10)
    ),
    Served(
        "top_p",
        "number",
        "sampling.top_p",
        "Among the likeliest tokens of so much probability.",
        range=Range(0, 1, is_above=True),
    ),
    Served(
        "top_k",
        "integer",
        "sampling.top_k",
        "Among so many of the likeliest tokens; 0 and -1: all.",
        range=Range(-1, INT64),
    ),
    Served(
        "min_p",
        "number",
        "sampling.min_p",
        "Among tokens of so much of the likeliest one's probability.",
        range=Range(0, 1),
    ),
    Served(
        "presence_penalty",
        "number",
        "sampling.presence_penalty",
        "Against tokens that the answer has.",
        range=Range(-2, 2),
    ),
    Served(
        "frequency_penalty",
        "number",
        "sampling.frequency_penalty",
        "Against tokens by how often the answer has them.",
        range=Range(-2, 2),
    ),
    Served(
        "repetition_penalty",
        "number",
        "sampling.repetition_penalty",
        "Against tokens that prompt or answer have; 1: none.",
        range=Range(0, 10, is_above=True),
    ),
    Served(
        "seed",
        "integer",
        "sampling.seed",
        "The same seed, the same answer.",
        range=Range(-INT64, INT64 - 1),
    ),
    Served(
        "stop",
        "other",
        "sampling.stop",
        "A text or several at which the answer ends; special tokens stop on their ids.",
        most=bounds.MOST_STOPS,
    ),
    Served(
        "stop_token_ids",
        "integers",
        "sampling.stop_token_ids",
        "Tokens at which the answer ends.",
        most=bounds.MOST_STOP_TOKENS,
    ),
    Served(
        "include_stop_str_in_output",
        "boolean",
        "sampling.include_stop_str_in_output",
        "Keeps the stop text at the answer's end.",
    ),
    Served("ignore_eos", "boolean", "sampling.ignore_eos", "Goes on after the model's own end."),
    Served(
        "skip_special_tokens",
        "boolean",
        "sampling.skip_special_tokens",
        "Leaves special tokens out of the text. By default true.",
    ),
    Served(
        "spaces_between_special_tokens",
        "boolean",
        "sampling.spaces_between_special_tokens",
        "By default true.",
    ),
    Served(
        "logit_bias",
        "other",
        "sampling.logit_bias",
        "Token ids, and what is added to their logits: -100 to 100.",
        most=bounds.MOST_LOGIT_BIASES,
    ),
    Served(
        "allowed_token_ids",
        "integers",
        "sampling.allowed_token_ids",
        "No other token is chosen.",
        most=bounds.MOST_ALLOWED_TOKENS,
    ),
    Served(
        "bad_words",
        "strings",
        "sampling.bad_words",
        "Texts that do not come.",
        most=bounds.MOST_BAD_WORDS,
    ),
    Served(
        "logprobs",
        "boolean",
        "",
        "Reports the log-probability of each token.",
        _CHAT,
        message="sampling.logprobs",
    ),
    Served(
        "top_logprobs",
        "integer",
        "sampling.logprobs",
        "And those of so many of the likeliest; needs logprobs.",
        _CHAT,
        range=Range(0, "max_logprobs"),
        message="sampling.top_logprobs",
    ),
    Served(
        "logprobs",
        "integer",
        "sampling.logprobs",
        "Reports the log-probability of each token, and of so many of the likeliest.",
        _COMPLETION,
        range=Range(0, "max_logprobs"),
        message="sampling.top_logprobs",
    ),
    Served(
        "logprob_token_ids",
        "integers",
        "sampling.logprob_token_ids",
        "Reports these tokens, and the chosen one, in place of the likeliest; needs logprobs.",
        most=bounds.MOST_LOGPROB_TOKENS,
    ),
    Served(
        "prompt_logprobs",
        "integer",
        "sampling.prompt_logprobs",
        "Reports the log-probabilities of the prompt, with so many alternatives a token.",
        range=Range(0, "max_logprobs"),
    ),
    Served(
        "response_format",
        "other",
        "sampling.structured",
        "text, json_object, json_schema or structural_tag. A call that must be made goes first.",
        message="sampling.response_format",
    ),
    Served(
        "structured_outputs",
        "other",
        "sampling.structured",
        "vLLM's constraints, one of them: json, regex, choice, grammar, json_object, "
        "structural_tag. What it says of white space and of additional properties is ignored.",
        message="sampling.response_format",
    ),
    # What the prompt is made of.
    Served(
        "tools",
        "other",
        "tools",
        "Functions that the model may call.",
        _CHAT,
        most=bounds.MOST_TOOLS,
    ),
    Served("tool_choice", "other", "tool_choice", "none, auto, required, or a function.", _CHAT),
    Served("parallel_tool_calls", "boolean", "parallel_tool_calls", "By default true.", _CHAT),
    Served(
        "add_generation_prompt",
        "boolean",
        "add_generation_prompt",
        "Ends the prompt with the start of an assistant's turn. By default true.",
        _CHAT,
    ),
    Served(
        "continue_final_message",
        "boolean",
        "continue_final_message",
        "Goes on with the last message; needs add_generation_prompt set to false.",
        _CHAT,
    ),
    Served(
        "add_special_tokens",
        "boolean",
        "add_special_tokens",
        "The tokenizer's own, such as a BOS. By default false for a chat, true for a completion.",
    ),
    Served(
        "chat_template_kwargs",
        "other",
        "template_kwargs",
        "Variables of the chat template.",
        _CHAT,
    ),
    Served(
        "reasoning_effort",
        "other",
        "template_kwargs",
        "The template's variable of that name; enable_thinking, if it has that: all but none.",
        _CHAT,
        message="",
    ),
    Served(
        "documents",
        "other",
        "template_kwargs",
        "The template's variable of that name.",
        _CHAT,
        most=bounds.MOST_MESSAGES,
        message="",
    ),
    Served(
        "include_reasoning",
        "boolean",
        "include_reasoning",
        "False: what the model thinks aloud is not sent.",
        _CHAT,
    ),
    Served("echo", "boolean", "echo", "Puts what the answer goes on with in front of it."),
    Served(
        "truncate_prompt_tokens",
        "integer",
        "options.truncate_prompt_tokens",
        "Keeps so many tokens of a longer prompt; -1: as many as fit.",
        range=Range(-1, INT64),
    ),
    Served(
        "truncation_side",
        "other",
        "options.truncation_side",
        "Which end goes: left, the default, or right.",
    ),
    # What else an answer has, and how it comes.
    Served(
        "stream",
        "boolean",
        "options.stream",
        "In pieces, as they are made. Over gRPC the method says it.",
        message="",
    ),
    Served(
        "stream_options",
        "other",
        "options",
        "include_usage, continuous_usage_stats; include_obfuscation is ignored.",
        message="options.include_usage, options.continuous_usage",
    ),
    Served(
        "return_token_ids", "boolean", "options.return_token_ids", "Those of prompt and answer."
    ),
    Served(
        "return_tokens_as_token_ids",
        "boolean",
        "options.return_tokens_as_token_ids",
        "Writes token_id:17 for a token's text.",
    ),
    Served("user", "string", "options.user", "Whose request it is: by that, trials choose an arm."),
    Served(
        "cache_salt",
        "string",
        "options.cache_salt",
        "Only requests of the same salt share cached prefixes.",
    ),
)

IGNORED: Final = (
    Ignored("metadata", "no record of it is kept."),
    Ignored("store", "nothing is stored."),
    Ignored("service_tier", "there is one."),
    Ignored("safety_identifier", "send user."),
    Ignored("prompt_cache_key", "the same prefixes are found by themselves."),
    Ignored("prompt_cache_retention", "the cache keeps what it has room for."),
    Ignored("prompt_cache_options", "the cache keeps what it has room for."),
    Ignored("request_id", "send the header x-request-id."),
    Ignored("session_id", "send the header x-conversation-id."),
    Ignored("length_penalty", "it is for beam search."),
    Ignored("early_stopping", "it is for beam search."),
    Ignored("stream_interval", "each token comes when it is there."),
    Ignored("return_token_offsets", "as in vLLM, outside of its own rendering."),
    Ignored("mm_payload", "as in vLLM, outside of its own rendering."),
    Ignored("return_mm_kwargs", "as in vLLM, outside of its own rendering."),
    Ignored("mm_processor_kwargs", "text alone is served."),
    Ignored("media_io_kwargs", "text alone is served."),
    Ignored("prediction", "it makes answers faster elsewhere.", _CHAT),
    Ignored("verbosity", "say it in a message.", _CHAT),
)

REFUSED: Final = (
    Refused("use_beam_search", "leave it out", harmless=(False,)),
    Refused("priority", "every tenant has the same; leave it out", harmless=(0,)),
    Refused("watermarking", "leave it out", harmless=(False,)),
    Refused("thinking_token_budget", "bound the answer with max_tokens", harmless=(-1,)),
    Refused("repetition_detection", "use repetition_penalty or frequency_penalty"),
    Refused("vllm_xargs", "leave it out", harmless=({},)),
    Refused("kv_transfer_params", _NO_TRANSFER),
    Refused("ec_transfer_params", _NO_TRANSFER),
    Refused("routed_experts_prompt_start", "leave it out", harmless=(0,)),
    Refused("logits_processors", "use logit_bias, or structured_outputs", harmless=([],)),
    Refused("guided_json", _USE_STRUCTURED),
    Refused("guided_regex", _USE_STRUCTURED),
    Refused("guided_choice", _USE_STRUCTURED),
    Refused("guided_grammar", _USE_STRUCTURED),
    Refused("guided_json_object", _USE_STRUCTURED, harmless=(False,)),
    Refused("guided_decoding_backend", "there is one; use structured_outputs"),
    Refused("guided_whitespace_pattern", _USE_STRUCTURED),
    Refused("regex", _USE_STRUCTURED),
    Refused("ebnf", _USE_STRUCTURED),
    Refused("json_schema", _USE_STRUCTURED),
    Refused("grammar", _USE_STRUCTURED),
    Refused("lora_path", "the adapter is named by model"),
    Refused("extra_body", "put its fields beside the others", harmless=({},)),
    Refused("extra_headers", "send them as headers", harmless=({},)),
    Refused(
        "chat_template",
        "templates belong to an adapter's manifest, or to engine.chat_template",
        _CHAT,
    ),
    Refused("return_prompt_text", "ask for return_token_ids, or /tokenize", _CHAT, (False,)),
    Refused("enable_thinking", "put it into chat_template_kwargs", _CHAT),
    Refused("modalities", "text alone is served", _CHAT, (["text"],)),
    Refused("audio", "text alone is served", _CHAT),
    Refused("web_search_options", "this server calls no tools itself", _CHAT),
    Refused("functions", _USE_TOOLS, _CHAT, ([],)),
    Refused("function_call", _USE_TOOLS, _CHAT, ("none",)),
    Refused("best_of", "ask for n instead", _COMPLETION, (1,), same_as="n"),
    Refused("suffix", "no model here fills in; leave it out", _COMPLETION, ("",)),
    Refused("prompt_embeds", "send a text or token ids", _COMPLETION),
)

# Names of the same thing elsewhere, which are too far from ours to be likened to them.
_MEANT: Final = MappingProxyType(
    {
        "max_new_tokens": "max_tokens",
        "max_output_tokens": "max_tokens",
        "min_new_tokens": "min_tokens",
        "stop_sequences": "stop",
        "input": "messages",
        "random_seed": "seed",
    }
)


def served(call: Call) -> tuple[Served, ...]:
    """The rows of a call, in the order in which later ones override earlier ones."""
    return tuple(row for row in SERVED if call in row.calls)


def ignored(call: Call) -> tuple[Ignored, ...]:
    return tuple(row for row in IGNORED if call in row.calls)


def refused(call: Call) -> Mapping[str, Refused]:
    return {row.name: row for row in REFUSED if call in row.calls}


def spelled_like(name: str, known: Iterable[str]) -> str | None:
    """The name that was perhaps meant."""
    known = tuple(known)
    if _MEANT.get(name) in known:
        return _MEANT[name]
    near = difflib.get_close_matches(name[:_LONGEST_NAME].lower(), known, n=1, cutoff=0.7)
    return near[0] if near else None
