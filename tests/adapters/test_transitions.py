import pytest

from loragate.adapters.errors import IllegalMove, VersionNotFound, VersionRetired
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.registry import AdapterState, Registry
from support.models.one_layer import WriteAdapter
from support.registry.promotions import let_serve, make_ready

SUPPORT = AdapterName("acme", "support")
PUBLISHED, LOADING, READY = AdapterState.PUBLISHED, AdapterState.LOADING, AdapterState.READY
DRAINING, RETIRED, FAILED = AdapterState.DRAINING, AdapterState.RETIRED, AdapterState.FAILED


@pytest.fixture
def version(registry: Registry, write_adapter: WriteAdapter) -> AdapterVersion:
    registry.tenants.create("acme")
    return registry.versions.publish(SUPPORT, write_adapter("v1", seed=1))


def move_all(registry: Registry, version: AdapterVersion, *states: AdapterState) -> None:
    for state in states:
        registry.states.set(version, state, "server")


def state_of(registry: Registry, number: int) -> tuple[str, str]:
    [row] = [
        row for row in registry.versions.show(SUPPORT).versions if row.version.number == number
    ]
    return row.state, row.reason


def test_every_move_is_audited_with_who_from_to_why_and_digest(
    registry: Registry, version: AdapterVersion
):
    move_all(registry, version, LOADING)
    registry.states.set(version, FAILED, "server-a", "it has no effect")

    row = registry.audit.list("acme/support", limit=1)[0]
    assert (row.actor, row.action, row.subject) == ("server-a", "version.state", str(version))
    assert (row.from_state, row.to_state) == ("LOADING", "FAILED")
    assert (row.reason, row.digest) == ("it has no effect", version.digest)
    assert state_of(registry, 1) == ("FAILED", "it has no effect")


def test_illegal_move_is_refused_and_leaves_no_trace(registry: Registry, version: AdapterVersion):
    revision = registry.revision()

    with pytest.raises(IllegalMove, match="LOADING or RETIRED"):
        registry.states.set(version, READY, "server")

    assert registry.revision() == revision
    assert state_of(registry, 1) == ("PUBLISHED", "")


def test_version_of_another_registry_cannot_be_moved(registry: Registry, version: AdapterVersion):
    stranger = AdapterVersion("acme", "support", 9, version.digest, 9)

    with pytest.raises(VersionNotFound):
        registry.states.set(stranger, LOADING, "server")


def test_server_that_starts_finds_nothing_loaded_and_aliases_as_they_were(
    registry: Registry, version: AdapterVersion, write_adapter: WriteAdapter
):
    let_serve(registry, SUPPORT, "champion", 1)
    rest = [registry.versions.publish(SUPPORT, write_adapter(f"v{n}", seed=n)) for n in range(2, 7)]
    move_all(registry, rest[0], LOADING)
    move_all(registry, rest[1], LOADING, READY, DRAINING)
    move_all(registry, rest[2], LOADING, FAILED)
    registry.states.retire(SUPPORT, 5)
    before = len(registry.audit.list(limit=1000))

    assert registry.states.reset("server") == 3

    states = [str(row.state) for row in reversed(registry.versions.show(SUPPORT).versions)]
    assert states == ["PUBLISHED", "PUBLISHED", "PUBLISHED", "FAILED", "RETIRED", "PUBLISHED"]
    rows = registry.audit.list(limit=1000)[:-before]
    assert sorted(str(row.from_state) for row in rows) == ["DRAINING", "LOADING", "READY"]
    assert {(row.to_state, row.actor) for row in rows} == {("PUBLISHED", "server")}
    assert registry.snapshot().resolve("acme", "support", "champion") == version
    revision = registry.revision()
    assert (registry.states.reset("server"), registry.revision()) == (0, revision)


