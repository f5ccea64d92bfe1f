"""Which merged models are to be served, and by which engine an alias goes, is on record."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loragate.adapters.errors import MergedInUse, NotServedMerged, VersionRetired
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.merged_states import MergedState
from loragate.adapters.registry.registry import Registry
from loragate.adapters.registry.trial_records import NewArm
from support.registry.promotions import let_serve

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def versions(registry: Registry, write_adapter: Callable[..., Path]) -> list[AdapterVersion]:
    registry.tenants.create("acme")
    return [
        registry.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed)) for seed in (1, 2)
    ]


def state(registry: Registry, version: AdapterVersion) -> str | None:
    status = registry.snapshot().merged(version)
    return None if status is None else status.state


def mode(registry: Registry, selector: str = "champion") -> str:
    return registry.snapshot().mode("acme", "support", selector)


def test_what_is_to_be_served_is_seen_by_servers_in_the_order_of_asking_and_audited(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.snapshot()

    registry.merged.serve(SUPPORT, 2, "ada")
    registry.merged.serve(SUPPORT, 1, "ada")

    assert registry.snapshot().served_merged() == (versions[1], versions[0])
    row = registry.audit.list(str(SUPPORT), 1)[0]
    assert (row.actor, row.action, row.subject) == (
        *("ada", "version.serve_merged", "acme/support@v1"),
    )
    assert state(registry, versions[0]) == "WAITING"


def test_wish_taken_back_before_a_server_took_it_up_leaves_nothing(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.merged.serve(SUPPORT, 1)
    registry.merged.stop(SUPPORT, 1)

    assert registry.snapshot().served_merged() == ()
    assert state(registry, versions[0]) is None


def test_engine_that_runs_is_stopping_until_the_server_has_let_go_of_it(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.merged.serve(SUPPORT, 1)
    registry.merged.set_state(versions[0], MergedState.SERVING, "server")
    registry.merged.stop(SUPPORT, 1)
    assert state(registry, versions[0]) == "STOPPING"

    registry.merged.set_state(versions[0], None, "server")
    assert state(registry, versions[0]) is None


def test_model_asked_for_again_while_it_stops_waits_for_its_next_engine(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.merged.serve(SUPPORT, 1)
    registry.merged.set_state(versions[0], MergedState.SERVING, "server")
    registry.merged.stop(SUPPORT, 1)
    registry.merged.serve(SUPPORT, 1)

    registry.merged.set_state(versions[0], None, "server")

    assert state(registry, versions[0]) == "WAITING"


@pytest.mark.parametrize("end", [MergedState.REFUSED, MergedState.FAILED])
def test_asking_again_tries_what_was_refused_or_failed_again(
    registry: Registry, versions: list[AdapterVersion], end: MergedState
):
    registry.merged.serve(SUPPORT, 1)
    registry.merged.set_state(versions[0], end, "server", "there is no room")
    [record] = [r for r in registry.versions.show(SUPPORT).versions if r.version.number == 1]
    assert record.merged is not None
    assert record.merged.reason == "there is no room"

    registry.merged.serve(SUPPORT, 1)

    assert state(registry, versions[0]) == "WAITING"


def test_server_that_starts_finds_all_wishes_and_nothing_of_the_dead_ones_engines(
    registry: Registry, versions: list[AdapterVersion]
):
    for version in versions:
        registry.merged.serve(SUPPORT, version.number)
        registry.merged.set_state(version, MergedState.SERVING, "server")
    registry.merged.stop(SUPPORT, 2)

    registry.merged.reset("server")

    assert [state(registry, version) for version in versions] == ["WAITING", None]


def test_alias_goes_to_a_merged_model_only_where_that_is_to_be_served(
    registry: Registry, versions: list[AdapterVersion]
):
    with pytest.raises(NotServedMerged, match="loragate merge acme/support@v1 --serve"):
        registry.aliases.set(SUPPORT, "champion", 1, mode="merged")

    registry.merged.serve(SUPPORT, 1)
    registry.aliases.set(SUPPORT, "champion", 1, mode="merged")
    let_serve(registry, SUPPORT, "other", 1)
    assert (mode(registry, "other"), mode(registry, "v1")) == ("unmerged", "unmerged")


def test_mode_of_what_serves_changes_at_once_and_that_of_another_version_with_it(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.merged.serve(SUPPORT, 1)
    registry.aliases.set(SUPPORT, "champion", 1, mode="merged")
    assert mode(registry) == "merged"

    registry.aliases.set(SUPPORT, "champion", 2)
    assert mode(registry) == "merged"  # v1 still serves
    let_serve(registry, SUPPORT, "champion", 2)
    assert mode(registry) == "unmerged"

    assert registry.aliases.rollback(SUPPORT) == versions[0]


def test_merged_model_in_use_is_not_stopped(registry: Registry, versions: list[AdapterVersion]):
    registry.merged.serve(SUPPORT, 1)
    registry.aliases.set(SUPPORT, "champion", 1, mode="merged")
    arms = [NewArm("champion", 2), NewArm("challenger", 1, "merged")]
    trial = registry.trials.start("experiment", SUPPORT, arms, "{}", "running")

    with pytest.raises(MergedInUse) as refusal:
        registry.merged.stop(SUPPORT, 1)
    assert refusal.value.users == ("alias champion", f"experiment {trial.id}")


def test_retired_version_is_served_merged_no_longer(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.merged.serve(SUPPORT, 1)
    registry.states.retire(SUPPORT, 1)

    assert registry.snapshot().served_merged() == ()
    with pytest.raises(VersionRetired):
        registry.merged.serve(SUPPORT, 1)
