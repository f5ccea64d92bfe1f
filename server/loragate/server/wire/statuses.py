"""An exception as each transport tells it: one table for gRPC, HTTP and OpenAI's words.

Everything raises; each transport turns an exception into its answer in one place, by `describe`. An
exception that is not in the table becomes 500 / INTERNAL without a word of its text.
"""

from dataclasses import dataclass, replace

import grpc

from loragate.adapters import errors as registry
from loragate.adapters.child_process.process import ChildUnavailable
from loragate.server.errors import (
    AdapterUnavailable,
    BodyTooLarge,
    ClientTooSlow,
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    EngineDead,
    HeadersTooLarge,
    InvalidRequest,
    MachineFault,
    MethodNotAllowed,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    RequestError,
    RequestExceedsLimit,
    RolloutMoveRefused,
    RouteNotFound,
    Starting,
    Unauthenticated,
    UnreadablePlan,
    UnsupportedBody,
    UrlTooLong,
)

_LONGEST_TEXT = 1000  # characters; gRPC's clients take 8 KiB of trailers by default


@dataclass(frozen=True, slots=True)
class Status:
    """One row of the table: the same failure in gRPC's, HTTP's and OpenAI's words.

    `retry_after_seconds` holds for an error that has no hint of its own. `public_message` is what
    all but operators are told instead of the error's own text, where that names what is theirs
    alone to know, such as hosts and paths.
    """

    grpc_code: grpc.StatusCode
    http_status: int
    type: str
    code: str
    retry_after_seconds: float | None = None
    public_message: str | None = None


_BAD_REQUEST = Status(
    grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_value"
)
_INTERNAL = Status(grpc.StatusCode.INTERNAL, 500, "server_error", "internal_error")


