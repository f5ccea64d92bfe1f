"""JSON bodies, read strictly before pydantic sees them.

Python's own reader lets half a surrogate pair and `NaN` through, which no answer and no log could
carry further. msgspec's refuses both.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute


class _StrictRequest(Request):
    async def json(self) -> object:
        try:
            return msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from None  # what FastAPI looks for


class StrictJsonRoute(APIRoute):
    """A route whose body is valid JSON in valid Unicode, or else refused as such."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_strictly(request: Request) -> Response:
            return await answer(_StrictRequest(request.scope, request.receive))

        return answer_strictly
