import pickle

import pytest

from loragate.adapters.errors import (
    AdapterNotFound,
    AliasMovedOn,
    AliasNotFound,
    AliasNotServing,
    BaseModelName,
    FeedbackGiven,
    IllegalMove,
    InvalidAdapter,
    InvalidLimits,
    InvalidName,
    KeyNotFound,
    LoragateError,
    NothingToRollBack,
    RequestNotFound,
    StoreError,
    TenantExists,
    TenantNotFound,
    TrialMovedOn,
    TrialNotFound,
    TrialUnderWay,
    VersionFailed,
    VersionHeld,
    VersionInUse,
    VersionNotFound,
    VersionNotReady,
    VersionRetired,
)

ERRORS = [
    AdapterNotFound("acme", "support"),
    AliasNotFound("acme", "support", "champion"),
    AliasNotFound("acme", "support", "challenger"),
    AliasMovedOn("acme", "support", "champion", "v2", "v3"),
    AliasNotServing("acme", "support", "champion", "v2", "LOADING"),
    IllegalMove("READY", "RETIRED", ("DRAINING", "LOADING", "PUBLISHED")),
    IllegalMove("RETIRED", "READY", ()),
    InvalidAdapter("missing_file", "there is no adapter_config.json; save the adapter again"),
    InvalidLimits("max_concurrent", 0),
    InvalidName("tenant", "A", "use lower-case letters"),
    BaseModelName("adapter", "acme/tiny", "requests go to the base model; choose another"),
    KeyNotFound("lg-abcdefgh"),
    NothingToRollBack("acme", "support", "v1"),
    StoreError("the disk is full; free space"),
    TenantExists("acme"),
    TenantNotFound("acme"),
    VersionFailed("acme", "support", "v1", "it has no effect"),
    VersionFailed("acme", "support", "v1", ""),
    VersionNotReady("acme", "support", "v1", "LOADING"),
    VersionInUse("acme", "support", "v1", ("champion",)),
    VersionNotFound("acme", "support", "v9"),
    VersionRetired("acme", "support", "v1"),
    VersionHeld("acme", "support", "v1", "rollout 3"),
    TrialUnderWay("acme", "support", "experiment 3"),
    TrialMovedOn("rollout 3", "RUNNING at step 1", "PAUSED at step 1"),
    TrialNotFound(3),
    RequestNotFound("acme", "req-1"),
    FeedbackGiven("req-1", "thumbs"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_says_what_is_wrong_and_then_what_to_do(error: LoragateError):
    problem, remedy = str(error).split("; ", 1)

    assert problem
    assert remedy


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_keeps_its_data_when_pickled(error: LoragateError):
    copy = pickle.loads(pickle.dumps(error))

    assert (type(copy), vars(copy), str(copy)) == (type(error), vars(error), str(error))
