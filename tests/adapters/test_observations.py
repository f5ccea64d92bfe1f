from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from loragate.adapters.errors import FeedbackGiven, RequestNotFound, TenantNotFound
from loragate.adapters.names import AdapterName
from loragate.adapters.registry.records import UsageRow
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.trial_records import (
    ExposureRow,
    FeedbackRow,
    NewArm,
    OutcomeRow,
    ShadowRow,
    Trial,
    TrialStatus,
)
from support.models.one_layer import WriteAdapter
from support.registry.observations import observed

AT = datetime(2026, 11, 23, tzinfo=UTC)
THUMBS = FeedbackRow("acme", "req-1", "thumbs", 1.0, "", None, AT)


@pytest.fixture
def trial(registry: Registry, write_adapter: WriteAdapter) -> Trial:
    adapter = AdapterName("acme", "support")
    for tenant in ("acme", "globex"):
        registry.tenants.create(tenant)
    registry.versions.publish(adapter, write_adapter("v1", seed=1))
    arms = NewArm("challenger", 1), NewArm("champion", None)
    return registry.trials.start("rollout", adapter, arms, "{}", "RUNNING")


def exposure(trial: Trial, number: int, step: int = 0, request: str = "req-1") -> ExposureRow:
    at = AT + timedelta(seconds=number)
    arm = trial.arms[number % 2].id
    return ExposureRow(f"e{number}", arm, step, "acme", request, f"u{number}", "user", at)


def outcome(exposed: ExposureRow) -> OutcomeRow:
    return OutcomeRow(exposed.id, exposed.at, False, False, 0.5, 12, 0.1, None)


def test_observations_of_a_step_come_back_in_the_order_of_time(registry: Registry, trial: Trial):
    first, second = exposure(trial, 1), exposure(trial, 2, request="req-2")
    other_step = exposure(trial, 3, step=1, request="req-3")
    registry.observations.add([second, other_step, first], [outcome(second), outcome(first)])
    kept = registry.observations.add_feedback(THUMBS)

    seen = observed(registry, trial.id, 0)

    assert seen.exposures == (first, second)
    assert seen.outcomes == (outcome(first), outcome(second))
    assert kept is not None
    assert kept.exposure_id == first.id
    assert seen.feedback == (kept,)
    assert observed(registry, trial.id, 1).exposures == (other_step,)


def shadow(exposed: ExposureRow, text: str) -> ShadowRow:
    return ShadowRow(
        exposed.id, exposed.arm_id, 0, AT, "champion", True, 1, 2, 2, 0.5, text, text
    )  # fmt: skip


def test_batch_written_twice_counts_once(registry: Registry, trial: Trial):
    first, second = exposure(trial, 1), exposure(trial, 2)
    registry.observations.add([first], [outcome(first)], [shadow(first, "a")])

    both = [outcome(first), outcome(second)]
    registry.observations.add([first, second], both, [shadow(first, "a"), shadow(second, "b")])

    seen = observed(registry, trial.id, 0)
    assert (seen.exposures, seen.outcomes) == ((first, second), tuple(both))
    assert len(registry.observations.shadow_pairs(trial.id)) == 2


def test_row_whose_arm_is_gone_is_named_and_costs_no_other_row(
    registry: Registry, trial: Trial, caplog: pytest.LogCaptureFixture
):
    good = [exposure(trial, number) for number in range(9)]
    bad = replace(good[0], id="e-bad", arm_id=999, request_id="a client's words")

    registry.observations.add([*good[:4], bad, *good[4:]], [outcome(row) for row in good])

    seen = observed(registry, trial.id, 0)
    assert seen.exposures == tuple(good)
    assert len(seen.outcomes) == 9
    [record] = caplog.records
    assert "exposure e-bad" in record.message
    assert "a client's words" not in caplog.text


