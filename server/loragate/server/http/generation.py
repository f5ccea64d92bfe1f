"""One generation as an HTTP response, for as long as it lasts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Protocol

from fastapi import Response
from starlette.types import Receive, Scope, Send

from loragate.server import core
from loragate.server.admission.admission import Arrival
from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.errors import InvalidRequest
from loragate.server.gateway.gateway import Gateway, Generation
from loragate.server.http.answers import Writer
from loragate.server.wire.headers import provenance_of


class AnswerWriter(Protocol):
    """One generation in the words of one API. One of `whole` and `events` is asked for, once."""

    async def whole(self) -> bytes: ...

    def events(self) -> AsyncIterator[bytes]: ...

    def failed(self, error: Exception) -> bytes:
        """What ends a stream that cannot go on."""
        ...


MakeWriter = Callable[[Generation, FairThreads], AnswerWriter]


class GenerationResponse(Response):
    """Runs one request through the gateway while the response lasts, and no longer.

    A client that leaves cancels it, streaming or not, running or still queued.
    """

    def __init__(
        self,
        gateway: Gateway,
        request: core.Request,
        arrival: Arrival,
        threads: FairThreads,
        make_writer: MakeWriter = Writer,
        reworded: Callable[[InvalidRequest], InvalidRequest] | None = None,
    ) -> None:
        """`make_writer` and `reworded` are the API's that was called: its form, and its names for
        the fields that a refusal speaks of.
        """
        super().__init__()
        self._make_writer = make_writer
        self._reworded = reworded
        self._gateway = gateway
        self._request = request
        self._arrival = arrival
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _unless_disconnected(receive, self._answer(send))

    async def _answer(self, send: Send) -> None:
        writer: AnswerWriter | None = None
        has_started = False
        try:
            async with self._gateway.generate(self._request, self._arrival) as generation:
                writer = self._make_writer(generation, self._threads)
                if self._request.options.stream:
                    await _start(send, generation, b"text/event-stream; charset=utf-8")
                    has_started = True
                    async for event in writer.events():
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                    body = b""
                else:
                    body = await writer.whole()
            # The request is over; however slowly the client reads, it holds no permit any more.
            if not has_started:
                await _start(send, generation, b"application/json", len(body))
                has_started = True
            await send({"type": "http.response.body", "body": body})
        except Exception as error:
            if writer is not None and has_started:
                # The status has gone out already: what is left is an event that clients raise on.
                await send({"type": "http.response.body", "body": writer.failed(error)})
            elif self._reworded is not None and isinstance(error, InvalidRequest):
                raise self._reworded(error) from error
            else:
                raise


async def _unless_disconnected(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Runs `work` until it ends or the client leaves, which cancels it."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # raises what it raised
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(
    send: Send, generation: Generation, content_type: bytes, length: int | None = None
) -> None:
    headers = [
        (b"content-type", content_type),
        *((name.encode(), value.encode()) for name, value in provenance_of(generation.route)),
    ]
    if length is None:
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    else:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
