import inspect

import pytest

from loragate.adapters import errors as registry_errors
from loragate.server import errors
from loragate.server.errors import InvalidRequest, Overloaded, RateLimited
from loragate.server.wire.statuses import TABLE, describe

# Roots, which are never raised themselves, and what only a command line can meet.
OUTSIDE = {
    registry_errors.LoragateError,
    registry_errors.BaseModelError,
    registry_errors.ConfigError,
}

CLASSES = [
    kind
    for module in (errors, registry_errors)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == module.__name__
]

EXPECTED = {
    "RequestError": ("INTERNAL", 500, "server_error", "request_failed"),
    "InvalidRequest": ("INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_value"),
    "ContextLengthExceeded": (
        "INVALID_ARGUMENT",
        400,
        "invalid_request_error",
        "context_length_exceeded",
    ),
    "BodyTooLarge": ("INVALID_ARGUMENT", 413, "invalid_request_error", "request_too_large"),
    "UnsupportedBody": ("INVALID_ARGUMENT", 415, "invalid_request_error", "unsupported_media_type"),
    "UrlTooLong": ("INVALID_ARGUMENT", 414, "invalid_request_error", "url_too_long"),
    "HeadersTooLarge": ("INVALID_ARGUMENT", 431, "invalid_request_error", "headers_too_large"),
    "ClientTooSlow": ("DEADLINE_EXCEEDED", 408, "invalid_request_error", "request_timeout"),
    "Unauthenticated": ("UNAUTHENTICATED", 401, "authentication_error", "invalid_api_key"),
    "PermissionDenied": ("PERMISSION_DENIED", 403, "permission_error", "permission_denied"),
    "ModelNotFound": ("NOT_FOUND", 404, "invalid_request_error", "model_not_found"),
    "RouteNotFound": ("NOT_FOUND", 404, "invalid_request_error", "not_found"),
    "MethodNotAllowed": ("UNIMPLEMENTED", 405, "invalid_request_error", "method_not_allowed"),
    "RateLimited": ("RESOURCE_EXHAUSTED", 429, "rate_limit_error", "rate_limit_exceeded"),
    "RequestExceedsLimit": (
        "RESOURCE_EXHAUSTED",
        429,
        "rate_limit_error",
        "request_exceeds_limit",
    ),
    "Overloaded": ("UNAVAILABLE", 503, "server_error", "overloaded"),
    "Starting": ("UNAVAILABLE", 503, "server_error", "starting"),
    "Draining": ("UNAVAILABLE", 503, "server_error", "draining"),
    "AdapterUnavailable": ("UNAVAILABLE", 503, "server_error", "adapter_unavailable"),
    "MachineFault": ("UNAVAILABLE", 503, "server_error", "adapter_not_loaded"),
    "EngineDead": ("UNAVAILABLE", 503, "server_error", "engine_dead"),
    "DeadlineExceeded": ("DEADLINE_EXCEEDED", 504, "server_error", "deadline_exceeded"),
    "RolloutMoveRefused": (
        "FAILED_PRECONDITION",
        409,
        "invalid_request_error",
        "rollout_move_refused",
    ),
    "NotMerged": ("NOT_FOUND", 404, "invalid_request_error", "not_merged"),
    "NotServedMerged": ("FAILED_PRECONDITION", 409, "invalid_request_error", "not_served_merged"),
    "MergedInUse": ("FAILED_PRECONDITION", 409, "invalid_request_error", "merged_in_use"),
    "VersionHeld": ("FAILED_PRECONDITION", 409, "invalid_request_error", "version_held"),
    "TrialUnderWay": ("FAILED_PRECONDITION", 409, "invalid_request_error", "trial_under_way"),
    "TrialMovedOn": ("FAILED_PRECONDITION", 409, "invalid_request_error", "trial_moved_on"),
    "TrialNotFound": ("NOT_FOUND", 404, "invalid_request_error", "trial_not_found"),
    "RequestNotFound": ("NOT_FOUND", 404, "invalid_request_error", "request_not_found"),
    "FeedbackGiven": ("ALREADY_EXISTS", 409, "invalid_request_error", "feedback_given"),
    "InvalidName": ("INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_name"),
    "BaseModelName": ("INVALID_ARGUMENT", 400, "invalid_request_error", "base_model_name"),
    "InvalidAdapter": ("INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_adapter"),
    "InvalidLimits": ("INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_limits"),
    "TenantNotFound": ("NOT_FOUND", 404, "invalid_request_error", "tenant_not_found"),
    "AdapterNotFound": ("NOT_FOUND", 404, "invalid_request_error", "adapter_not_found"),
    "VersionNotFound": ("NOT_FOUND", 404, "invalid_request_error", "version_not_found"),
    "AliasNotFound": ("NOT_FOUND", 404, "invalid_request_error", "alias_not_found"),
    "KeyNotFound": ("NOT_FOUND", 404, "invalid_request_error", "key_not_found"),
    "TenantExists": ("ALREADY_EXISTS", 409, "invalid_request_error", "tenant_exists"),
    "VersionRetired": ("FAILED_PRECONDITION", 409, "invalid_request_error", "version_retired"),
    "VersionInUse": ("FAILED_PRECONDITION", 409, "invalid_request_error", "version_in_use"),
    "NothingToRollBack": (
        "FAILED_PRECONDITION",
        409,
        "invalid_request_error",
        "nothing_to_roll_back",
    ),
    "AliasNotServing": ("UNAVAILABLE", 503, "server_error", "adapter_loading"),
    "VersionFailed": ("FAILED_PRECONDITION", 409, "invalid_request_error", "adapter_failed"),
    "VersionNotReady": ("FAILED_PRECONDITION", 409, "invalid_request_error", "version_not_ready"),
    "AliasMovedOn": ("FAILED_PRECONDITION", 409, "invalid_request_error", "alias_moved_on"),
    "IllegalMove": ("FAILED_PRECONDITION", 409, "invalid_request_error", "illegal_move"),
    "UnreadablePlan": ("FAILED_PRECONDITION", 409, "invalid_request_error", "unreadable_plan"),
    "InvalidRecord": ("INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_value"),
    "InvalidCursor": ("INVALID_ARGUMENT", 400, "invalid_request_error", "invalid_cursor"),
    "StoreError": ("UNAVAILABLE", 503, "server_error", "store_unavailable"),
    "ChildUnavailable": ("UNAVAILABLE", 503, "server_error", "child_unavailable"),
}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_failure_that_a_client_can_meet_has_a_status(kind: type[Exception]) -> None:
    if kind in OUTSIDE:
        assert kind not in TABLE
        return
    assert any(base in TABLE for base in kind.__mro__)


