"""From a request and its adapter's contract to what the engine gets: token ids and full sampling.

A value that the request says wins; then the contract's default; then the model's own. Caps of the
contract bind in any case.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from loragate.adapters.format.manifest import Contract
from loragate.adapters.names import AdapterVersion
from loragate.adapters.registry.snapshot import Snapshot
from loragate.adapters.rendering.renderer import Renderer, RenderingError, TooManyTokens
from loragate.adapters.rendering.templates import Templates
from loragate.adapters.rendering.token_bound import Truncation
from loragate.adapters.rendering.turns import SYSTEM_ROLES, template_turn
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import (
    ChatRequest,
    CompletionRequest,
    Message,
    Request,
    SamplingParams,
    Tool,
    ToolCall,
)
from loragate.server.engine.protocol import ReasoningSession, ServedModel, ToolSession
from loragate.server.errors import ContextLengthExceeded, InvalidRequest
from loragate.server.gateway.bounds import MOST_ANSWER_SCORES
from loragate.server.gateway.json_shape import is_too_deep
from loragate.server.gateway.request_size import is_large

# The model's own template is the operator's, but what it loops over is the client's. Of processor
# time; thousands of messages take a tenth of this.
_BASE_TEMPLATE_SECONDS = 5.0

# An adapter's own template is its publisher's program: it renders in a child process, for which one
# of as many threads waits that nothing else needs. One request of a tenant at a time, so that slow
# templates leave a child to the others. Of one tenant, so many wait: each takes a millisecond.
TEMPLATE_CHILDREN = 2
_MOST_WAIT_FOR_TEMPLATES = 1024

NO_CONTRACT = Contract()


def contract_of(snapshot: Snapshot, version: AdapterVersion | None) -> Contract:
    """None is the base model, which has no contract. Raises VersionRetired."""
    return NO_CONTRACT if version is None else snapshot.manifest(version).contract


@dataclass(frozen=True, slots=True)
class Prepared:
    """Prompts as the engine takes them. `sampling.max_tokens` is set and fits into the context.
    `tools` and `reasoning` are there once the request is bound to them, `template_kwargs` being the
    variables that the chat template had.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    tools: ToolSession | None = None
    reasoning: ReasoningSession | None = None
    template_kwargs: Mapping[str, object] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompt_ids))

    @property
    def most_tokens(self) -> int:
        """What the request can use at most: each prompt once, each choice to its end."""
        answers = len(self.prompt_ids) * self.sampling.n * (self.sampling.max_tokens or 0)
        return self.prompt_tokens + answers


