"""A generation as a response of OpenAI's Responses API, in one piece or as a stream of events."""

import time
from collections.abc import AsyncIterator, Iterable
from typing import Literal

import msgspec

from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.core import Delta, FinishReason
from loragate.server.gateway.bounds import SMALL_SCORES
from loragate.server.gateway.choices import has_many_scores
from loragate.server.gateway.gateway import Generation
from loragate.server.http.failures import error_body
from loragate.server.http.responses_objects import (
    Echo,
    ErrorEvent,
    ErrorObject,
    Event,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
)
from loragate.server.http.responses_output import Output
from loragate.server.wire.statuses import describe

Status = Literal["in_progress", "completed", "incomplete", "failed"]
_encoder = msgspec.json.Encoder()
_ABORTED = ResponseError("server_error", "The engine ended the answer before it was whole.")


class _ErrorBody(msgspec.Struct):
    error: ErrorObject


class ResponsesWriter:
    """Puts one generation into the form of the Responses API, streamed or whole."""

    def __init__(self, generation: Generation, threads: FairThreads, echo: Echo) -> None:
        """`threads` are for answers with log-probabilities of many tokens."""
        self._generation = generation
        self._threads = threads
        self._echo = msgspec.structs.asdict(echo)
        self._id = f"resp_{generation.id}"
        self._output = Output(generation.id, generation.request.sampling.logprobs)
        self._finish_reason: FinishReason | None = None
        self._scores = 0
        self._sequence_number = 0

    async def whole(self) -> bytes:
        """The complete response, after the last token."""
        async for delta in self._generation.deltas:
            self._note(delta)
            if has_many_scores(delta):
                await self._in_thread(self._push, delta)
            else:
                self._push(delta)
        return await self._threads.do(
            self._generation.route.tenant, self._scores > SMALL_SCORES, self._last_response
        )

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: the response as it begins, what each delta adds, and its end."""
        yield self._begin()
        async for delta in self._generation.deltas:
            self._note(delta)
            if has_many_scores(delta):
                yield await self._in_thread(self._push_events, delta)
            elif events := self._push_events(delta):
                yield events
        yield await self._threads.do(
            self._generation.route.tenant, self._scores > SMALL_SCORES, self._last_events
        )

    def failed(self, error: Exception) -> bytes:
        """The events with which a stream ends that has begun: the response as far as it came, then
        the error, on which clients raise.
        """
        told = msgspec.json.decode(error_body(error, self._generation.id), type=_ErrorBody).error
        self._output.break_off()
        response = self._response("failed")
        response.error = ResponseError(_error_code(error), told.message)
        return self._written(
            (
                ResponseEvent(type="response.failed", response=response),
                ErrorEvent(
                    type="error",
                    message=told.message,
                    param=told.param,
                    code=told.code,
                    error=told,
                ),
            )
        )

    async def _in_thread(self, work, delta: Delta):
        return await self._threads.do(self._generation.route.tenant, True, work, delta)

    def _note(self, delta: Delta) -> None:
        self._scores += len(delta.logprobs)
        self._finish_reason = delta.finish_reason or self._finish_reason

    def _push(self, delta: Delta) -> None:
        for _ in self._output.push(delta):
            pass

    def _push_events(self, delta: Delta) -> bytes:
        return self._written(self._output.push(delta))

    def _begin(self) -> bytes:
        response = self._response("in_progress")
        return self._written(
            ResponseEvent(type=kind, response=response)
            for kind in ("response.created", "response.in_progress")
        )

    def _last_response(self) -> bytes:
        for _ in self._output.finish(is_cut=self._end() != "completed"):
            pass
        return _encoder.encode(self._ended())

    def _last_events(self) -> bytes:
        status = self._end()
        items = self._written(self._output.finish(is_cut=status != "completed"))
        last = ResponseEvent(type=f"response.{status}", response=self._ended())
        return items + self._written((last,))

    def _end(self) -> Literal["completed", "incomplete", "failed"]:
        match self._finish_reason:
            case "length":
                return "incomplete"
            case "abort":
                return "failed"
            case _:
                return "completed"

    def _ended(self) -> Response:
        status = self._end()
        response = self._response(status)
        if status == "completed":
            response.completed_at = int(time.time())
        elif status == "incomplete":
            response.incomplete_details = IncompleteDetails("max_output_tokens")
        else:
            response.error = _ABORTED
        usage = self._generation.usage
        response.usage = ResponseUsage(
            usage.prompt_tokens,
            InputTokensDetails(usage.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(self._output.reasoning_tokens),
            usage.total_tokens,
        )
        return response

    def _response(self, status: Status) -> Response:
        return Response(
            **self._echo,
            id=self._id,
            created_at=self._generation.created,
            status=status,
            output=self._output.items,
        )

    def _written(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self._write, events))

    def _write(self, event: Event) -> bytes:
        event.sequence_number = self._sequence_number
        self._sequence_number += 1
        return b"event: %b\ndata: %b\n\n" % (event.type.encode(), _encoder.encode(event))


def _error_code(error: Exception) -> str:
    """One of the few codes that a response's error may have."""
    http_status = describe(error).status.http_status
    if http_status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if http_status < 500 else "server_error"