def test_the_table_says_what_is_promised() -> None:
    told = {
        kind.__name__: (status.grpc_code.name, status.http_status, status.type, status.code)
        for kind, status in TABLE.items()
    }
    assert told == EXPECTED


def test_an_error_s_own_words_code_and_hint_are_passed_on() -> None:
    failure = describe(
        RateLimited("Wait.", code="token_budget_exceeded", param="n", retry_after_seconds=2.5)
    )
    assert (failure.message, failure.code, failure.param) == (
        "Wait.",
        "token_budget_exceeded",
        "n",
    )
    assert failure.retry_after_seconds == 2.5
    assert describe(Overloaded("Full.")).code == "overloaded"


def test_an_adapter_on_its_way_is_to_be_asked_again_and_a_failed_one_is_not() -> None:
    loading = registry_errors.AliasNotServing("acme", "support", "champion", "v1", "LOADING")
    failed = registry_errors.VersionFailed("acme", "support", "v1", "it has no effect")
    assert describe(loading).retry_after_seconds == 1.0
    assert describe(failed).retry_after_seconds is None
    assert "it has no effect" in describe(failed).message


def test_a_class_that_is_not_listed_is_described_by_its_base() -> None:
    class Special(InvalidRequest):
        pass

    assert describe(Special("x")).status is TABLE[InvalidRequest]


def test_what_nobody_foresaw_says_nothing_of_itself() -> None:
    for error in (KeyError("secret"), UnicodeError("secret")):
        failure = describe(error)
        assert failure.status.http_status == 500
        assert failure.code == "internal_error"
        assert "secret" not in failure.message
        assert failure.retry_after_seconds is None


def test_a_message_is_short_and_valid_unicode_whatever_a_client_sent() -> None:
    failure = describe(InvalidRequest("\ud800" + "x" * 10_000, param="\udfff"))
    assert len(failure.message) <= 1001
    assert failure.message.startswith("?x")
    assert failure.param == "?"


@pytest.mark.parametrize(
    "error",
    [
        registry_errors.StoreError(
            "the database postgresql://loragate@db-7.internal/x did not answer"
        ),
        registry_errors.UnreadableRecord("the database on db-7.internal is damaged"),
        registry_errors.ServedElsewhere("postgresql://db-7.internal/x"),
    ],
)
def test_where_the_records_are_kept_is_told_to_operators_alone(error: Exception) -> None:
    told, public = describe(error, is_for_operator=True), describe(error)
    assert told.message == str(error)
    assert "db-7" not in public.message
    assert "try again" in public.message
    assert (public.code, public.status.http_status) == ("store_unavailable", 503)
    assert (public.says_less, told.says_less) == (True, False)
