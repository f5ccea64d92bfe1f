"""An exception as an HTTP answer, in OpenAI's error object: the one place of this transport."""

import logging
import math
import re
from collections.abc import MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from loragate.server.errors import InvalidRequest, MethodNotAllowed, RequestError, RouteNotFound
from loragate.server.wire.statuses import describe

_LONGEST_HINT_SECONDS = 120.0  # OpenAI's clients give up at once on anything longer


logger = logging.getLogger(__name__)


async def answer_error(request: Request, error: Exception) -> Response:
    request_id = request.state.request_id
    is_for_operator = getattr(request.state, "is_operator", False) is True
    failure = describe(_meant(error), is_for_operator=is_for_operator)
    # 405 comes with `Allow`.
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if failure.status.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if failure.retry_after_seconds is not None:
        headers["retry-after"] = str(retry_after_header(failure.retry_after_seconds))
        headers["retry-after-ms"] = str(retry_after_ms_header(failure.retry_after_seconds))
    elif failure.status.http_status in (409, 429):
        headers["x-should-retry"] = "false"
    return Response(
        error_body(_meant(error), request_id, is_for_operator=is_for_operator),
        failure.status.http_status,
        headers,
        media_type="application/json",
    )


async def send_error(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    await (await answer_error(Request(scope), error))(scope, receive, send)


def raw_response(error: Exception) -> bytes:
    """The whole answer of a request that never became one, before its connection is closed."""
    status, body = describe(error).status.http_status, error_body(error, "")
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode() + body


def error_body(error: Exception, request_id: str, *, is_for_operator: bool = False) -> bytes:
    """OpenAI's error object; an exception that nobody foresaw is logged here, and says nothing. So
    is one whose text is for operators alone.
    """
    failure = describe(error, is_for_operator=is_for_operator)
    if failure.says_less:
        logger.warning("a request failed: %s", error, extra={"request_id": request_id})
    if failure.status.http_status == 500:
        logger.error("unforeseen failure", exc_info=error, extra={"request_id": request_id})
    return msgspec.json.encode(
        {
            "error": {
                "message": failure.message,
                "type": failure.status.type,
                "param": failure.param,
                "code": failure.code,
            }
        }
    )


def _meant(error: Exception) -> Exception:
    """Frameworks wrap what went wrong in exceptions of their own; returns ours."""
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors()[0])
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, RequestError):
            return error.__cause__
        if error.status_code == 405:
            return MethodNotAllowed("This path does not take this method.")
        if error.status_code == 404:
            return RouteNotFound("There is no such path; see /docs for those there are.")
        return InvalidRequest(str(error.detail))
    return error


# What pydantic puts into an error's location besides the field's own path: union members' names.
_TYPE_TAG = re.compile(r"str|int|list\[.*|constrained-.*|function-.*|literal\[.*|.*Body|.*Part")


def _invalid(problem: MutableMapping[str, Any]) -> InvalidRequest:
    path = _path(problem["loc"][1:])
    match problem["type"]:
        case "missing" if path:
            return InvalidRequest(
                f"{path} is missing.", param=path, code="missing_required_parameter"
            )
        case "unknown_parameter" as code:
            path, meant = _inside(path, problem["ctx"]["name"]), problem["ctx"]["meant"]
            hint = f"did you mean {_inside(path.rpartition('.')[0], meant)}?" if meant else ""
            return InvalidRequest(
                f"{path} is no parameter of this call; {hint or 'check its spelling.'}",
                param=path,
                code=code,
            )
        case "unsupported_parameter" as code:
            path = _inside(path, problem["ctx"]["name"])
            return InvalidRequest(
                f"{path} is not served: {problem['ctx']['says']}.", param=path, code=code
            )
        case _:
            return InvalidRequest(
                f"{path or 'The body'}: {problem['msg']}.", param=path or None, code="invalid_type"
            )


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _TYPE_TAG.fullmatch(part):
            path = _inside(path, part)
    return path


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def retry_after_header(seconds: float) -> int:
    """Whole seconds for `Retry-After`: never 0, never longer than clients are willing to wait."""
    return max(1, math.ceil(min(seconds, _LONGEST_HINT_SECONDS)))


def retry_after_ms_header(seconds: float) -> int:
    """The same in milliseconds, rounded up: a moment too early would be refused again."""
    return max(1, math.ceil(min(seconds, _LONGEST_HINT_SECONDS) * 1000))