@pytest.mark.parametrize("states", [(), (LOADING, FAILED)])
def test_version_at_rest_is_retired_at_once(
    registry: Registry, version: AdapterVersion, states: tuple[AdapterState, ...]
):
    move_all(registry, version, *states)

    registry.states.retire(SUPPORT, 1, "ada")
    registry.states.retire(SUPPORT, 1, "ada")

    assert state_of(registry, 1)[0] == "RETIRED"
    rows = [row for row in registry.audit.list() if row.action == "version.retire"]
    assert [(row.actor, row.to_state) for row in rows] == [("ada", "RETIRED")]


@pytest.mark.parametrize(
    ("held", "let_go"),
    [
        ((LOADING,), (FAILED,)),
        ((LOADING,), (READY, DRAINING, PUBLISHED)),
        ((LOADING, READY), (DRAINING, PUBLISHED)),
        ((LOADING, READY), (DRAINING, RETIRED)),
        ((LOADING, READY), (PUBLISHED,)),
        ((LOADING, READY, DRAINING), (PUBLISHED,)),
    ],
)
def test_version_in_the_engine_is_retired_in_the_moment_in_which_it_comes_to_rest(
    registry: Registry,
    version: AdapterVersion,
    held: tuple[AdapterState, ...],
    let_go: tuple[AdapterState, ...],
):
    move_all(registry, version, *held)
    registry.states.retire(SUPPORT, 1)

    snapshot = registry.snapshot()
    assert (snapshot.state(version), snapshot.is_retiring(version)) == (held[-1], True)
    assert snapshot.manifest(version).rank == 2  # requests that began go on by it
    with pytest.raises(VersionRetired):
        snapshot.resolve("acme", "support", "v1")
    with pytest.raises(VersionRetired):
        registry.aliases.set(SUPPORT, "champion", 1)
    move_all(registry, version, *let_go)

    snapshot = registry.snapshot()
    assert (snapshot.state(version), snapshot.is_retiring(version)) == (RETIRED, False)


def test_retirement_is_finished_by_the_next_server_if_this_one_dies(
    registry: Registry, version: AdapterVersion
):
    make_ready(registry, version)
    registry.states.retire(SUPPORT, 1)

    registry.states.reset("server")

    assert state_of(registry, 1)[0] == "RETIRED"


def test_engine_can_let_go_of_a_deleted_tenants_version(
    registry: Registry, version: AdapterVersion
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.snapshot()
    registry.tenants.delete("acme")
    assert registry.snapshot().is_retiring(version)

    move_all(registry, version, DRAINING, PUBLISHED)

    assert registry.snapshot().state(version) is RETIRED


def test_what_a_server_cannot_load_stays_published_and_says_why_once(
    registry: Registry, version: AdapterVersion
):
    registry.states.say_not_loaded(version, "its file is missing", "server")
    assert state_of(registry, 1) == ("PUBLISHED", "its file is missing")
    revision = registry.revision()
    registry.states.say_not_loaded(version, "its file is missing", "server")
    assert registry.revision() == revision

    move_all(registry, version, LOADING)
    registry.states.say_not_loaded(version, "the disk is full", "server")
    assert state_of(registry, 1) == ("PUBLISHED", "the disk is full")
    assert registry.audit.list(str(version), limit=1)[0].reason == "the disk is full"


def test_what_another_server_holds_ready_is_not_spoken_ill_of(
    registry: Registry, version: AdapterVersion
):
    make_ready(registry, version)

    registry.states.say_not_loaded(version, "its file is missing", "server")
    assert registry.states.set(version, LOADING, "server", unless=READY) is READY

    assert state_of(registry, 1) == ("READY", "")
    registry.states.say_not_loaded(version, "its file is missing", "server", was_ready=True)
    assert state_of(registry, 1) == ("PUBLISHED", "its file is missing")


def test_version_that_is_to_retire_does_so_when_it_cannot_be_loaded(
    registry: Registry, version: AdapterVersion
):
    make_ready(registry, version)
    registry.states.retire(SUPPORT, 1)

    registry.states.say_not_loaded(version, "its file is missing", "server", was_ready=True)

    assert state_of(registry, 1)[0] == "RETIRED"
