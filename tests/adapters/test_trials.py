from dataclasses import replace

import pytest
from sqlalchemy import event

from loragate.adapters.errors import (
    AliasMovedOn,
    TenantNotFound,
    TrialMovedOn,
    TrialNotFound,
    TrialUnderWay,
    VersionHeld,
    VersionNotFound,
    VersionRetired,
)
from loragate.adapters.names import AdapterName
from loragate.adapters.registry import trials
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.trial_records import NewArm, Trial, TrialStatus
from support.models.one_layer import WriteAdapter
from support.registry.promotions import let_serve

SUPPORT = AdapterName("acme", "support")
ARMS = (NewArm("challenger", 2), NewArm("champion", 1))


@pytest.fixture
def published(registry: Registry, write_adapter: WriteAdapter) -> Registry:
    """v1 serves as the champion, v2 and v3 wait."""
    registry.tenants.create("acme")
    for seed in (1, 2, 3):
        registry.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed))
    let_serve(registry, SUPPORT, "champion", 1)
    return registry


def start(registry: Registry, arms: tuple[NewArm, ...] = ARMS) -> Trial:
    return registry.trials.start("rollout", SUPPORT, arms, '{"steps": [1]}', "RUNNING", "ada")


def test_trial_is_read_back_as_it_was_started(published: Registry):
    trial = start(published, (NewArm("merged", 2, "merged", 0.5), NewArm("base", None, share=0.5)))

    assert published.trials.get(trial.id) == trial
    assert (trial.kind, trial.adapter, trial.plan) == ("rollout", SUPPORT, '{"steps": [1]}')
    merged, base = trial.arms
    assert (merged.name, str(merged.version), merged.mode) == (
        "merged",
        "acme/support@v2",
        "merged",
    )
    assert (base.version, base.share) == (None, 0.5)
    assert published.trials.under_way() == (trial,)
    row = published.audit.list("acme/support", 1)[0]
    assert (row.actor, row.action, row.reason) == ("ada", "rollout.start", "rollout 1")


def test_every_trial_has_a_salt_of_its_own(published: Registry):
    first = start(published)
    published.trials.move(first, TrialStatus("ABORTED"), "ada", is_over=True)

    assert start(published).salt != first.salt


def test_second_trial_of_one_adapter_is_refused_until_the_first_is_over(published: Registry):
    first = start(published)
    with pytest.raises(TrialUnderWay, match="rollout 1"):
        published.trials.start("experiment", SUPPORT, ARMS, "{}", "RUNNING")

    published.trials.move(first, TrialStatus("ABORTED"), "ada", is_over=True)

    assert start(published).id == first.id + 1


@pytest.mark.parametrize(
    ("number", "error"), [(9, VersionNotFound), (3, VersionRetired)], ids=["unknown", "retired"]
)
def test_trial_of_a_version_that_cannot_serve_leaves_no_trace(
    published: Registry, number: int, error: type[Exception]
):
    published.states.retire(SUPPORT, 3)
    revision = published.revision()

    with pytest.raises(error):
        start(published, (NewArm("challenger", number), NewArm("champion", 1)))

    assert (published.trials.list(), published.revision()) == ((), revision)


def test_trial_goes_on_where_it_stood_after_a_restart(published: Registry):
    trial = start(published)
    trial = published.trials.move(trial, TrialStatus("RUNNING", 1, 0.0, "it passed"), "server")
    published.trials.note_watched(trial, 42.5)

    [found] = published.trials.under_way()
    assert found.status == TrialStatus("RUNNING", 1, 42.5, "it passed")


def test_pause_is_not_overtaken_by_a_look_that_began_before_it(published: Registry):
    seen_by_server = start(published)
    published.trials.move(seen_by_server, TrialStatus("PAUSED", 0, 5.0, "wait"), "ada")

    with pytest.raises(TrialMovedOn, match="PAUSED at step 0"):
        published.trials.move(seen_by_server, TrialStatus("RUNNING", 1), "server")
    published.trials.note_watched(seen_by_server, 99.0)

    assert published.trials.get(seen_by_server.id).status == TrialStatus("PAUSED", 0, 5.0, "wait")


