"""What can go wrong on the way of a request; `statuses` says how each transport tells it.

LoragateError (adapters/errors.py)
├── registry errors: TenantNotFound, AdapterNotFound, …
└── RequestError
    ├── InvalidRequest ── ContextLengthExceeded, BodyTooLarge, UnsupportedBody, UrlTooLong,
    │                     HeadersTooLarge, ClientTooSlow
    ├── Unauthenticated, PermissionDenied, ModelNotFound, RouteNotFound, MethodNotAllowed
    ├── RateLimited, RequestExceedsLimit
    ├── Overloaded, Starting, Draining, EngineDead
    ├── AdapterUnavailable ── MachineFault
    └── DeadlineExceeded, RolloutMoveRefused, UnreadablePlan
"""

from loragate.adapters.errors import LoragateError


class RequestError(LoragateError):
    """A request without an answer. `retry_after_seconds` is None where a retry cannot help."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(RequestError):
    """The request says something that cannot be done; `param` names the field."""


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit into the model's context."""


class BodyTooLarge(InvalidRequest):
    """The request's body is over the limit of the configuration."""


class UnsupportedBody(InvalidRequest):
    """The body is compressed, or is said to be no JSON in UTF-8."""


class UrlTooLong(InvalidRequest):
    """The path and its query are over the limit."""


class HeadersTooLarge(InvalidRequest):
    """There are more headers, or larger ones, than a request may have."""


class ClientTooSlow(InvalidRequest):
    """The request did not come whole, or its answer was not read, in the time that it may take."""


class Unauthenticated(RequestError):
    """No key, or one that is unknown or revoked."""


class PermissionDenied(RequestError):
    """A good key without the right, such as a tenant's key on an admin route."""


class ModelNotFound(RequestError):
    """No such model for this tenant; another tenant's adapter looks just the same."""


class RouteNotFound(RequestError):
    """No such path."""


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""


class RateLimited(RequestError):
    """The tenant's budget is spent for now."""


class RequestExceedsLimit(RequestError):
    """The request is larger than the tenant's whole budget: waiting cannot help."""


class Overloaded(RequestError):
    """The queue is full."""


class Starting(RequestError):
    """The server has no engine yet."""


class Draining(RequestError):
    """The server is about to stop and takes nothing new."""


class AdapterUnavailable(RequestError):
    """The adapter exists but the engine could not take it, or no slot came free in time."""


class MachineFault(AdapterUnavailable):
    """This server cannot load the adapter now, through no fault of the version: it comes again.

    `reason` is for whoever runs the server; the message, which a tenant may see, is without paths.
    """

    def __init__(
        self, message: str, *, reason: str = "", retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.reason = reason or message


class EngineDead(RequestError):
    """The engine's core process is gone."""


class DeadlineExceeded(RequestError):
    """The request took longer than it may."""


class RolloutMoveRefused(RequestError):
    """A rollout cannot be paused, resumed or aborted from where it stands."""


class UnreadablePlan(RequestError):
    """The registry holds a rollout or an experiment that this version cannot follow."""