class PromptBuilder:
    """Renders, truncates, and fills in what the request left open."""

    def __init__(
        self,
        renderer: Renderer,
        model: ServedModel,
        threads: FairThreads,
        templates: Templates,
        most_prompt_scores: int = 65_536,
    ) -> None:
        """`templates` renders those of adapters; it stays the caller's to close, as `threads` do.
        `most_prompt_scores` bounds the prompt's log-probabilities, alternatives included.
        """
        self.renderer = renderer
        self._model = model
        self._threads = threads
        self._most_prompt_scores = most_prompt_scores
        self._templates = templates
        self._template_threads = FairThreads(TEMPLATE_CHILDREN, _MOST_WAIT_FOR_TEMPLATES)

    async def prepare(self, request: Request, contract: Contract, tenant: str) -> Prepared:
        """Raises InvalidRequest if the template refuses or too many log-probabilities are asked
        for, ContextLengthExceeded if too long. A large request runs in threads, in which tenants
        take turns.
        """
        prompt_ids = await self.token_ids(request, contract, tenant)
        if not all(prompt_ids):
            raise InvalidRequest(
                "The prompt has no tokens; send some text.",
                param="messages" if isinstance(request, ChatRequest) else "prompt",
            )
        prompt_ids = tuple(self._truncate(ids, request) for ids in prompt_ids)
        longest = max(map(len, prompt_ids))
        sampling = self._fill_in(request, contract, longest, len(prompt_ids))
        if isinstance(request, CompletionRequest) and request.echo:
            # OpenAI's `logprobs` with `echo` covers the prompt's tokens as well.
            sampling = replace(
                sampling, prompt_logprobs=_larger(sampling.prompt_logprobs, sampling.logprobs)
            )
        self._check_prompt_scores(sampling, sum(map(len, prompt_ids)))
        return Prepared(prompt_ids, sampling, template_kwargs=_variables(request, contract))

    async def token_ids(
        self, request: Request, contract: Contract, tenant: str
    ) -> tuple[tuple[int, ...], ...]:
        """Of each prompt, whole, also where it is a little longer than the context. Raises
        InvalidRequest and, where the text's length alone says so, ContextLengthExceeded.
        """
        if contract.chat_template is not None and isinstance(request, ChatRequest):
            ids = await self._template_threads.do(tenant, True, self._render, request, contract)
            return (ids,)
        large = is_large(request)
        return await self._threads.do(
            tenant, large, self._tokenize, request, contract, is_timed=large
        )

    def _tokenize(
        self, request: Request, contract: Contract, *, is_timed: bool
    ) -> tuple[tuple[int, ...], ...]:
        if isinstance(request, ChatRequest):
            base_seconds = _BASE_TEMPLATE_SECONDS if is_timed else None
            return (self._render(request, contract, base_seconds),)
        return tuple(
            self._encode(prompt, request) if isinstance(prompt, str) else prompt
            for prompt in request.prompts
        )

    def _encode(self, prompt: str, request: CompletionRequest) -> tuple[int, ...]:
        try:
            return self.renderer.encode(
                prompt,
                add_special_tokens=request.add_special_tokens,
                most_tokens=self._most_tokens(request),
                truncation=self._truncation(request),
            )
        except TooManyTokens as error:
            raise self._too_long(f"at least {error.fewest}", "prompt") from None

    def _kept(self, request: Request) -> int | None:
        """How many of a prompt's tokens are kept; None where it is not truncated."""
        keep = request.options.truncate_prompt_tokens
        if keep != -1:
            return keep
        answer = max(1, request.sampling.max_tokens or 1)
        return max(1, self._model.max_model_len - answer)

    def _truncation(self, request: Request) -> Truncation | None:
        """None where a prompt that is longer than the context cannot fit, truncated or not."""
        keep = self._kept(request)
        if keep is None or keep > self._model.max_model_len:
            return None
        return Truncation(keep, keeps_end=request.options.truncation_side == "left")

    def _most_tokens(self, request: Request) -> int | None:
        """Of a prompt, so that it can fit; one that will be truncated may have any number."""
        return self._model.max_model_len if self._truncation(request) is None else None

    def _render(
        self, request: ChatRequest, contract: Contract, base_seconds: float | None = None
    ) -> tuple[int, ...]:
        """A template of the contract's own has its own time, the model's `base_seconds`."""
        turns = [_turn(message) for message in request.messages]
        if contract.system_prompt and turns[0]["role"] not in SYSTEM_ROLES:
            turns.insert(0, {"role": "system", "content": contract.system_prompt})
        wants_tools = request.tool_choice is None or request.tool_choice.kind != "none"
        try:
            return self.renderer.render(
                turns,
                tools=[_tool(tool) for tool in request.tools] if wants_tools else (),
                chat_template=contract.chat_template,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                add_special_tokens=request.add_special_tokens,
                template_kwargs=_variables(request, contract),
                templates=self._templates if contract.chat_template else None,
                template_seconds=base_seconds,
                most_tokens=self._most_tokens(request),
                truncation=self._truncation(request),
            )
        except TooManyTokens as error:
            raise self._too_long(f"at least {error.fewest}", "messages") from None
        except RenderingError as error:
            raise InvalidRequest(str(error), param="messages") from error

    def _truncate(self, ids: tuple[int, ...], request: Request) -> tuple[int, ...]:
        keep = self._kept(request)
        if keep is None:
            return ids
        return ids[:keep] if request.options.truncation_side == "right" else ids[-keep:]

    def _fill_in(
        self, request: Request, contract: Contract, prompt_length: int, prompts: int
    ) -> SamplingParams:
        sampling = request.sampling
        room = self._model.max_model_len - prompt_length
        wanted = sampling.max_tokens
        if room < 1 or (wanted is not None and wanted > room):
            asked = f" plus max_tokens {wanted}" if wanted is not None else ""
            of_prompt = "messages" if isinstance(request, ChatRequest) else "prompt"
            raise self._too_long(f"{prompt_length}{asked}", of_prompt if room < 1 else "max_tokens")
        max_tokens = room if wanted is None else wanted
        if contract.max_tokens_cap is not None:
            max_tokens = min(max_tokens, contract.max_tokens_cap)
        most = _most_scored_tokens(request, prompts)
        if most is not None and max_tokens > most:
            if wanted is not None:
                instead = "" if request.options.ends_with_whole else "stream it, or "
                raise InvalidRequest(
                    f"The log-probabilities of {max_tokens} tokens, with alternatives and for each "
                    f"answer, are more than the {MOST_ANSWER_SCORES} that an answer in one piece "
                    f"may have; {instead}lower max_tokens to {most}.",
                    param="max_tokens",
                )
            max_tokens = most
        stop = sampling.stop + contract.stop
        return replace(
            sampling,
            **self._defaults(sampling, contract),
            max_tokens=max_tokens,
            min_tokens=min(sampling.min_tokens, max_tokens),
            stop=stop,
            stop_token_ids=self._stop_token_ids(sampling, contract, stop),
        )

    def _stop_token_ids(
        self, sampling: SamplingParams, contract: Contract, stop: Sequence[str]
    ) -> tuple[int, ...]:
        """Those asked for, and those of stop texts that are special tokens: of these the engine
        makes no text in which it could find them.
        """
        of_texts = (self.renderer.special_token_ids.get(text) for text in stop)
        ids = (*sampling.stop_token_ids, *contract.stop_token_ids, *of_texts)
        # A contract may have been written for a base model with a larger vocabulary.
        in_vocabulary = (i for i in ids if i is not None and i < self._model.vocab_size)
        return tuple(dict.fromkeys(in_vocabulary))

    def _too_long(self, tokens: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            # LiteLLM and others know this error by its first words, which are OpenAI's and vLLM's.
            f"This model's maximum context length is {self._model.max_model_len} tokens, but the "
            f"prompt has {tokens}; shorten the prompt or lower max_tokens.",
            param=param,
        )

    def _check_prompt_scores(self, sampling: SamplingParams, prompt_tokens: int) -> None:
        if sampling.prompt_logprobs is None:
            return
        # The engine computes them anew for each answer.
        scores = prompt_tokens * (sampling.prompt_logprobs + 1) * sampling.n
        if scores > self._most_prompt_scores:
            raise InvalidRequest(
                f"The log-probabilities of {prompt_tokens} prompt tokens with "
                f"{sampling.prompt_logprobs} alternatives each and n of {sampling.n} are {scores}, "
                f"and one request may have {self._most_prompt_scores}; send fewer or shorter "
                "prompts, or ask for fewer alternatives.",
                param="prompt_logprobs",
            )

    def _defaults(self, sampling: SamplingParams, contract: Contract) -> Mapping[str, float | int]:
        defaults = {**self._model.default_sampling, **contract.sampling_defaults}
        return {key: value for key, value in defaults.items() if getattr(sampling, key) is None}


