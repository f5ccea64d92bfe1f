"""A chat over the server's public HTTP API, read as it streams. It knows nothing of terminals."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

import httpx
import msgspec

from loragate.adapters.errors import LoragateError
from loragate.adapters.names import parse_tenant
from loragate.server.admin_client.remote_errors import authorization, require_success, speaking_with
from loragate.server.wire.headers import ADAPTER


class ChatError(LoragateError):
    """There is nobody to talk to by this name, or the server broke its answer off."""


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """Whom to talk to: a tenant's `support`, `support@v2`, `support@challenger` or `base`."""

    tenant: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `acme/support@v2`. Raises ChatError or InvalidName."""
        tenant, _, model = text.partition("/")
        if not model:
            raise ChatError(f"'{text}' names no adapter: write TENANT/ADAPTER, as in acme/support.")
        return cls(parse_tenant(tenant), model)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """`None` leaves it to the adapter's own defaults."""

    max_tokens: int | None = None
    temperature: float | None = None

    def fields(self) -> dict[str, int | float]:
        named = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: value for name, value in named.items() if value is not None}


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


@dataclass(slots=True)
class Answer:
    """One answer: iterate over its pieces, then read what is known at the end.

    `ttft_seconds` is the time from sending to the first piece of text, as seen from here.
    """

    adapter: str
    lines: Iterator[str]
    started: float
    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_seconds: float | None = None
    _decoder: msgspec.json.Decoder[_Chunk] = field(
        default_factory=lambda: msgspec.json.Decoder(_Chunk)
    )

    def __iter__(self) -> Iterator[str]:
        """Raises ChatError where the server breaks the answer off."""
        for line in self.lines:
            if not line.startswith("data:"):
                continue
            body = line.removeprefix("data:").strip()
            if body == "[DONE]":
                return
            try:
                chunk = self._decoder.decode(body)
            except msgspec.DecodeError as error:
                raise ChatError(f"The server sent an event that is no chunk: {error}.") from error
            if chunk.error is not None:
                raise ChatError(chunk.error.message)
            self._note(chunk)
            if piece := "".join(choice.delta.content or "" for choice in chunk.choices):
                self.text += piece
                yield piece

    def _note(self, chunk: _Chunk) -> None:
        if chunk.usage is not None:
            self.prompt_tokens = chunk.usage.prompt_tokens
            self.completion_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
            if choice.delta.content and self.ttft_seconds is None:
                self.ttft_seconds = time.monotonic() - self.started


class ChatClient:
    """Asks one target on one server. Use it as a context manager: it keeps the connection."""

    def __init__(self, url: str, target: ChatTarget, api_key: str, options: ChatOptions) -> None:
        self._url = url.rstrip("/")
        self._target = target
        self._options = options
        self._http = httpx.Client(
            headers=authorization(api_key),
            timeout=httpx.Timeout(None, connect=5.0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @contextmanager
    def ask(self, messages: Sequence[dict[str, str]]) -> Iterator[Answer]:
        """Leaving the block early closes the connection, which stops the answer on the server.

        Raises ServerRefused with the server's own sentence, NotLoragate or ServerUnreachable.
        """
        body = {
            "model": self._target.model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._options.fields(),
        }
        started = time.monotonic()
        path = f"{self._url}/t/{self._target.tenant}/v1/chat/completions"
        with (
            speaking_with(self._url),
            self._http.stream("POST", path, json=body) as response,
        ):
            require_success(response)
            adapter = response.headers.get(ADAPTER, "")
            yield Answer(adapter, response.iter_lines(), started)
