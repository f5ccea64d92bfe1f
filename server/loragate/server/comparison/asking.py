"""A server's client for comparisons: greedy answers, scores of given tokens, timed streams."""

import itertools
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from loragate.adapters.errors import LoragateError
from loragate.server.comparison.prompts import Conversation
from loragate.server.wire.headers import MODE

Scores = Mapping[int, float]
"""Log-probabilities at one position, of the likeliest tokens and of the one that stands there."""


class ComparisonFailed(LoragateError):
    """A server would not answer, or another than was asked did."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked: `model` as the API has it, and the mode that its answers have to come in."""

    name: str
    model: str
    mode: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Timed:
    """A stream's times in seconds: its beginning by the clock, and each token's since then."""

    began: float
    arrivals: tuple[float, ...]

    @property
    def gaps(self) -> tuple[float, ...]:
        return tuple(later - sooner for sooner, later in itertools.pairwise(self.arrivals))


class ComparisonClient:
    """Use it as a context manager: it keeps connections. All calls raise ComparisonFailed."""

    def __init__(self, url: str, api_key: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        headers = {"authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=300, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def answer(self, target: Target, conversation: Conversation, tokens: int) -> Answered:
        """Greedily, `tokens` at most."""
        body = {
            "messages": list(conversation),
            "max_tokens": tokens,
            "temperature": 0,
            "return_token_ids": True,
        }
        reply = await self._post(target, "/v1/chat/completions", body)
        choice = reply["choices"][0]
        return Answered(
            tuple(reply["prompt_token_ids"]),
            tuple(choice["token_ids"]),
            choice["message"]["content"] or "",
        )

    async def score(self, target: Target, token_ids: Sequence[int], top: int) -> list[Scores]:
        """At every position but the first."""
        body = {
            "prompt": list(token_ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top,
        }
        reply = await self._post(target, "/v1/completions", body)
        return [
            {int(token): entry["logprob"] for token, entry in position.items()}
            for position in reply["choices"][0]["prompt_logprobs"][1:]
        ]

    async def stream(self, target: Target, prompt: Sequence[int], tokens: int) -> Timed:
        """Exactly `tokens` tokens, greedily, and nothing of the prompt from a cache."""
        body = {
            "model": target.model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "cache_salt": uuid.uuid4().hex,
        }
        began, arrivals = time.perf_counter(), list[float]()
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.is_error:
                    await response.aread()
                _check(target, response)
                async for line in response.aiter_lines():
                    if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                        arrivals.append(time.perf_counter() - began)
        except httpx.HTTPError as error:
            raise ComparisonFailed(f"{target.name} gave no answer: {error!r}") from error
        return Timed(began, tuple(arrivals))

    async def _post(self, target: Target, path: str, body: dict[str, object]) -> dict[str, list]:
        try:
            response = await self._http.post(path, json={"model": target.model, **body})
        except httpx.HTTPError as error:
            raise ComparisonFailed(f"{target.name} gave no answer: {error!r}") from error
        _check(target, response)
        return response.json()


def _check(target: Target, response: httpx.Response) -> None:
    if response.is_error:
        raise ComparisonFailed(
            f"{target.name} gave no answer: {response.status_code} {response.text[:300]}"
        )
    mode = response.headers.get(MODE, "")
    if mode != target.mode:
        raise ComparisonFailed(
            f"{target.name} was asked, and answered {mode or 'by the base model'}: it went down "
            "meanwhile; see `loragate adapter show`, and compare again"
        )
