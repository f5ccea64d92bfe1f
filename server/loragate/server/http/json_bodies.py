"""JSON bodies, read strictly and within bounds before a route sees them.

Python's own reader lets half a surrogate pair and `NaN` through, which no answer and no log could
carry further. msgspec's refuses both. FastAPI would decode and check a body on the event loop,
whatever its size, and describe each of its mistakes; here what is large is read in a thread, and
the first mistake is enough.
"""

import re
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any, ClassVar, TypeVar, cast

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from loragate.server.concurrency.fair_threads import FairThreads
from loragate.server.errors import InvalidRequest, UnsupportedBody
from loragate.server.gateway.bounds import SMALL_MESSAGE
from loragate.server.gateway.json_shape import check_json

T = TypeVar("T")
_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?=[^\\])")
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


class BoundedJsonRoute(APIRoute):
    """A route whose body is valid JSON in valid Unicode, of a bounded number of things, or else
    refused as such. `request.state.tenant` says for whom it is read in the threads; whether the
    body was a large one will be in `request.state.is_large`.
    """

    threads: ClassVar[FairThreads]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer
        reader = TypeAdapter(cast(type[object], self.body_field.field_info.annotation))

        async def answer_within_bounds(request: Request) -> Response:
            check_content(request)
            data = await request.body()
            request.state.is_large = len(data) > SMALL_MESSAGE
            body = await self.threads.do(
                request.state.tenant, request.state.is_large, read_json, data, reader
            )
            return await answer(_ReadRequest(request, body))

        return answer_within_bounds


class _ReadRequest(Request):
    """The same request to FastAPI, which finds its body checked already."""

    def __init__(self, request: Request, body: object) -> None:
        super().__init__(request.scope, request.receive)
        self._read = body

    async def body(self) -> bytes:
        return b"{}"  # there is one, which is all that is asked

    async def json(self) -> object:
        return self._read


def check_content(request: Request) -> None:
    """Raises UnsupportedBody where the headers say that the body is no JSON in UTF-8."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedBody(
            f"The body's Content-Encoding is '{encoding[:40]}'; send it uncompressed."
        )
    sent = request.headers.get("content-type", "")
    kind = Message()
    kind["content-type"] = sent
    is_json = kind.get_content_subtype() == "json" or kind.get_content_subtype().endswith("+json")
    if kind.get_content_maintype() != "application" or not is_json:
        raise UnsupportedBody(
            f"The body's Content-Type is '{sent[:80]}'; send JSON, with "
            "'Content-Type: application/json'."
        )
    charset = str(kind.get_param("charset", "utf-8")).lower()
    if charset not in _CHARSETS:
        raise UnsupportedBody(f"The body's charset is '{charset[:40]}'; send JSON in UTF-8.")


def read_json(data: bytes, reader: TypeAdapter[T]) -> T:
    """Raises InvalidRequest, or RequestValidationError with the first of the body's mistakes."""
    if not data:
        raise InvalidRequest(
            "The body is empty; send a JSON object.", code="missing_required_parameter"
        )
    check_json(data, "The body")
    try:
        body = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Of a half near the end, msgspec says that the body is cut.
        why = "it ends with half of a surrogate pair" if _HALF.search(data[-16:]) else str(error)
        raise InvalidRequest(f"The body is not valid JSON: {why}.", code="invalid_json") from None
    try:
        return reader.validate_python(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RequestValidationError([first | {"loc": ("body", *first["loc"])}]) from None