def _variables(request: Request, contract: Contract) -> Mapping[str, object]:
    """Of the chat template."""
    if not isinstance(request, ChatRequest):
        return {}
    return {**contract.chat_template_kwargs, **request.template_kwargs}


def _larger(one: int | None, other: int | None) -> int | None:
    return other if one is None else max(one, other or 0)


def _most_scored_tokens(request: Request, prompts: int) -> int | None:
    """How long an answer in one piece may be, where log-probabilities are kept for each token."""
    sampling, options = request.sampling, request.options
    is_kept = options.ends_with_whole or not options.stream
    if not is_kept or sampling.logprobs is None:
        return None
    of_each = max(sampling.logprobs, len(sampling.logprob_token_ids)) + 1
    return max(1, MOST_ANSWER_SCORES // (prompts * sampling.n * of_each))


def _turn(message: Message) -> dict[str, object]:
    return template_turn(
        message.role,
        message.content or "",
        name=message.name,
        reasoning=message.reasoning,
        tool_call_id=message.tool_call_id,
        calls=[(call.id, call.name, _arguments(call)) for call in message.tool_calls or ()],
    )


def _arguments(call: ToolCall) -> dict[str, object]:
    """A model may have written them cut off, or as no object, and clients send back what they got:
    such arguments are none, as vLLM takes them, or no later turn could be answered.
    """
    text = call.arguments.encode("utf-8", "surrogatepass")
    if is_too_deep(text):
        return {}
    try:
        arguments: object = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _tool(tool: Tool) -> dict[str, object]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": json.loads(tool.parameters),
    }
    return {"type": "function", "function": function}
