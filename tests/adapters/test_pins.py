"""A pin keeps a version in the engine: who asked is on record, and so is a server that cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loragate.adapters.errors import AliasNotFound, VersionNotFound, VersionRetired
from loragate.adapters.names import AdapterName, AdapterVersion
from loragate.adapters.registry.records import VersionRecord
from loragate.adapters.registry.registry import Registry
from support.registry.promotions import let_serve

SUPPORT = AdapterName("acme", "support")


@pytest.fixture
def versions(registry: Registry, write_adapter: Callable[..., Path]) -> list[AdapterVersion]:
    registry.tenants.create("acme")
    return [
        registry.versions.publish(SUPPORT, write_adapter(f"v{seed}", seed=seed)) for seed in (1, 2)
    ]


def shown(registry: Registry, number: int) -> VersionRecord:
    [record] = [
        one for one in registry.versions.show(SUPPORT).versions if one.version.number == number
    ]
    return record


def test_pin_is_seen_by_servers_in_the_order_of_asking_and_audited(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.snapshot()

    registry.pins.add(SUPPORT, "v2", "ada")
    registry.pins.add(SUPPORT, "v1", "ada")

    assert registry.snapshot().pinned() == (versions[1], versions[0])
    row = registry.audit.list(str(SUPPORT), 1)[0]
    assert (row.actor, row.action, row.subject) == ("ada", "version.pin", "acme/support@v1")
    assert row.digest == versions[0].digest
    assert shown(registry, 1).pinned_at is not None

    registry.pins.remove(SUPPORT, "v2", "ada")
    assert registry.snapshot().pinned() == (versions[0],)


def test_pin_by_alias_is_of_the_version_that_serves_and_stays_with_it(
    registry: Registry, versions: list[AdapterVersion]
):
    let_serve(registry, SUPPORT, "champion", 1)
    registry.aliases.set(SUPPORT, "champion", 2)

    assert registry.pins.add(SUPPORT, "champion") == versions[0]

    let_serve(registry, SUPPORT, "champion", 2)
    assert registry.snapshot().pinned() == (versions[0],)


def test_pinning_twice_changes_nothing(registry: Registry, versions: list[AdapterVersion]):
    registry.pins.add(SUPPORT, "v1")
    revision = registry.revision()

    registry.pins.add(SUPPORT, "v1")
    registry.pins.remove(SUPPORT, "v2")

    assert registry.revision() == revision


def test_what_does_not_exist_or_is_retired_cannot_be_pinned(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.pins.add(SUPPORT, "v1")
    registry.states.retire(SUPPORT, 1)

    assert registry.snapshot().pinned() == ()
    for selector, error in (
        ("v1", VersionRetired),
        ("v9", VersionNotFound),
        ("champion", AliasNotFound),
    ):
        with pytest.raises(error):
            registry.pins.add(SUPPORT, selector)


def test_pins_of_a_deleted_tenant_are_gone(registry: Registry, versions: list[AdapterVersion]):
    registry.pins.add(SUPPORT, "v1")

    registry.tenants.delete("acme")

    assert registry.snapshot().pinned() == ()


def test_server_that_has_no_room_for_a_pin_is_on_record_until_it_has(
    registry: Registry, versions: list[AdapterVersion]
):
    registry.pins.add(SUPPORT, "v1")

    registry.pins.refuse(versions[0], "there is no room", "server")
    assert shown(registry, 1).pin_refusal == "there is no room"
    assert registry.audit.list(str(SUPPORT), 1)[0].action == "version.pin_refused"

    registry.pins.refuse(versions[0], "", "server")
    assert shown(registry, 1).pin_refusal == ""
    revision = registry.revision()
    registry.pins.refuse(versions[0], "", "server")
    assert registry.revision() == revision
