"""Sampling parameters in vLLM's terms, and vLLM's outputs in ours."""

import math
from collections.abc import Sequence
from typing import Literal

from vllm import SamplingParams as VllmSamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.logprobs import Logprob, SampleLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from loragate.server.core import (
    Delta,
    FinishReason,
    SamplingParams,
    StructuredOutput,
    TokenLogprob,
)
from loragate.server.engine.grammars.bounds import choices_grammar
from loragate.server.errors import InvalidRequest, RequestError

# What vLLM raises for a parameter that it refuses. In 0.32 validation errors are a tree of their
# own; in 0.26 they are ValueErrors.
REFUSALS: tuple[type[Exception], ...] = (ValueError, VLLMValidationError)
GRAMMAR_BACKEND: Literal["xgrammar"] = "xgrammar"
_FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


def vllm_sampling(sampling: SamplingParams, n: int) -> VllmSamplingParams:
    """A `None` here has no default left, so OpenAI's holds."""
    return VllmSamplingParams(
        n=n,
        max_tokens=sampling.max_tokens or 1,  # 0 comes with echo alone: the token is dropped
        min_tokens=sampling.min_tokens,
        temperature=_or(sampling.temperature, 1.0),
        top_p=_or(sampling.top_p, 1.0),
        top_k=int(_or(sampling.top_k, 0)),
        min_p=_or(sampling.min_p, 0.0),
        presence_penalty=_or(sampling.presence_penalty, 0.0),
        frequency_penalty=_or(sampling.frequency_penalty, 0.0),
        repetition_penalty=_or(sampling.repetition_penalty, 1.0),
        seed=sampling.seed,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        include_stop_str_in_output=sampling.include_stop_str_in_output,
        ignore_eos=sampling.ignore_eos,
        skip_special_tokens=sampling.skip_special_tokens,
        spaces_between_special_tokens=sampling.spaces_between_special_tokens,
        logit_bias=dict(sampling.logit_bias) or None,
        allowed_token_ids=list(sampling.allowed_token_ids) or None,
        bad_words=list(sampling.bad_words) or None,
        # With ids, vLLM reports these and the chosen token, and refuses another count beside them.
        logprobs=None if sampling.logprob_token_ids else sampling.logprobs,
        logprob_token_ids=list(sampling.logprob_token_ids) or None,
        prompt_logprobs=sampling.prompt_logprobs,
        structured_outputs=_structured_outputs(sampling.structured),
        output_kind=RequestOutputKind.DELTA,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _structured_outputs(structured: StructuredOutput | None) -> StructuredOutputsParams | None:
    if structured is None:
        return None
    params = _structured_params(structured)
    # Of its own accord vLLM would take another for what this one refuses, and from then on for all.
    params._backend = GRAMMAR_BACKEND
    return params


def _structured_params(structured: StructuredOutput) -> StructuredOutputsParams:
    match structured.kind:
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "json_schema":
            return StructuredOutputsParams(json=structured.value)
        case "regex":
            return StructuredOutputsParams(regex=structured.value)
        case "grammar":
            return StructuredOutputsParams(grammar=structured.value)
        case "structural_tag":
            return StructuredOutputsParams(structural_tag=structured.value)
        case "choice":
            return StructuredOutputsParams(grammar=choices_grammar(structured.choices))


def delta(completion: CompletionOutput, output: RequestOutput, sampling: SamplingParams) -> Delta:
    reason = completion.finish_reason
    if reason is not None and reason not in _FINISH_REASONS:
        if sampling.structured is not None:
            raise InvalidRequest(
                "The answer cannot go on within the bounds of its constraint: following that takes "
                "too long, or leads nowhere.",
                param=sampling.structured.param,
            )
        raise RequestError(f"The engine ended the request with '{reason}'.")
    scoring_only = sampling.max_tokens == 0
    return Delta(
        index=completion.index,
        text="" if scoring_only else completion.text,
        token_ids=() if scoring_only else tuple(completion.token_ids),
        logprobs=()
        if scoring_only or completion.logprobs is None
        else _token_logprobs(completion.token_ids, completion.logprobs, sampling),
        finish_reason=None if reason is None else _FINISH_REASONS[reason],
        stop_reason=completion.stop_reason,
        prompt_logprobs=_prompt_logprobs(output),
    )


def _token_logprobs(
    token_ids: Sequence[int], logprobs: SampleLogprobs, sampling: SamplingParams
) -> tuple[TokenLogprob, ...]:
    has_ranks = not sampling.logprob_token_ids
    return tuple(
        _token_logprob(token_id, candidates, has_ranks=has_ranks)
        for token_id, candidates in zip(token_ids, logprobs, strict=True)
        if candidates is not None
    )


def _token_logprob(
    token_id: int, candidates: dict[int, Logprob], *, has_ranks: bool = True
) -> TokenLogprob:
    """Of tokens that the request named, vLLM numbers the places in its list: those are no ranks."""
    if has_ranks:
        ordered = sorted(candidates.items(), key=lambda item: item[1].rank or math.inf)
    else:
        ordered = sorted(candidates.items(), key=lambda item: -item[1].logprob)
    chosen = candidates[token_id]
    return TokenLogprob(
        token=chosen.decoded_token or "",
        token_id=token_id,
        logprob=chosen.logprob,
        top=tuple(
            TokenLogprob(
                each.decoded_token or "",
                candidate,
                each.logprob,
                rank=each.rank if has_ranks else None,
            )
            for candidate, each in ordered
        ),
        rank=chosen.rank,
    )


def _prompt_logprobs(output: RequestOutput) -> tuple[TokenLogprob | None, ...] | None:
    if not output.prompt_logprobs:
        return None
    return tuple(
        None if candidates is None else _token_logprob(token_id, candidates)
        for token_id, candidates in zip(
            output.prompt_token_ids or (), output.prompt_logprobs, strict=True
        )
    )
