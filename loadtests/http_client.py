"""Chat over HTTP with server-sent events, read under gevent.

The parser is our own: iterators of HTTP libraries wait for a block of kilobytes before they give
anything, which turns the gaps between tokens into nothing.
"""

import time
from urllib.parse import urlsplit

import gevent
import msgspec
from gevent import socket
from geventhttpclient import HTTPClient
from geventhttpclient.response import (
    HTTPConnectionClosed,
    HTTPParseError,
    HTTPSocketPoolResponse,
)

from loadtests.plans import Ask
from loadtests.reading import SLOW_READ_SECONDS, Arrived, Frames, Refusal, as_sample
from loadtests.records import Sample
from loadtests.target import Target

_MOST_STREAMS = 100_000  # no limit: a request that waits for a connection here would be no load
_TINY_BUFFER_BYTES = 2048
_PATH = "/v1/chat/completions"


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Error(msgspec.Struct):
    code: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class HttpClient:
    """Makes requests over kept connections; one for all users of a process."""

    def __init__(self, target: Target, timeout_seconds: float) -> None:
        self._target = target
        self._address = urlsplit(target.http)
        self._client = HTTPClient.from_url(
            target.http,
            concurrency=_MOST_STREAMS,
            connection_timeout=timeout_seconds,
            network_timeout=timeout_seconds,
        )

    def ask(self, ask: Ask, origin: float) -> Sample:
        """Makes one request and reads its answer as `ask.client` would."""
        arrived = Arrived(sent=time.perf_counter())
        try:
            if ask.client == "lingers":
                self._linger(ask)
                arrived.has_left = True
            elif ask.client == "leaves":
                with gevent.Timeout(ask.patience_seconds):
                    self._read(ask, arrived)
            else:
                self._read(ask, arrived)
        except gevent.Timeout:
            arrived.has_left = True
        except ConnectionRefusedError:
            arrived.is_unreachable = True
        except (OSError, HTTPParseError) as error:
            arrived.error = f"{type(error).__name__}: {error}"
        arrived.ended = time.perf_counter()
        if arrived.status not in ("", "200"):
            return as_sample(ask, origin, arrived, Frames(), _refusal(arrived))
        return as_sample(ask, origin, arrived, _frames(arrived), None)

    def close(self) -> None:
        self._client.close()

    def _read(self, ask: Ask, arrived: Arrived) -> None:
        response = self._post(ask)
        if not isinstance(response, HTTPSocketPoolResponse):
            raise TypeError("geventhttpclient gave a response that is not on its pool")
        try:
            arrived.status = str(response.status_code)
            arrived.headers = {name.lower(): value for name, value in response.items()}
            if response.status_code == 200:
                while event := response.readline(b"\n\n"):
                    arrived.note(event)
            else:
                arrived.note(response.read())
        finally:
            response.release()  # closes a connection whose answer was not read to its end

    def _post(self, ask: Ask) -> object:
        try:
            return self._client.post(_PATH, body=_body(ask), headers=self._headers(ask))
        except HTTPConnectionClosed:
            # Closed without a byte of an answer: as a rule an idle connection that the server gave
            # up at this moment. All clients try once more; the time goes on counting.
            return self._client.post(_PATH, body=_body(ask), headers=self._headers(ask))

    def _linger(self, ask: Ask) -> None:
        """Reads some bytes now and then, from a window that holds hardly more, then goes away."""
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TINY_BUFFER_BYTES)
            connection.connect((self._address.hostname, self._address.port))
            body = _body(ask)
            headers = self._headers(ask) | {
                "host": self._address.netloc,
                "content-length": str(len(body)),
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            connection.sendall(f"POST {_PATH} HTTP/1.1\r\n{lines}\r\n".encode() + body)
            until = time.perf_counter() + ask.patience_seconds
            while time.perf_counter() < until and connection.recv(64):
                gevent.sleep(SLOW_READ_SECONDS)

    def _headers(self, ask: Ask) -> dict[str, str]:
        key = self._target.key_of(ask.tenant)
        return {"authorization": f"Bearer {key}", "content-type": "application/json"}


def _body(ask: Ask) -> bytes:
    """An answer of exactly the length asked for, where the server can make one."""
    body: dict[str, object] = {
        "model": ask.model,
        "messages": [{"role": "user", "content": ask.prompt}],
        "max_tokens": ask.output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ask.client == "lingers":
        body |= {"logprobs": True, "top_logprobs": 5}  # much to read, so that it cannot be buffered
    return msgspec.json.encode(body)


def _frames(arrived: Arrived) -> Frames:
    frames = Frames()
    for at, event in arrived.pieces:
        data = event.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            frames.is_whole = True
            continue
        chunk = msgspec.json.decode(data, type=_Event)
        if chunk.error is not None:
            frames.error_code = chunk.error.code or "error"
        if tokens := sum(len(choice.token_ids or ()) for choice in chunk.choices):
            frames.add(at, tokens)
        if chunk.usage is not None:
            frames.prompt_tokens = chunk.usage.prompt_tokens
    return frames


def _refusal(arrived: Arrived) -> Refusal:
    """Proper: the status and a hint that OpenAI's clients follow, and a code in the body."""
    body = b"".join(piece for _, piece in arrived.pieces)
    try:
        error = msgspec.json.decode(body, type=_Event).error
    except msgspec.DecodeError:
        error = None
    code = (error.code if error else None) or ""
    headers = arrived.headers
    after = headers.get("retry-after")
    has_hint = after is not None or headers.get("x-should-retry") == "false"
    is_proper = arrived.status in ("429", "503") and has_hint and bool(code)
    return Refusal(code, float(after) if after else None, is_proper)