@pytest.mark.parametrize("text", ["a\0b", "a\ud83db"], ids=["NUL", "half a surrogate pair"])
def test_what_no_database_takes_is_replaced_in_texts(registry: Registry, trial: Trial, text: str):
    exposed = exposure(trial, 1)
    registry.observations.add([exposed], [], [shadow(exposed, text)])
    comment = replace(THUMBS, metric="comment", value=None, comment=text)

    kept = registry.observations.add_feedback(comment)
    again = registry.observations.add_feedback(comment)

    assert kept is not None
    assert (kept.comment, again) == ("a\N{REPLACEMENT CHARACTER}b", None)
    [pair] = registry.observations.shadow_pairs(trial.id)
    assert (pair.text, pair.shadow_text) == (kept.comment, kept.comment)


def test_observations_do_not_change_the_revision(registry: Registry, trial: Trial):
    revision = registry.revision()

    registry.observations.add([exposure(trial, 1)], [])
    registry.observations.add_feedback(THUMBS)

    assert registry.revision() == revision


def test_feedback_given_twice_counts_once(registry: Registry, trial: Trial):
    registry.observations.add([exposure(trial, 1)], [])

    first = registry.observations.add_feedback(THUMBS)
    again = registry.observations.add_feedback(replace(THUMBS, at=AT + timedelta(minutes=1)))

    assert again is None
    assert observed(registry, trial.id, 0).feedback == (first,)


def test_feedback_given_twice_at_once_counts_once(registry: Registry, trial: Trial):
    registry.observations.add([exposure(trial, 1)], [])

    with ThreadPoolExecutor(8) as threads:
        kept = list(threads.map(registry.observations.add_feedback, [THUMBS] * 8))

    assert len([row for row in kept if row is not None]) == 1
    assert len(observed(registry, trial.id, 0).feedback) == 1


def test_second_opinion_on_one_metric_is_refused_and_another_metric_is_not(
    registry: Registry, trial: Trial
):
    registry.observations.add([exposure(trial, 1)], [])
    registry.observations.add_feedback(THUMBS)

    with pytest.raises(FeedbackGiven, match="thumbs"):
        registry.observations.add_feedback(replace(THUMBS, value=0.0))
    registry.observations.add_feedback(
        replace(THUMBS, metric="comment", value=None, comment="too long")
    )

    assert len(observed(registry, trial.id, 0).feedback) == 2


def test_feedback_of_another_tenant_finds_nothing(registry: Registry, trial: Trial):
    registry.observations.add([exposure(trial, 1)], [])

    with pytest.raises(RequestNotFound):
        registry.observations.add_feedback(replace(THUMBS, tenant="globex"))
    with pytest.raises(TenantNotFound):
        registry.observations.add_feedback(replace(THUMBS, tenant="nobody"))

    assert observed(registry, trial.id, 0).feedback == ()


def test_feedback_of_a_request_outside_of_any_trial_is_kept(registry: Registry):
    registry.tenants.create("acme")
    with pytest.raises(RequestNotFound):
        registry.observations.add_feedback(THUMBS)
    usage = UsageRow("req-1", AT, "acme", "base", "", "http", 1, 1, 0, 0.1, 0.2, "ok")
    registry.usage.add([usage])

    assert registry.observations.add_feedback(THUMBS) == THUMBS


def test_feedback_of_a_request_id_that_was_used_twice_is_of_the_latest(
    registry: Registry, trial: Trial
):
    registry.observations.add([exposure(trial, 2), exposure(trial, 1)], [])

    assert registry.observations.add_feedback(THUMBS) == replace(THUMBS, exposure_id="e2")


def test_feedback_counts_after_the_trial_is_over(registry: Registry, trial: Trial):
    registry.observations.add([exposure(trial, 1)], [])
    registry.trials.move(trial, TrialStatus("PASSED"), "server", is_over=True)

    assert registry.observations.add_feedback(THUMBS) == replace(THUMBS, exposure_id="e1")