def _not_found(code: str) -> Status:
    return Status(grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error", code)


def _conflict(code: str, grpc_code: grpc.StatusCode) -> Status:
    return Status(grpc_code, 409, "invalid_request_error", code)


def _unavailable(code: str, retry_after_seconds: float | None = None) -> Status:
    return Status(grpc.StatusCode.UNAVAILABLE, 503, "server_error", code, retry_after_seconds)


def _exhausted(code: str) -> Status:
    return Status(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error", code)


TABLE: dict[type[Exception], Status] = {
    # Of no kind of its own, such as an engine that ends an answer in the middle: a client can only
    # be told what the message says.
    RequestError: Status(grpc.StatusCode.INTERNAL, 500, "server_error", "request_failed"),
    InvalidRequest: _BAD_REQUEST,
    ContextLengthExceeded: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "context_length_exceeded"
    ),
    BodyTooLarge: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 413, "invalid_request_error", "request_too_large"
    ),
    UnsupportedBody: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 415, "invalid_request_error", "unsupported_media_type"
    ),
    UrlTooLong: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 414, "invalid_request_error", "url_too_long"
    ),
    HeadersTooLarge: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 431, "invalid_request_error", "headers_too_large"
    ),
    ClientTooSlow: Status(
        grpc.StatusCode.DEADLINE_EXCEEDED, 408, "invalid_request_error", "request_timeout"
    ),
    Unauthenticated: Status(
        grpc.StatusCode.UNAUTHENTICATED, 401, "authentication_error", "invalid_api_key"
    ),
    PermissionDenied: Status(
        grpc.StatusCode.PERMISSION_DENIED, 403, "permission_error", "permission_denied"
    ),
    ModelNotFound: _not_found("model_not_found"),
    RouteNotFound: _not_found("not_found"),
    MethodNotAllowed: Status(
        grpc.StatusCode.UNIMPLEMENTED, 405, "invalid_request_error", "method_not_allowed"
    ),
    RateLimited: _exhausted("rate_limit_exceeded"),
    RequestExceedsLimit: _exhausted("request_exceeds_limit"),
    Overloaded: _unavailable("overloaded"),
    Starting: _unavailable("starting"),
    Draining: _unavailable("draining"),
    AdapterUnavailable: _unavailable("adapter_unavailable"),
    MachineFault: _unavailable("adapter_not_loaded", retry_after_seconds=1.0),
    EngineDead: _unavailable("engine_dead"),
    DeadlineExceeded: Status(
        grpc.StatusCode.DEADLINE_EXCEEDED, 504, "server_error", "deadline_exceeded"
    ),
    RolloutMoveRefused: _conflict("rollout_move_refused", grpc.StatusCode.FAILED_PRECONDITION),
    UnreadablePlan: _conflict("unreadable_plan", grpc.StatusCode.FAILED_PRECONDITION),
    registry.InvalidName: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_name"
    ),
    registry.BaseModelName: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "base_model_name"
    ),
    registry.InvalidAdapter: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_adapter"
    ),
    registry.InvalidLimits: Status(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_limits"
    ),
    registry.TenantNotFound: _not_found("tenant_not_found"),
    registry.AdapterNotFound: _not_found("adapter_not_found"),
    registry.VersionNotFound: _not_found("version_not_found"),
    registry.AliasNotFound: _not_found("alias_not_found"),
    registry.KeyNotFound: _not_found("key_not_found"),
    registry.TenantExists: _conflict("tenant_exists", grpc.StatusCode.ALREADY_EXISTS),
    registry.VersionRetired: _conflict("version_retired", grpc.StatusCode.FAILED_PRECONDITION),
    registry.VersionInUse: _conflict("version_in_use", grpc.StatusCode.FAILED_PRECONDITION),
    registry.VersionHeld: _conflict("version_held", grpc.StatusCode.FAILED_PRECONDITION),
    registry.NotMerged: _not_found("not_merged"),
    registry.NotServedMerged: _conflict("not_served_merged", grpc.StatusCode.FAILED_PRECONDITION),
    registry.MergedInUse: _conflict("merged_in_use", grpc.StatusCode.FAILED_PRECONDITION),
    registry.TrialUnderWay: _conflict("trial_under_way", grpc.StatusCode.FAILED_PRECONDITION),
    registry.TrialMovedOn: _conflict("trial_moved_on", grpc.StatusCode.FAILED_PRECONDITION),
    registry.TrialNotFound: _not_found("trial_not_found"),
    registry.RequestNotFound: _not_found("request_not_found"),
    registry.FeedbackGiven: _conflict("feedback_given", grpc.StatusCode.ALREADY_EXISTS),
    registry.NothingToRollBack: _conflict(
        "nothing_to_roll_back", grpc.StatusCode.FAILED_PRECONDITION
    ),
    registry.AliasNotServing: _unavailable("adapter_loading", retry_after_seconds=1.0),
    registry.VersionFailed: _conflict("adapter_failed", grpc.StatusCode.FAILED_PRECONDITION),
    registry.VersionNotReady: _conflict("version_not_ready", grpc.StatusCode.FAILED_PRECONDITION),
    registry.AliasMovedOn: _conflict("alias_moved_on", grpc.StatusCode.FAILED_PRECONDITION),
    registry.IllegalMove: _conflict("illegal_move", grpc.StatusCode.FAILED_PRECONDITION),
    registry.InvalidRecord: _BAD_REQUEST,
    registry.InvalidCursor: replace(_BAD_REQUEST, code="invalid_cursor"),
    registry.StoreError: replace(
        _unavailable("store_unavailable"),
        public_message="The server cannot reach what it keeps its records and files in; try again "
        "shortly. Its log has the details under this request id.",
    ),
    ChildUnavailable: _unavailable("child_unavailable", retry_after_seconds=1.0),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as a client sees it. `code` is OpenAI's `error.code`. What its message does not
    say is for the log.
    """

    status: Status
    message: str
    code: str
    param: str | None
    retry_after_seconds: float | None

    @property
    def says_less(self) -> bool:
        """Whether the message is not the error's own."""
        return self.message == self.status.public_message


def describe(error: Exception, *, is_for_operator: bool = False) -> Failure:
    """Looks the exception's class up along its bases; what is not in the table says nothing.

    `is_for_operator`: the answer goes to somebody who has shown the admin key.
    """
    for kind in type(error).__mro__:
        status = TABLE.get(kind)
        if status is not None:
            own_code: object = getattr(error, "code", None)
            param: object = getattr(error, "param", None)
            retry: object = getattr(error, "retry_after_seconds", status.retry_after_seconds)
            is_public = is_for_operator or status.public_message is None
            return Failure(
                status=status,
                message=_sendable(str(error)) if is_public else status.public_message or "",
                code=own_code if isinstance(own_code, str) else status.code,
                param=_sendable(param) if isinstance(param, str) else None,
                retry_after_seconds=retry if isinstance(retry, float | int) else None,
            )
    message = "The server failed to answer; its log has the details under this request id."
    return Failure(_INTERNAL, message, _INTERNAL.code, None, None)


def _sendable(text: str) -> str:
    """Cuts what a client would get back of its own long words, and what is no valid Unicode."""
    cut = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
    return cut.encode("utf-8", "replace").decode()