def test_time_that_is_noted_is_no_change_and_a_move_is(published: Registry):
    trial = start(published)
    revision = published.revision()
    published.trials.note_watched(trial, 1.0)
    assert published.revision() == revision

    published.trials.move(trial, TrialStatus("PAUSED"), "ada")

    assert published.revision() > revision


def test_winner_is_promoted_in_the_transaction_that_ends_the_trial(published: Registry):
    trial = start(published)

    ended = published.trials.move(
        trial, TrialStatus("PASSED", 0, 9.0), "server", is_over=True, promote="challenger"
    )

    assert ended.ended_at is not None
    [target] = published.snapshot().desired_aliases()
    assert target.desired.number == 2
    row = published.audit.list("acme/support@champion", 1)[0]
    assert (row.action, row.from_version, row.to_version) == ("alias.set", 1, 2)
    assert row.reason == "rollout 1"


def test_winner_does_not_replace_a_champion_that_the_trial_did_not_know(published: Registry):
    trial = start(published)
    published.aliases.set(SUPPORT, "champion", 3)

    with pytest.raises(AliasMovedOn):
        published.trials.move(
            trial, TrialStatus("PASSED"), "server", is_over=True, promote="challenger"
        )

    assert published.trials.get(trial.id).status.state == "RUNNING"


def test_version_that_a_trial_holds_cannot_be_retired(published: Registry):
    trial = start(published)
    with pytest.raises(VersionHeld, match="rollout 1"):
        published.states.retire(SUPPORT, 2)

    published.trials.move(trial, TrialStatus("ROLLED_BACK"), "server", is_over=True)

    assert published.states.retire(SUPPORT, 2).number == 2


def test_deleting_a_tenant_ends_its_trials(published: Registry):
    trial = start(published)

    published.tenants.delete("acme", "ada")

    assert published.trials.under_way() == ()
    assert published.trials.get(trial.id).status.state == "ABORTED"
    assert "rollout.aborted" in [row.action for row in published.audit.list("acme")]
    with pytest.raises(TenantNotFound):
        start(published)


def test_trials_are_listed_by_tenant_and_kind_newest_first(published: Registry):
    first = start(published)
    first = published.trials.move(first, TrialStatus("ABORTED"), "ada", is_over=True)
    second = published.trials.start("experiment", SUPPORT, ARMS, "{}", "RUNNING")

    assert published.trials.list("acme") == (second, first)
    assert published.trials.list(kind="rollout") == (first,)
    assert published.trials.list("globex") == ()
    with pytest.raises(TrialNotFound):
        published.trials.get(9)


def test_newest_trial_of_an_adapter_is_found_whatever_others_there_are(
    published: Registry, write_adapter: WriteAdapter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trials, "_ROWS_AT_ONCE", 2)
    assert published.trials.newest(SUPPORT) is None
    first = start(published)
    published.trials.move(first, replace(first.status, state="ABORTED"), "ada", is_over=True)
    second = start(published)
    arms = NewArm("challenger", 1), NewArm("champion", 1)
    others: list[Trial] = []
    for number in range(3):
        adapter = AdapterName("acme", f"other-{number}")
        published.versions.publish(adapter, write_adapter(f"other-{number}", seed=9))
        others.append(published.trials.start("experiment", adapter, arms, "{}", "RUNNING"))

    assert published.trials.newest(SUPPORT) == second
    assert published.trials.newest(SUPPORT, "experiment") is None
    assert published.trials.newest(AdapterName("acme", "nothing")) is None
    assert published.trials.under_way() == (second, *others)


def test_a_list_of_trials_takes_as_many_queries_as_one_trial(
    published: Registry, write_adapter: WriteAdapter
):
    asked: list[str] = []
    start(published)
    event.listen(
        published._database._engine,
        "before_cursor_execute",
        lambda *given: asked.append(given[2]),
    )
    published.trials.list()
    of_one = len(asked)
    for number in range(4):
        adapter = AdapterName("acme", f"other-{number}")
        published.versions.publish(adapter, write_adapter(f"other-{number}", seed=9))
        published.trials.start("rollout", adapter, (NewArm("challenger", 1),), "{}", "RUNNING")
    asked.clear()

    assert len(published.trials.list()) == 5
    assert len(asked) == of_one
