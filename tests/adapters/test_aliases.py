import pytest

from loragate.adapters.errors import (
    AliasMovedOn,
    AliasNotFound,
    AliasNotServing,
    IllegalMove,
    NothingToRollBack,
    VersionFailed,
    VersionInUse,
    VersionNotReady,
)
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import AdapterState, Registry
from support.models.one_layer import WriteAdapter
from support.registry.promotions import let_serve, make_ready

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def versions(registry: Registry, write_adapter: WriteAdapter) -> list[AdapterVersion]:
    """Four versions, v1 first."""
    registry.tenants.create("acme")
    return [
        registry.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed))
        for seed in (1, 2, 3, 4)
    ]


def fail(registry: Registry, version: AdapterVersion, reason: str = "it has no effect") -> None:
    registry.states.set(version, AdapterState.LOADING, "server")
    registry.states.set(version, AdapterState.FAILED, "server", reason)


def champion(registry: Registry) -> AdapterVersion:
    return registry.snapshot().resolve("acme", "support", "champion")


def test_first_promotion_serves_nothing_until_a_server_has_made_it_ready(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.aliases.set(SUPPORT, "champion", 1)
    with pytest.raises(AliasNotServing, match="v1 is PUBLISHED"):
        champion(registry)
    registry.states.set(versions[0], AdapterState.LOADING, "server")
    with pytest.raises(AliasNotServing, match="v1 is LOADING"):
        champion(registry)
    registry.states.set(versions[0], AdapterState.READY, "server")

    registry.aliases.set_serving(SUPPORT, "champion", 1, "server")

    assert champion(registry) == versions[0]


def test_what_serves_goes_on_until_its_successor_is_made_to_serve(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    make_ready(registry, registry.aliases.set(SUPPORT, "champion", 2))
    assert champion(registry) == versions[0]

    registry.aliases.set_serving(SUPPORT, "champion", 2, "server", reason="passed the gate")

    assert champion(registry) == versions[1]
    row = registry.audit.list("acme/support", limit=1)[0]
    assert (row.action, row.actor, row.subject) == ("alias.serve", "server", f"{SUPPORT}@champion")
    assert (row.from_version, row.to_version, row.digest) == (1, 2, versions[1].digest)
    assert row.reason == "passed the gate"


@pytest.mark.parametrize("state", [None, AdapterState.LOADING, AdapterState.FAILED])
def test_version_that_is_not_ready_is_not_made_to_serve(
    registry: Registry, versions: list[AdapterVersion], state: AdapterState | None
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.set(SUPPORT, "champion", 2)
    if state is not None:
        registry.states.set(versions[1], AdapterState.LOADING, "server")
    if state is AdapterState.FAILED:
        registry.states.set(versions[1], AdapterState.FAILED, "server", "it has no effect")
    revision = registry.revision()

    with pytest.raises(VersionNotReady, match=f"v2 is {state or 'PUBLISHED'}"):
        registry.aliases.set_serving(SUPPORT, "champion", 2, "server")

    assert champion(registry) == versions[0]
    assert registry.revision() == revision


def test_version_that_was_rolled_back_while_it_loaded_is_not_made_to_serve(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.set(SUPPORT, "champion", 2)
    registry.aliases.rollback(SUPPORT)
    make_ready(registry, versions[1])

    with pytest.raises(AliasMovedOn, match="v1 by now"):
        registry.aliases.set_serving(SUPPORT, "champion", 2, "server")
    with pytest.raises(AliasNotFound):
        registry.aliases.set_serving(SUPPORT, "challenger", 2, "server")

    assert champion(registry) == versions[0]


@pytest.fixture
def swap(registry: Registry, versions: list[AdapterVersion]) -> AdapterVersion:
    """v1 is champion; v2 is to be, and loads."""
    let_serve(registry, SUPPORT, "champion", 1)
    version = registry.aliases.set(SUPPORT, "champion", 2)
    registry.states.set(version, AdapterState.LOADING, "server")
    return version


def states(registry: Registry, versions: list[AdapterVersion]) -> list[AdapterState]:
    return [registry.snapshot().state(version) for version in versions]


def test_version_that_becomes_ready_serves_at_once_by_all_aliases_that_wait_for_it(
    registry: Registry, versions: list[AdapterVersion], swap: AdapterVersion
):
    registry.aliases.set(SUPPORT, "challenger", 2)
    registry.aliases.set(SUPPORT, "newest", 3)
    seen = registry.audit.list(limit=1)[0].id

    assert registry.aliases.set_ready(swap, "server") is AdapterState.READY

    served = registry.snapshot()
    assert served.resolve("acme", "support", "champion") == swap
    assert served.resolve("acme", "support", "challenger") == swap
    assert [target.alias for target in served.unserved_aliases()] == ["newest"]
    assert states(registry, versions)[:3] == ["DRAINING", "READY", "PUBLISHED"]
    told = registry.audit.after(seen)
    assert [(row.subject, row.to_state or row.action) for row in told] == [
        (str(swap), "READY"),
        (f"{SUPPORT}@challenger", "alias.serve"),
        (f"{SUPPORT}@champion", "alias.serve"),
        (str(versions[0]), "DRAINING"),
    ]
    assert (told[2].from_version, told[2].to_version, told[2].digest) == (1, 2, swap.digest)


@pytest.mark.parametrize("wish", ["pin", "alias", "alias that is to mean it"])
def test_version_that_is_wanted_otherwise_is_not_drained_when_its_alias_moves(
    registry: Registry, versions: list[AdapterVersion], swap: AdapterVersion, wish: str
):
    match wish:
        case "pin":
            registry.pins.add(SUPPORT, "v1")
        case "alias":
            let_serve(registry, SUPPORT, "stable", 1)
        case _:
            registry.aliases.set(SUPPORT, "stable", 1)

    registry.aliases.set_ready(swap, "server")

    assert champion(registry) == swap
    assert states(registry, versions)[:2] == ["READY", "READY"]


def test_version_that_was_rolled_back_while_it_loaded_becomes_ready_and_serves_nothing(
    registry: Registry, versions: list[AdapterVersion], swap: AdapterVersion
):
    registry.aliases.rollback(SUPPORT)

    registry.aliases.set_ready(swap, "server")

    assert champion(registry) == versions[0]
    assert states(registry, versions)[:2] == ["READY", "READY"]


def test_version_that_is_not_loading_moves_no_alias(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.set(SUPPORT, "champion", 2)
    revision = registry.revision()

    with pytest.raises(IllegalMove):
        registry.aliases.set_ready(versions[1], "server")

    assert champion(registry) == versions[0]
    assert registry.revision() == revision


def test_alias_of_a_deleted_tenant_moves_no_more(
    registry: Registry, versions: list[AdapterVersion], swap: AdapterVersion
):
    registry.tenants.delete("acme")

    registry.aliases.set_ready(swap, "server")

    assert registry.audit.list(f"{SUPPORT}@champion", limit=1)[0].action != "alias.serve"


def test_serving_the_same_again_changes_nothing(registry: Registry, versions: list[AdapterVersion]):
    let_serve(registry, SUPPORT, "champion", 1)
    revision = registry.revision()

    registry.aliases.set_serving(SUPPORT, "champion", 1, "server")

    assert registry.revision() == revision


def test_failed_successor_leaves_what_serves_and_keeps_its_reason(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.set(SUPPORT, "champion", 2)
    fail(registry, versions[1])

    snapshot = registry.snapshot()
    assert champion(registry) == versions[0]
    assert snapshot.state(versions[1]) is AdapterState.FAILED
    assert snapshot.reason(versions[1]) == "it has no effect"
    with pytest.raises(VersionFailed, match="it has no effect"):
        snapshot.resolve("acme", "support", "v2")


def test_first_version_that_failed_says_why_by_its_alias_too(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.aliases.set(SUPPORT, "champion", 1)
    fail(registry, versions[0], "its rank is 64")

    with pytest.raises(VersionFailed, match="its rank is 64"):
        champion(registry)


def test_failed_version_that_is_promoted_again_is_tried_again(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.aliases.set(SUPPORT, "champion", 1)
    fail(registry, versions[0])

    registry.aliases.set(SUPPORT, "champion", 1, actor="ada")

    snapshot = registry.snapshot()
    assert snapshot.state(versions[0]) is AdapterState.PUBLISHED
    row = registry.audit.list("acme/support", limit=1)[0]
    assert (row.actor, row.from_state, row.to_state) == ("ada", "FAILED", "PUBLISHED")


def test_version_that_serves_and_fails_after_a_restart_says_so(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.states.reset("server")
    assert champion(registry) == versions[0]

    fail(registry, versions[0], "its file is damaged")

    with pytest.raises(VersionFailed, match="its file is damaged"):
        champion(registry)


def test_rollback_goes_to_what_served_and_not_to_what_was_only_wished_for(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.set(SUPPORT, "champion", 2)  # overtaken before it was loaded
    let_serve(registry, SUPPORT, "champion", 3)

    assert registry.aliases.rollback(SUPPORT) == versions[0]
    with pytest.raises(NothingToRollBack):
        registry.aliases.rollback(SUPPORT)


def test_rollback_of_what_failed_goes_to_what_serves(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    for version in versions[1:3]:
        fail(registry, registry.aliases.set(SUPPORT, "champion", version.number))

    assert registry.aliases.rollback(SUPPORT) == versions[0]
    [target] = registry.snapshot().desired_aliases()
    assert (target.desired, target.serving) == (versions[0], versions[0])


def test_rollback_passes_over_what_served_once_and_failed_since(
    registry: Registry, versions: list[AdapterVersion]
):
    for number in (1, 2, 3):
        let_serve(registry, SUPPORT, "champion", number)
    registry.states.set(versions[1], AdapterState.LOADING, "server", "the engine started anew")
    registry.states.set(versions[1], AdapterState.FAILED, "server", "its file is damaged")

    assert registry.aliases.rollback(SUPPORT) == versions[0]


def test_version_that_serves_is_in_use_though_another_is_wished_for(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.set(SUPPORT, "champion", 2)

    for number in (1, 2):
        with pytest.raises(VersionInUse, match="champion"):
            registry.states.retire(SUPPORT, number)


def test_deleted_alias_forgets_its_wish_and_what_served(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.delete(SUPPORT, "champion")

    assert list(registry.snapshot().desired_aliases()) == []
    registry.aliases.set(SUPPORT, "champion", 2)
    with pytest.raises(AliasNotServing):
        champion(registry)
    with pytest.raises(NothingToRollBack):
        registry.aliases.rollback(SUPPORT)
